"""A search by Optuna that any number of processes share: claims, trainings, early stops. Needs extra `tune`.

Everything stands in one journal, a file of JSON lines that Optuna's own lock keeps whole. Two locks of the
system, which end with whoever holds them, do the rest: one on the journal while a trial is claimed, one on a
trial's log while anybody works on it, be it the process that searches or the training itself, which inherits
the log. So a trial that is running though nobody holds its log is one that was killed: whoever sees it first
goes on with it.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from hafvt.errors import HafvtError
from hafvt.experiments.search_space import TRAINING, Choices, Range, plain
from hafvt.experiments.training_pool import TrainingPool

POLL_S = 0.3  # between two looks at a training
TRIED_FIRST = 4  # trials that end before any is stopped early
TOP = 0.25  # the share of trials whose settings are told apart from the others'


class Search:
    """A search in a folder.

    Args:
        out: the folder, which has its settings.json.
        model: name of the model.
        options: of `hafvt train`, the same for every trial.
        params: fixed hyperparameters.
        space: what is searched.
        start: values that the first trial has where it can.
        seed: of the sampler; each trial's draws depend on it, the trial's number and the trials before.
        trainings: where they run.
    """

    def __init__(
        self,
        out: Path,
        model: str,
        options: Mapping[str, Any],
        params: Mapping[str, Any],
        space: Mapping[str, Range | Choices],
        start: Mapping[str, Any],
        seed: int,
        trainings: TrainingPool,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.out, self.model, self.options, self.params = out, model, options, params
        self.space, self.start, self.seed, self.trainings = space, start, seed, trainings
        self.journal = (out / "journal.jsonl").resolve()  # Optuna finds a dead process's lock by it alone
        (out / "trials").mkdir(exist_ok=True)
        epochs = options["epochs"]
        with _locked(self.journal):
            _mend(self.journal)
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self.journal))),
                pruner=MedianPruner(n_startup_trials=TRIED_FIRST, n_warmup_steps=epochs // 4),
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
            )
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial({n: plain(start[n]) for n, one in space.items() if start[n] in one})

    def run(self, trials: int, changed: Callable[[str], None], until: float | None) -> None:
        """Tries until so many trials are done, by this process or by others.

        Args:
            trials: how many, with those that are done already.
            changed: is told of every step forward, with a note.
            until: a time of time.monotonic() at which this process stops; its trials can be gone on with.

        Raises:
            HafvtError: a training failed before any succeeded.
        """

        def work() -> None:
            while not self.trainings.stopped and (until is None or time.monotonic() < until):
                with _locked(self.journal):
                    claimed = self._claim(trials)
                if claimed is not None:
                    with claimed[1]:
                        self._try(*claimed, changed, until)
                elif not self.trials(TrialState.RUNNING):
                    return
                else:  # others are at it; should they be killed, their trials are ours
                    time.sleep(POLL_S)

        for _ in self.trainings.side_by_side([work] * self.trainings.jobs):
            pass

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Returns the trials in these states, by number; without any, all that were begun."""
        begun = tuple(state for state in TrialState if state != TrialState.WAITING)
        return self.study.get_trials(deepcopy=False, states=states or begun)

    def best(self) -> str:
        """Returns the best value so far in words, nothing before there is one."""
        values = [trial.value for trial in self.trials(TrialState.COMPLETE) if trial.value is not None]
        return f"  (best {max(values):.2%})" if values else ""

    def folder(self, number: int) -> Path:
        """Returns the folder of a trial's training."""
        return self.out / "trials" / f"{number:04d}"

    def values(self, trial: FrozenTrial | optuna.Trial) -> dict[str, Any]:
        """Returns the fields of a trial as it trains with them; those that it has none of yet are drawn."""
        return {name: one.suggest(trial, name) for name, one in self.space.items()}

    def importances(self) -> dict[str, float]:
        """Returns what share of the difference between good trials and the others each field makes.

        PED-ANOVA compares the settings of the best quarter with those of all. Trials that were stopped early
        count with what they had reached: Optuna alone would leave them out, and with them most bad settings.

        Returns:
            By field, the largest first, with sum 1; nothing where fewer than two trials differ.
        """
        told = [t for t in self.trials(TrialState.COMPLETE, TrialState.PRUNED) if t.intermediate_values]
        values = [max(t.intermediate_values.values()) for t in told]
        searched = [n for n, one in self.space.items() if isinstance(one, Range) or len(one.values) > 1]
        if len(set(values)) < 2:
            return {}
        study = optuna.create_study(direction="maximize")
        for trial, value in zip(told, values, strict=True):
            study.add_trial(
                optuna.create_trial(value=value, params=trial.params, distributions=trial.distributions)
            )
        return get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=TOP), params=searched
        )

    def _claim(self, trials: int) -> tuple[optuna.Trial, BinaryIO] | None:
        """Returns a trial to work on, under the journal's lock: one that was left, or a new one."""
        trial, log = None, None
        for left in self.trials(TrialState.RUNNING):
            log = self._owned(left.number)
            if log is not None and left.number in [t.number for t in self.trials(TrialState.RUNNING)]:
                self._seed(left.number)
                trial = optuna.Trial(self.study, left._trial_id)
                break
            if log is not None:  # it has just ended
                log.close()
        begun = len(self.trials())
        if trial is None and begun < trials:
            self._seed(begun)
            trial = self.study.ask()
            log = self._owned(trial.number)
        if trial is None or log is None:
            return None
        self.values(trial)
        return trial, log

    def _seed(self, number: int) -> None:
        """Makes a trial's draws depend on its number, so that a search that was killed goes on alike."""
        seeds = np.random.SeedSequence((self.seed, number)).generate_state(1)
        self.study.sampler = TPESampler(seed=int(seeds[0]))

    def _owned(self, number: int) -> BinaryIO | None:
        """Returns the log of a trial, locked, or None where somebody works on it."""
        log = self.folder(number).with_suffix(".log").open("ab")
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.close()
            return None
        return log

    def _try(
        self, trial: optuna.Trial, log: BinaryIO, changed: Callable[[str], None], until: float | None
    ) -> None:
        """Trains a trial, or goes on with it; stops it early where others were better at the same epoch."""
        folder = self.folder(trial.number)
        values = self.values(trial)
        options = {name: values.pop(name) for name in TRAINING if name in values}
        options = {**self.options, **options, "out": folder, "test": False}
        process = self.trainings.start(self.model, options, {**self.params, **values}, log)
        told = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        ended = False
        while not ended:
            if until is not None and time.monotonic() >= until:
                process.terminate()
                process.wait()
                return
            ended = _waited(process, POLL_S)
            for epoch, mrr, seconds in validations(folder):
                if epoch in told:
                    continue
                trial.set_user_attr("seconds", seconds)
                trial.report(mrr, epoch)
                told.add(epoch)
                if trial.should_prune():
                    process.terminate()
                    process.wait()
                    self.study.tell(trial, state=TrialState.PRUNED)
                    changed(f"trial {trial.number} stopped early after epoch {epoch}: {mrr:.2%}")
                    return
                changed(f"trial {trial.number} epoch {epoch}: {mrr:.2%}")
        try:
            self.trainings.ended(process, folder.with_suffix(".log"), f"trial {trial.number}")
        except HafvtError as error:
            if not self.trials(TrialState.COMPLETE):
                raise  # so will the others, most likely; mended, it goes on with this one
            trial.set_user_attr("problem", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, max(mrr for _, mrr, _ in validations(folder)))
        changed(f"trial {trial.number} ended")


def validations(folder: Path) -> list[tuple[int, float, float]]:
    """Returns epoch, validation MRR and seconds of training so far from a run's metrics.jsonl."""
    path, found = folder / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("\n"):
            break  # still being written
        told = json.loads(line)
        if "valid_mrr" in told:
            found.append((told["epoch"], told["valid_mrr"], told["seconds"]))
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock on a file against all other threads and processes; it is made where it is missing."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mend(journal: Path) -> None:
    """Drops half a line that somebody left who was killed as they wrote: nobody could read on behind it."""
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        with journal.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        lock.release()


def _waited(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Waits so long, and returns whether a process has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
