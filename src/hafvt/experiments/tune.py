"""`hafvt tune`: search hyperparameters with Optuna, on validation data alone.

Optuna stores the study in `study.db`, or in a storage that many machines share, so that several processes
join it. Each trial is a training in a process of its own. A process that runs a trial sends heartbeats, and
Optuna queues a trial without heartbeats again. The worker that takes it resumes the training in the folder
of the trial, or begins it if the folder is of another machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hafvt.data.dataset import Dataset
from hafvt.data.repeats import CandidateRule
from hafvt.errors import HafvtError, missing_package
from hafvt.evaluation.metrics import get_metric
from hafvt.evaluation.protocols import get_protocol
from hafvt.experiments.search_space import (
    TRAINING_OPTIONS,
    TUNING_FORMAT,
    build_search_space,
    default_settings,
)
from hafvt.experiments.study import (
    LOCAL_NAME,
    counted_trials,
    mark_as_begun,
    open_study,
    queue_again,
    queue_unfinished_trials,
    read_validations,
    setting_importances,
    trial_folder,
    trial_result,
    trial_settings,
)
from hafvt.experiments.study_storage import StudyStorage
from hafvt.experiments.training_pool import POLL_S, TrainingPool, save_or_check_settings
from hafvt.experiments.tune_report import TuningResult, TuningTask, write_tuning_report
from hafvt.files import explained_write_errors
from hafvt.progress import progress
from hafvt.settings import (
    Count,
    Jobs,
    OutFolder,
    PositiveCount,
    PositiveNumber,
    Seed,
    check_arguments,
)
from hafvt.training.config import PositiveUsers
from hafvt.training.run import feature_hashes, fingerprint

try:
    import optuna
    from optuna.trial import TrialState
except ModuleNotFoundError as error:
    raise missing_package("tune", str(error.name)) from None


@check_arguments
def tune(
    model: str,
    data: str | Path | Dataset,
    out: OutFolder,
    *,
    preset: str = "default",
    params: dict[str, Any] | None = None,
    space: dict[str, Any] | None = None,
    trials: PositiveCount = 30,
    epochs: PositiveCount = 100,
    validate_every: PositiveCount | None = None,
    patience: Count | None = None,
    validate_users: PositiveUsers | None = None,
    protocol: str = "full",
    candidates: CandidateRule = "auto",
    metric: str = "MRR",
    seed: Seed = 0,
    jobs: Jobs | None = None,
    minutes: PositiveNumber | None = None,
    storage: str | None = None,
) -> TuningResult:
    """Search for the hyperparameters with the best validation; the test targets are not read.

    The first trial has the default settings, also those that `space` leaves out. A trial trains until its
    validation no longer improves, so that the number of epochs suits each setting. Optuna's TPE sampler
    draws the settings of the others, and a median pruner stops a trial early that falls behind. Several calls
    on one folder or one storage share the work. A call that was stopped or killed resumes when it is
    repeated. With one job, equal seeds try equal settings.

    Example: hafvt tune sasrec data/movies --out tune/sasrec --trials 30 --space.dropout "[0.1, 0.5]"

    Args:
        model: hafvt, hafvt-paper, gru4rec, sasrec, srgnn, pinet, psjnet, mifn, tricdr, c2dsr, item-knn,
            recent-popularity or seasonal-popularity.
        data: a dataset folder, made by prepare and encode.
        out: folder of best.yaml (for train --config), report.md, trials.csv, importance.svg and the trials.
        preset: the preset of the model that the search starts from.
        params: hyperparameters with a fixed value, by name (--params.width 64).
        space: ranges or choices that replace or extend the default ones (--space.temperature
            "[0.05, 0.5, log]").
        trials: number of trials of all calls together.
        epochs: maximum number of epochs of a trial.
        validate_every: epochs between two validations; default: as in train.
        patience: validations in a row without improvement that end a trial; default: as in train.
        validate_users: number of users whose validation targets are ranked, always the same ones; default:
            all.
        protocol: how validation ranks its targets: full, c2dsr or sampled-unseen, see evaluate.
        candidates: items that targets are ranked among, see evaluate.
        metric: what is maximized in validation, see train.
        seed: of the sampler and of every training.
        jobs: parallel trainings of this call; default: one per processor.
        minutes: stop after this time; a repeated call resumes. Default: stop when all trials have ended.
        storage: where Optuna keeps the study, for calls on many machines: the URL of a database such as
            postgresql://HOST/NAME or sqlite:///FILE, grpc://HOST:PORT of Optuna's proxy, or the path of a
            journal file. Calls with equal settings join one study; each may have a folder of its own.
            Default: study.db in the folder.

    Raises:
        HafvtError: a wrong setting, a folder of another search, a storage that cannot be opened, or no
            training that succeeded.
    """
    storage_of_study = StudyStorage(Path(out), storage)
    get_protocol(protocol, candidates)
    get_metric(metric)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    params, folder = params or {}, Path(out)
    search_space = build_search_space(model, preset, params, space or {})
    options: dict[str, Any] = {
        "preset": preset,
        "protocol": protocol,
        "candidates": candidates,
        "metric": metric,
        "epochs": epochs,
    }
    optional = {"validate_every": validate_every, "validate_users": validate_users, "patience": patience}
    options |= {"seed": seed} | {name: value for name, value in optional.items() if value is not None}
    settings = {
        "format": TUNING_FORMAT,
        "model": model,
        "dataset": fingerprint(dataset),
        "features": feature_hashes(dataset, dataset.feature_names),
        "params": params,
        "space": {name: asdict(values) for name, values in search_space.items()},
        **optional,
        **options,
    }
    defaults = default_settings(model, preset, params)
    task = TuningTask(folder, model, {**options, "data": dataset.folder}, params, search_space, defaults)
    name = LOCAL_NAME if storage is None else study_name(settings)
    with explained_write_errors(folder), storage_of_study.explained_errors():
        folder.mkdir(parents=True, exist_ok=True)
        with storage_of_study.lock:
            save_or_check_settings(folder, settings, "a search", defaults={"metric": "MRR"})
            study = open_study(task, storage_of_study, name)
        result = _Tuner(task, study, storage_of_study, TrainingPool(jobs), trials, deadline).run()
    if result is None:
        raise HafvtError(f"no trial has ended within {minutes:g} minutes: call again to resume")
    return result


def study_name(settings: dict[str, Any]) -> str:
    """Return the name of a study in a shared storage: equal settings, and only these, share a study."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{settings['model']}-{digest[:12]}"


@dataclass
class _Tuner:
    """One call of `tune`: worker threads that take trials from the shared study.

    Attributes:
        task: what is tuned.
        study: the trials of all calls.
        storage: where the study is kept.
        pool: runs the trainings.
        num_trials: of all calls together.
        deadline: time.monotonic() at which this call stops.
        on_progress: is called with a note after each validation and each trial.
        first_seen: see `queue_unfinished_trials`.
    """

    task: TuningTask
    study: optuna.Study
    storage: StudyStorage
    pool: TrainingPool
    num_trials: int
    deadline: float
    on_progress: Callable[[str], None] = lambda note: None
    first_seen: dict[int, float] = field(default_factory=dict)

    @property
    def has_lock(self) -> bool:
        """Whether the lock is of the study, that is, holds for all processes that share it."""
        return self.storage.file is not None

    def run(self) -> TuningResult | None:
        """Run trials until their number is reached; return None where none has finished in time."""
        lock, epochs = threading.Lock(), self.task.options["epochs"]

        def counts() -> tuple[int, int]:  # in epochs, as a pruned trial takes less time than a full one
            trials = counted_trials(self.study)
            done = [epochs if trial.state.is_finished() else trial.last_step or 0 for trial in trials]
            return sum(done), sum(trial.state.is_finished() for trial in trials)

        done, ended = counts()
        total = max(self.num_trials * epochs, done)
        with progress(f"tune {self.task.model}", total, "epochs", done=done, every_s=60.0) as advance:

            def on_progress(note: str) -> None:
                nonlocal done, ended
                with lock:
                    (done_before, ended_before), (done, ended) = (done, ended), counts()
                    finished = [t.value for t in self.study.get_trials(deepcopy=False) if t.value is not None]
                    best = f"  (best {max(finished):.2%})" if finished else ""
                    advance(done - done_before, note + best)
                    if ended > ended_before:
                        self.write_report()

            self.on_progress = on_progress
            for _ in self.pool.run([self.work] * self.pool.jobs):
                pass
        return self.write_report()

    def write_report(self) -> TuningResult | None:
        """Write the files of the search so far."""
        with self.storage.lock:  # best.yaml and its hash in settings.json are of one process
            trials = [trial_result(trial, self.task) for trial in counted_trials(self.study)]
            begun = sorted((trial for trial in trials if trial.params), key=lambda trial: trial.number)
            return write_tuning_report(self.task, begun, setting_importances(self.study, self.task.space))

    def work(self) -> None:
        """Run one trial after the other."""
        while not self.pool.is_stopped and time.monotonic() < self.deadline:
            with self.storage.lock:
                queue_unfinished_trials(self.study, None if self.has_lock else self.first_seen)
                trials = counted_trials(self.study)
                states = [trial.state for trial in trials]
                if TrialState.WAITING in states or len(trials) < self.num_trials:
                    # The seed depends on the trials so far: a resumed search draws the same settings.
                    seeds = np.random.SeedSequence((self.task.options["seed"], len(trials)))
                    self.study.sampler = optuna.samplers.TPESampler(seed=int(seeds.generate_state(1)[0]))
                    self.study.optimize(self.run_trial, n_trials=1, catch=_TrialFailed)  # releases the lock
                    continue
            if TrialState.RUNNING not in states:
                return
            time.sleep(POLL_S)  # if the worker of a running trial dies, the trial is queued again

    def run_trial(self, trial: optuna.Trial) -> float:
        """Return the best validation of a training; resume the training if the trial was run before.

        Raises:
            _TrialFailed: the training failed, or the time is over.
            HafvtError: the training failed before any other trial succeeded.
            TrialPruned: the trial fell behind.
        """
        mark_as_begun(self.study, trial)
        if not self.has_lock and self.is_surplus(trial):
            raise _TrialFailed("another process began the last trial at the same time")
        self.storage.lock.release()
        try:
            return self.train(trial)
        except (KeyboardInterrupt, _TrialFailed):
            self.queue_if_unlocked(trial)
            raise
        except HafvtError as error:
            if not any(other.state == TrialState.COMPLETE for other in counted_trials(self.study)):
                self.queue_if_unlocked(trial)
                raise  # the others would fail alike
            trial.set_user_attr("error", str(error))
            raise _TrialFailed from None
        finally:
            self.on_progress(f"trial {trial.user_attrs['number']} ended")

    def is_surplus(self, trial: optuna.Trial) -> bool:
        """Return whether other machines began enough trials at the same time as this new one."""
        earlier = [other for other in counted_trials(self.study) if other.number < trial.number]
        is_retry = "retry_history" in self.study.get_trials(deepcopy=False)[trial.number].system_attrs
        return not is_retry and len(earlier) >= self.num_trials

    def queue_if_unlocked(self, trial: optuna.Trial) -> None:
        """Queue a trial that this process stops; under a lock, `queue_unfinished_trials` does so."""
        if not self.has_lock:
            queue_again(self.study, trial.number)

    def train(self, trial: optuna.Trial) -> float:
        """Train one trial, report each validation to Optuna, and return the best one."""
        number, metric = trial.user_attrs["number"], self.task.options["metric"]
        folder = trial_folder(self.task, trial)
        log = folder.with_suffix(".log")
        params = trial_settings(trial, self.task)
        training = {name: params.pop(name) for name in TRAINING_OPTIONS if name in params}
        options = {**self.task.options, **training, "out": folder, "test": False}
        process = self.pool.start(self.task.model, options, {**self.task.params, **params}, log)
        reported, has_ended = 0, False
        while not has_ended:
            time.sleep(POLL_S)
            has_ended = process.poll() is not None
            for epoch, value, seconds in read_validations(folder, metric)[reported:]:
                reported += 1
                trial.set_user_attr("seconds", seconds)
                trial.report(value, epoch)
                self.on_progress(f"trial {number} epoch {epoch}: {value:.2%}")
                if trial.should_prune():
                    self.pool.stop_one(process)
                    raise optuna.TrialPruned
            if time.monotonic() >= self.deadline and not has_ended:
                self.pool.stop_one(process)
                raise _TrialFailed("the time is over")
        self.pool.wait(process, log, f"trial {number}")
        return max(value for _, value, _ in read_validations(folder, metric))


class _TrialFailed(Exception):
    """The trial ended without a result; the search goes on."""
