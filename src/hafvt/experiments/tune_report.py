"""Write the files of a search: best.yaml, trials.csv, report.md, importance.svg, and its budget."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hafvt.experiments.search_space import (
    TRAINING_OPTIONS,
    SearchSpace,
    first_settings,
    format_value,
    storable,
)
from hafvt.experiments.training_pool import read_settings
from hafvt.files import atomic_file, sha256, write_json
from hafvt.reports.comparison import Bar, bars_svg
from hafvt.tables import markdown_table, percent
from hafvt.training.config import validation_key

NUM_BEST_TRIALS = 10  # in the table of report.md
STATES = ("finished", "stopped early", "failed", "unfinished")


@dataclass(frozen=True)
class TuningTask:
    """What is tuned, and where.

    Attributes:
        out: folder of the search.
        model: name of the model.
        options: of `hafvt train`, the same for every trial.
        params: hyperparameters with a fixed value.
        space: what is searched.
        defaults: default value of every setting.
    """

    out: Path
    model: str
    options: Mapping[str, Any]
    params: Mapping[str, Any]
    space: SearchSpace
    defaults: Mapping[str, Any]

    @property
    def first_settings(self) -> dict[str, Any]:
        """The settings of the first trial."""
        return first_settings(self.space, self.defaults)


@dataclass(frozen=True)
class TrialResult:
    """One training of a search.

    Attributes:
        number: from 0; the folder of the training is `trials/` and the number in four digits.
        state: finished, stopped early, failed or unfinished.
        params: value of every searched setting.
        valid_value: best value of the metric in validation so far; None before the first validation.
        best_epoch: epoch of the best validation.
        epochs: trained and validated epochs.
        seconds: training time.
        error: why the training failed, else "".
    """

    number: int
    state: str
    params: dict[str, Any]
    valid_value: float | None
    best_epoch: int
    epochs: int
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class TuningResult:
    """The result of a search; `str()` returns its tables and the names of its files.

    Attributes:
        folder: best.yaml, trials.csv, report.md, importance.svg, and trials/ with one run per trial.
        best: the finished trial with the best validation.
        trials: all trials by number.
        importances: by setting, its share of the difference between good and other trials, largest first.
        text: the tables.
    """

    folder: Path
    best: TrialResult
    trials: tuple[TrialResult, ...]
    importances: dict[str, float]
    text: str

    def __str__(self) -> str:
        return f"{self.text}\nwrote {self.folder / 'best.yaml'}, trials.csv, report.md and importance.svg"


def write_tuning_report(
    task: TuningTask, trials: Sequence[TrialResult], importances: dict[str, float]
) -> TuningResult | None:
    """Write the four files of a search, and its budget into settings.json, for `compare`.

    Without a finished trial, write nothing and return None.
    """
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        return None
    best = max(finished, key=lambda trial: trial.valid_value or 0.0)
    budget = _budget(task, trials)
    text = _tables(task, trials, best, importances, budget)
    image = "\n![importance of the settings](importance.svg)\n" if importances else ""
    bars = [Bar(name, 100 * share) for name, share in importances.items()]
    contents = {
        "best.yaml": _best_yaml(task, best),
        "trials.csv": _trials_csv(task, trials),
        "importance.svg": bars_svg("Importance of the settings (%)", bars),
        "report.md": f"# Settings of `{task.model}`\n\n{text}{image}",
    }
    for name, content in contents.items():
        with atomic_file(task.out / name) as path:
            path.write_text(content, encoding="utf-8")
    results = {"budget": budget, "sha256": {"best.yaml": sha256(task.out / "best.yaml")}}
    write_json(task.out / "settings.json", {**read_settings(task.out), **results}, checksum=True)
    return TuningResult(task.out, best, tuple(trials), importances, text)


def _budget(task: TuningTask, trials: Sequence[TrialResult]) -> str:
    """Return the cost of a search and what its trials have in common, in words."""
    options, states = task.options, [trial.state for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    hours = sum(trial.seconds for trial in trials) / 3600
    return (
        f"Budget: {len(trials)} trials of at most {options['epochs']} epochs ({counts}); "
        f"{sum(trial.epochs for trial in trials):,} epochs, {hours:.2f} hours of training in all. "
        f"Targets ranked by protocol {options['protocol']}, candidates {options['candidates']}, "
        f"seed {options['seed']}"
        + "".join(f", {name} fixed at {format_value(value)}" for name, value in task.params.items())
        + "."
    )


def _tables(
    task: TuningTask,
    trials: Sequence[TrialResult],
    best: TrialResult,
    importances: Mapping[str, float],
    budget: str,
) -> str:
    """Return the best value, the budget, a table of the settings and a table of the best trials."""
    first, metric = trials[0], task.options["metric"]
    is_default = first.params == task.first_settings
    default_value = (
        f"; default settings of preset `{task.options['preset']}` (trial 0): {percent(first.valid_value)} %"
        if is_default and first.valid_value
        else ""
    )
    summary = (
        f"Best validation {metric} {percent(best.valid_value)} % (trial {best.number}, epoch "
        f"{best.best_epoch}){default_value}. The best of many trials is too optimistic: only test targets, "
        "which this search has not read, show what the settings are worth."
    )
    settings = [
        [
            name,
            str(values),
            format_value(task.defaults[name]),
            format_value(best.params[name]),
            percent(importances.get(name)),
        ]
        for name, values in sorted(task.space.items(), key=lambda pair: -importances.get(pair[0], 0.0))
    ]
    validated = [trial for trial in trials if trial.valid_value is not None]
    rows = [
        [
            str(trial.number),
            trial.state,
            percent(trial.valid_value),
            f"{trial.best_epoch} of {trial.epochs}",
            *(format_value(value) for value in trial.params.values()),
        ]
        for trial in sorted(validated, key=lambda trial: -(trial.valid_value or 0.0))[:NUM_BEST_TRIALS]
    ]
    header = ["setting", "searched", "default", "best", "importance (%)"]
    return "\n".join(
        [
            f"{summary}\n\n{budget}\n",
            markdown_table(header, settings, text_columns=4),
            markdown_table(["trial", "state", f"{metric} (%)", "epoch", *task.space], rows, text_columns=2),
            *(f"Failed: {trial.error}\n" for trial in trials if trial.error),
        ]
    )


def _best_yaml(task: TuningTask, best: TrialResult) -> str:
    """Return the best settings in the format of `hafvt train --config`."""
    training = {
        name: best.params.get(name, task.defaults[name]) for name in TRAINING_OPTIONS if name in task.defaults
    }
    searched = {name: value for name, value in best.params.items() if name not in TRAINING_OPTIONS}
    options = {name: value for name, value in task.options.items() if name not in ("data", "seed")}
    params = json.loads(json.dumps({**task.params, **searched}))
    settings = {"model": task.model, **options, **training, "params": params}
    return (
        f"# validation {options['metric']} {best.valid_value:.4%}, trial {best.number} of hafvt tune\n"
        f"# hafvt train --config THIS --data ... --out ...\n{yaml.safe_dump(settings, sort_keys=False)}"
    )


def _trials_csv(task: TuningTask, trials: Sequence[TrialResult]) -> str:
    """Return one line per trial; lists as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    key = validation_key(task.options["metric"])
    writer.writerow(["trial", "state", key, "best_epoch", "epochs", "seconds", *task.space])
    for trial in trials:
        row = [trial.number, trial.state, trial.valid_value, trial.best_epoch, trial.epochs, trial.seconds]
        writer.writerow([*row, *(storable(trial.params.get(name)) for name in task.space)])
    return text.getvalue()
