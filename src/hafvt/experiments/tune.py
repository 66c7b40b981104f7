"""`hafvt tune`: a search for the settings of a model, on validation data alone."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError, missing_package
from hafvt.evaluation.protocols import get_protocol
from hafvt.experiments.search_space import TRAINING, as_it_stands, plain, read_space, shown
from hafvt.experiments.training_pool import TrainingPool, keep_settings
from hafvt.files import atomic_file
from hafvt.progress import progress
from hafvt.reports.comparison import bars_svg
from hafvt.tables import markdown_table, percent
from hafvt.training.run import feature_hashes, fingerprint

if TYPE_CHECKING:
    from hafvt.experiments.tuner import Search

SHOWN = 10  # best trials in the table
STATES = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "unfinished"}


@dataclass(frozen=True)
class Trial:
    """A training of a search.

    Attributes:
        number: from 0; its folder is trials/ with the number in four digits.
        state: finished, stopped early, failed or unfinished.
        params: the fields that are searched.
        valid_mrr: the best so far; None before the first validation.
        epoch: of the best.
        epochs: trained and validated.
        seconds: of training.
        problem: why it failed.
    """

    number: int
    state: str
    params: dict[str, Any]
    valid_mrr: float | None
    epoch: int
    epochs: int
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Tuning:
    """What a search found; as text, its tables.

    Attributes:
        folder: best.yaml, trials.csv, report.md, importance.svg, and trials/ with a run for each.
        best: the best trial that was trained to the end.
        trials: all of them, by number.
        importances: by field, the share of what tells good trials from the others, largest first.
        text: the tables.
    """

    folder: Path
    best: Trial
    trials: tuple[Trial, ...]
    importances: dict[str, float]
    text: str

    def __str__(self) -> str:
        """The tables, and where everything is."""
        return f"{self.text}\nwrote {self.folder / 'best.yaml'}, trials.csv, report.md and importance.svg"


def tune(
    model: str,
    data: str | Path | Dataset,
    out: str | Path,
    *,
    preset: str = "default",
    params: dict[str, Any] | None = None,
    space: dict[str, Any] | None = None,
    trials: int = 30,
    epochs: int = 20,
    validate_every: int | None = None,
    protocol: str = "full",
    seed: int = 0,
    jobs: int | None = None,
    minutes: float | None = None,
) -> Tuning:
    """Searches for the settings of the best validation MRR; the test targets are never looked at.

    The first trial is the configuration as it stands; a sampler of Optuna (TPE) draws the others' settings,
    and one that falls behind the median of the others at the same epoch is stopped early. Several calls on
    one folder work side by side; one that was stopped or killed goes on where it was when called again. With
    one job, the same seed tries the same settings.

    Example: hafvt tune sasrec --data data/movies --out tune/sasrec --trials 30 --space.dropout "[0.1, 0.5]"

    Args:
        model: hafvt, gru4rec, sasrec, srgnn, pinet, psjnet, mifn, tricdr or c2dsr.
        data: a dataset folder, made by prepare and encode.
        out: folder of best.yaml (for train --config), report.md, trials.csv, importance.svg and the trials.
        preset: a named configuration of the model to start from.
        params: hyperparameters that are fixed, by name (--params.width 64).
        space: what is searched beside or in place of the usual (--space.temperature "[0.05, 0.5, log]").
        trials: how many, in all calls together.
        epochs: of a trial, at most.
        validate_every: epochs between two validations; default: as in train.
        protocol: how validation ranks its targets: full, c2dsr or sampled-unseen, see evaluate.
        seed: of the draws and of every training.
        jobs: trainings side by side in this call; default: one for each processor.
        minutes: stop after so long; called again, it goes on. Default: when all trials are done.

    Raises:
        HafvtError: a wrong setting, a folder of another search, or no training that succeeded.
    """
    try:
        from hafvt.experiments.tuner import Search
    except ModuleNotFoundError as error:
        raise missing_package("tune", str(error.name)) from None
    get_protocol(protocol)  # refuses an unknown name
    for name, number in (("trials", trials), ("epochs", epochs), ("minutes", minutes)):
        if number is not None and not number > 0:
            raise HafvtError(f"--{name} {number}: give a number above 0")
    data = data if isinstance(data, Dataset) else Dataset.open(data)
    out, params, began = Path(out), params or {}, time.monotonic()
    searched = read_space(model, preset, params, space or {})
    trainings = TrainingPool((os.cpu_count() or 1) if jobs is None else jobs)
    options: dict[str, Any] = {"preset": preset, "protocol": protocol, "epochs": epochs}
    options |= {"seed": seed} | ({} if validate_every is None else {"validate_every": validate_every})
    encoded = tuple(path.parent.name for path in sorted(data.folder.glob("features/*/rows.npy")))
    settings = {
        "model": model,
        "dataset": fingerprint(data),
        "features": feature_hashes(data, encoded),
        "params": params,
        "space": {name: asdict(one) for name, one in searched.items()},
        "validate_every": None,
        **options,
    }
    keep_settings(out, settings, "a search")
    start = as_it_stands(model, preset, params)
    search = Search(out, model, {"data": data.folder, **options}, params, searched, start, seed, trainings)
    _search(search, trials, None if minutes is None else began + 60 * minutes)
    found = _write(search)
    if found is None:
        raise HafvtError(f"no trial has ended within {minutes:g} minutes: call again, it goes on")
    return found


def _search(search: Search, trials: int, until: float | None) -> None:
    """Runs a search under a progress bar; the files in its folder follow every trial that ends."""
    lock, epochs = threading.Lock(), search.options["epochs"]

    def done() -> tuple[int, int]:  # in epochs, as trials differ too much in length to tell the time left
        counts = [epochs if t.state.is_finished() else t.last_step or 0 for t in search.trials()]
        return sum(counts), sum(t.state.is_finished() for t in search.trials())

    before, ended = done()
    with progress(
        f"tune {search.model}", max(trials * epochs, before), "epochs", done=before, every_s=60.0
    ) as advance:

        def changed(note: str) -> None:
            nonlocal before, ended
            with lock:
                (now, finished), was = done(), (before, ended)
                before, ended = now, finished
                advance(now - was[0], note + search.best())
                if finished > was[1]:
                    _write(search)

        search.run(trials, changed, until)


def _write(search: Search) -> Tuning | None:
    """Writes and returns what a search has found so far; None before a trial has ended well."""
    trials = tuple(_trial(search, frozen) for frozen in search.trials())
    ended = [trial for trial in trials if trial.state == "finished"]
    if not ended:
        return None
    best = max(ended, key=lambda trial: trial.valid_mrr or 0.0)
    importances = search.importances()
    text = _text(search, trials, best, importances)
    with atomic_file(search.out / "best.yaml") as path:
        path.write_text(_best_yaml(search, best), encoding="utf-8")
    with atomic_file(search.out / "trials.csv") as path:
        path.write_text(_csv(search, trials), encoding="utf-8")
    with atomic_file(search.out / "importance.svg") as path:
        bars = [(name, 100 * share, None, None) for name, share in importances.items()]
        path.write_text(bars_svg("What tells good settings from others (%)", bars), encoding="utf-8")
    with atomic_file(search.out / "report.md") as path:
        figure = "\n![what tells good settings from others](importance.svg)\n" if importances else ""
        path.write_text(f"# Settings of `{search.model}`\n\n{text}{figure}", encoding="utf-8")
    return Tuning(search.out, best, trials, importances, text)


def _trial(search: Search, frozen: Any) -> Trial:
    values = frozen.intermediate_values
    best = max(values, key=values.__getitem__) if values else 0
    return Trial(
        frozen.number,
        STATES[frozen.state.name],
        {name: one.suggest(frozen, name) for name, one in search.space.items() if name in frozen.params},
        values.get(best),
        best,
        max(values, default=0),
        frozen.user_attrs.get("seconds", 0.0),
        frozen.user_attrs.get("problem", ""),
    )


def _text(search: Search, trials: Sequence[Trial], best: Trial, importances: Mapping[str, float]) -> str:
    """Returns the budget, what was searched and what mattered, and the best trials."""
    options, counts = search.options, [trial.state for trial in trials]
    several = ", ".join(f"{counts.count(s)} {s}" for s in STATES.values() if counts.count(s))
    hours = sum(trial.seconds for trial in trials) / 3600
    first = trials[0]
    stands = first.valid_mrr if first.params == {n: search.start[n] for n in first.params} else None
    said = (
        f"Best validation MRR {percent(best.valid_mrr)} % (trial {best.number}, epoch {best.epoch})"
        + (f"; preset `{options['preset']}` as it stands (trial 0): {percent(stands)} %" * bool(stands))
        + ". The best of many is flattered by chance: what it is worth is for the test targets to say, which "
        "this search has not looked at."
    )
    budget = (
        f"Budget: {len(trials)} trials of at most {options['epochs']} epochs ({several}); "
        f"{sum(trial.epochs for trial in trials):,} epochs, {hours:.2f} hours of training in all. "
        f"Targets ranked by protocol {options['protocol']}, seed {search.seed}"
        + "".join(f", {name} fixed at {shown(value)}" for name, value in search.params.items())
        + "."
    )
    fields = [
        [
            name,
            str(one),
            shown(search.start[name]),
            shown(best.params[name]),
            percent(importances.get(name)),
        ]
        for name, one in sorted(search.space.items(), key=lambda pair: -importances.get(pair[0], 0.0))
    ]
    header = ["field", "searched", "as it stands", "best", "importance (%)"]
    told = sorted((t for t in trials if t.valid_mrr is not None), key=lambda t: -(t.valid_mrr or 0.0))
    rows = [
        [
            str(t.number),
            t.state,
            percent(t.valid_mrr),
            f"{t.epoch} of {t.epochs}",
            *map(shown, t.params.values()),
        ]
        for t in told[:SHOWN]
    ]
    return "\n".join(
        [
            f"{said}\n\n{budget}\n",
            markdown_table(header, fields, text_columns=4),
            markdown_table(["trial", "", "MRR (%)", "epoch", *search.space], rows, text_columns=2),
            *(f"Failed: {trial.problem}\n" for trial in trials if trial.problem),
        ]
    )


def _best_yaml(search: Search, best: Trial) -> str:
    """Returns the best settings as `hafvt train --config` reads them."""
    training = {name: best.params.get(name, search.start[name]) for name in TRAINING}
    chosen = {name: value for name, value in best.params.items() if name not in TRAINING}
    options = {name: value for name, value in search.options.items() if name not in ("data", "seed")}
    params = {**search.params, **chosen}
    settings = {"model": search.model, **options, **training, "params": json.loads(json.dumps(params))}
    return (
        f"# validation MRR {best.valid_mrr:.4%}, trial {best.number} of hafvt tune\n"
        f"# hafvt train --config THIS --data ... --out ...\n{yaml.safe_dump(settings, sort_keys=False)}"
    )


def _csv(search: Search, trials: Sequence[Trial]) -> str:
    """Returns a line per trial; lists as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "valid_mrr", "best_epoch", "epochs", "seconds", *search.space])
    for t in trials:
        values = [plain(t.params.get(name)) for name in search.space]
        writer.writerow([t.number, t.state, t.valid_mrr, t.epoch, t.epochs, t.seconds, *values])
    return text.getvalue()
