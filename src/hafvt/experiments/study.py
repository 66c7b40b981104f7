"""The study of `hafvt tune`: Optuna's trials in the file study.db, which several processes share."""

from __future__ import annotations

import json
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from hafvt.errors import HafvtError, missing_package
from hafvt.experiments.search_space import Range, SearchSpace, storable
from hafvt.experiments.tune_report import TrialResult, TuningTask
from hafvt.files import explained_read_errors
from hafvt.training.config import validation_key

try:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import (
        RDBStorage,
        RetryHeartbeatStaleTrialCallback,
        fail_stale_trials,
    )
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as error:
    raise missing_package("tune", str(error.name)) from None

HEARTBEAT_S = 10
GRACE_S = 30  # seconds without a heartbeat after which a trial is queued again
UNPRUNED_TRIALS = 4  # number of trials that finish before any is stopped early
MAX_WARMUP_EPOCHS = 10  # epochs after which a trial may be stopped early, at most
IS_FIRST = "default settings"  # the mark of the first trial
TOP_QUANTILE = 0.25  # share of the trials that count as good for the importances
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}


class _Storage(RDBStorage):
    """Optuna's storage. It skips a heartbeat that fails; the next access to the storage fails as well."""

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(optuna.exceptions.StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the database in a folder into a HafvtError of one line."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SQLAlchemyError):
            cause = cause.__cause__ or cause.__context__  # Optuna raises its own errors after the database's
        if cause is None or isinstance(error, HafvtError):
            raise
        reason = str(getattr(cause, "orig", cause)).splitlines()[0]
        remedy = (
            "make room" if "full" in reason else "check its permissions and the free space, or restore it"
        )
        raise HafvtError(
            f"{folder / 'study.db'}: {reason}: {remedy}, and repeat the command, which keeps finished trials"
        ) from None


def open_study(task: TuningTask) -> optuna.Study:
    """Return the study in the folder of a task; create it if it is missing."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        study_name="tune",
        direction="maximize",
        storage=_Storage(
            f"sqlite:///{(task.out / 'study.db').resolve()}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
        ),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=UNPRUNED_TRIALS,
            n_warmup_steps=min(task.options["epochs"] // 4, MAX_WARMUP_EPOCHS),
        ),
        load_if_exists=True,
    )
    verify_study(study, task)
    if not study.get_trials(deepcopy=False):
        searched = {n: storable(value) for n, value in task.first_settings.items() if value in task.space[n]}
        study.enqueue_trial(searched, user_attrs={IS_FIRST: True})
    return study


def verify_study(study: optuna.Study, task: TuningTask) -> None:
    """Check the file of a study, and its trials against config.yaml and metrics.jsonl of their runs.

    Raises:
        HafvtError: the file is damaged, or a setting or a validation differs from that of the run.
    """
    path, remedy = task.out / "study.db", "restore it, or search in another folder"
    try:
        with closing(sqlite3.connect(path)) as connection:
            (problem,) = connection.execute("PRAGMA integrity_check").fetchone()
        if problem != "ok":
            raise ValueError(problem)
        if not study.get_trials(deepcopy=False) and any((task.out / "trials").glob("*")):
            raise HafvtError(f"{path} does not hold the trials of {task.out / 'trials'}: {remedy}")
        for trial in counted_trials(study):
            run = trial_folder(task, trial)
            if (
                trial.state.is_finished()
                and (run / "config.yaml").exists()
                and is_different(trial, task, run)
            ):
                raise HafvtError(f"{path} or {run} is damaged, as they disagree: {remedy}")
    except (HafvtError, SQLAlchemyError, optuna.exceptions.StorageInternalError):
        raise
    except Exception as error:  # Optuna raises many types for damaged values
        raise HafvtError(f"{path} is damaged ({' '.join(str(error).split())[:200]}): {remedy}") from None


def is_different(trial: FrozenTrial, task: TuningTask, run: Path) -> bool:
    """Return whether a setting or a validation of a trial differs from that in the folder of its run."""
    remedy = "remove the folder of the search, and search again"
    with explained_read_errors(run / "config.yaml", remedy):
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        saved = {**config, **config["config"]}
    with explained_read_errors(run / "metrics.jsonl", remedy):
        metric = task.options["metric"]
        validations = {epoch: value for epoch, value, _ in read_validations(run, metric)}
    values = trial.intermediate_values
    settings = json.loads(json.dumps(trial_settings(trial, task)))
    return (
        any(value is not None and saved[name] != value for name, value in settings.items())
        or any(validations.get(epoch) != value for epoch, value in values.items())
        or (trial.state == TrialState.COMPLETE and trial.value != max(values.values()))
    )


def trial_folder(task: TuningTask, trial: optuna.Trial | FrozenTrial) -> Path:
    """Return the folder of the run of a trial that has begun."""
    return task.out / "trials" / f"{trial.user_attrs.get('number', trial.number):04d}"


def read_validations(folder: Path, metric: str) -> list[tuple[int, float, float]]:
    """Return epoch, metric and seconds of training of each validation in a run's metrics.jsonl."""
    path, key = folder / "metrics.jsonl", validation_key(metric)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be incomplete
    return [(row["epoch"], row[key], row["seconds"]) for row in rows if key in row]


def mark_as_begun(study: optuna.Study, trial: optuna.Trial) -> None:
    """Record a heartbeat and that the trial has begun; call this under the lock.

    Optuna's own first heartbeat comes from a thread. Without one, a killed trial would look alive forever.
    """
    study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    trial.set_user_attr("begun", trial.number)


def queue_unfinished_trials(study: optuna.Study) -> None:
    """Queue the trials that ended without a result or an error of their own; call this under the lock.

    Their process was stopped or killed. A trial that has not even begun under the lock has no heartbeat.
    """
    fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("begun") != trial.number:
            study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    queued = {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
    for trial in trials:
        if trial.state == TrialState.FAIL and "error" not in trial.user_attrs and trial.number not in queued:
            RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of a study by number, without those that Optuna queued again under a new number."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL or "error" in trial.user_attrs
    ]


def trial_settings(trial: optuna.Trial | FrozenTrial, task: TuningTask) -> dict[str, Any]:
    """Return the value of every searched setting; a running trial draws them on the first call."""
    unsearched = unsearched_defaults(trial, task)
    return {
        name: unsearched[name] if name in unsearched else values.suggest(trial, name)
        for name, values in task.space.items()
    }


def unsearched_defaults(trial: optuna.Trial | FrozenTrial, task: TuningTask) -> dict[str, Any]:
    """Return the default settings that the search leaves out, and that the first trial has nevertheless.

    Optuna does not store them, as it stores values of the search alone.
    """
    if not trial.user_attrs.get(IS_FIRST, False):
        return {}
    return {name: value for name, value in task.first_settings.items() if value not in task.space[name]}


def trial_result(trial: FrozenTrial, task: TuningTask) -> TrialResult:
    """Return what the report of a search shows of a trial; one that has not begun has no settings."""
    has_begun = trial.params.keys() | unsearched_defaults(trial, task).keys() >= task.space.keys()
    validations = trial.intermediate_values
    best_epoch = max(validations, key=validations.__getitem__) if validations else 0
    return TrialResult(
        number=trial.user_attrs.get("number", trial.number),
        state=STATES[trial.state],
        params=trial_settings(trial, task) if has_begun else {},
        valid_value=validations.get(best_epoch),
        best_epoch=best_epoch,
        epochs=max(validations, default=0),
        seconds=trial.user_attrs.get("seconds", 0.0),
        error=trial.user_attrs.get("error", ""),
    )


def setting_importances(study: optuna.Study, space: SearchSpace) -> dict[str, float]:
    """Return by setting its share of the difference between the best quarter of the trials and all trials.

    Optuna's PED-ANOVA would leave out trials that were stopped early, most of which have bad settings. Here
    they count with their best validation.

    Returns:
        The largest share first, summing to 1; empty where fewer than two trials differ.
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    ended = [
        trial
        for trial in study.get_trials(states=states)
        if trial.intermediate_values and trial.params.keys() >= space.keys()
    ]
    values = [max(trial.intermediate_values.values()) for trial in ended]
    if len(set(values)) < 2:
        return {}
    completed = optuna.create_study(direction="maximize")
    for trial, value in zip(ended, values, strict=True):
        completed.add_trial(
            optuna.create_trial(value=value, params=trial.params, distributions=trial.distributions)
        )
    searched = [name for name, v in space.items() if isinstance(v, Range) or len(v.values) > 1]
    evaluator = PedAnovaImportanceEvaluator(target_quantile=TOP_QUANTILE)
    return get_param_importances(completed, evaluator=evaluator, params=searched)
