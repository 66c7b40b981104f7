"""The study of `hafvt tune`: Optuna's trials, which several processes share."""

from __future__ import annotations

import json
import sqlite3
import time
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import yaml

from hafvt.errors import HafvtError, missing_package
from hafvt.experiments import study_storage
from hafvt.experiments.search_space import Range, SearchSpace, storable
from hafvt.experiments.study_storage import StudyStorage
from hafvt.experiments.tune_report import TrialResult, TuningTask
from hafvt.files import explained_read_errors
from hafvt.training.config import validation_key

try:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as error:
    raise missing_package("tune", str(error.name)) from None

LOCAL_NAME = "tune"  # of the study in study.db
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


def open_study(task: TuningTask, storage: StudyStorage, name: str = LOCAL_NAME) -> optuna.Study:
    """Return the study of a task; create it if it is missing.

    Args:
        task: what is tuned.
        storage: where the study is kept; the caller holds its lock.
        name: of the study in its storage.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    opened, is_new = storage.open(), False
    with suppress(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(study_name=name, direction="maximize", storage=opened)
        is_new = True
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=UNPRUNED_TRIALS,
        n_warmup_steps=min(task.options["epochs"] // 4, MAX_WARMUP_EPOCHS),
    )
    study = optuna.load_study(study_name=name, storage=opened, pruner=pruner)
    verify_study(study, task, storage)
    if storage.file is None and not is_new:
        wait_for_first_trial(study)
    if not study.get_trials(deepcopy=False):
        searched = {n: storable(value) for n, value in task.first_settings.items() if value in task.space[n]}
        study.enqueue_trial(searched, user_attrs={IS_FIRST: True})
    return study


def wait_for_first_trial(study: optuna.Study) -> None:
    """Wait until the process that created a study on a server has queued the first trial, or was killed."""
    deadline = time.monotonic() + study_storage.GRACE_S
    while not study.get_trials(deepcopy=False) and time.monotonic() < deadline:
        time.sleep(0.1)


def verify_study(study: optuna.Study, task: TuningTask, storage: StudyStorage) -> None:
    """Check the trials of a study against the folders of their runs.

    A study in a shared storage may have trials of other folders: only study.db is compared with config.yaml
    and metrics.jsonl of the runs.

    Raises:
        HafvtError: the file is damaged, or a setting or a validation differs from that of the run.
    """
    remedy = "restore it, or search in another folder"
    try:
        if not study.get_trials(deepcopy=False) and any((task.out / "trials").glob("*")):
            raise HafvtError(f"{storage.label} does not hold the trials of {task.out / 'trials'}: {remedy}")
        if storage.url is not None:
            return
        with closing(sqlite3.connect(storage.label)) as connection:
            (problem,) = connection.execute("PRAGMA integrity_check").fetchone()
        if problem != "ok":
            raise ValueError(problem)
        for trial in counted_trials(study):
            run = trial_folder(task, trial)
            if (
                trial.state.is_finished()
                and (run / "config.yaml").exists()
                and is_different(trial, task, run)
            ):
                raise HafvtError(f"{storage.label} or {run} is damaged, as they disagree: {remedy}")
    except (HafvtError, SQLAlchemyError, optuna.exceptions.StorageInternalError):
        raise
    except Exception as error:  # Optuna raises many types for damaged values
        if storage.url is not None:  # it may be of a server, see `StudyStorage.explained_errors`
            raise
        reason = " ".join(str(error).split())[:200]
        raise HafvtError(f"{storage.label} is damaged ({reason}): {remedy}") from None


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
    """Record a heartbeat, that the trial has begun, and the number of its folder.

    Optuna's own first heartbeat comes from a thread. Without one, a killed trial would look alive forever.
    """
    study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    trial.set_user_attr("begun", trial.number)
    if "number" not in trial.user_attrs:  # else a trial that was queued again, in its folder
        trials = study.get_trials(deepcopy=False)
        first = (trials[trial.number].system_attrs.get("retry_history") or [trial.number])[0]
        trial.set_user_attr("number", sum("retry_history" not in t.system_attrs for t in trials[:first]))


def queue_unfinished_trials(study: optuna.Study, first_seen: dict[int, float] | None = None) -> None:
    """Queue the trials that ended without a result or an error of their own.

    Their process was stopped or killed. A trial that has not even begun has no heartbeat.

    Args:
        study: the study; the caller holds its lock, if it has one.
        first_seen: of a study without a lock, on a server: when this process first saw each trial that has
            not begun. There, a process queues the trials that it stops itself.
    """
    fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("begun") == trial.number:
            continue
        now = time.monotonic()
        if first_seen is None:
            study.tell(trial.number, state=TrialState.FAIL)
        elif now - first_seen.setdefault(trial.number, now) > study_storage.GRACE_S:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process was faster
                if study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                    queue_again(study, trial.number)
    if first_seen is not None:
        return
    trials = study.get_trials(deepcopy=False)
    queued = {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
    for trial in trials:
        if trial.state == TrialState.FAIL and "error" not in trial.user_attrs and trial.number not in queued:
            queue_again(study, trial.number)


def queue_again(study: optuna.Study, number: int) -> None:
    """Queue a trial with its settings under a new number of Optuna."""
    RetryHeartbeatStaleTrialCallback()(study, study.trials[number])


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
