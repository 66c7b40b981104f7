"""`hafvt backtest`: train and evaluate models at several dates, each time without anything of the future."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hafvt.data.cut_times import TimeScale
from hafvt.data.dataset import Dataset
from hafvt.data.repeats import CandidateRule
from hafvt.data.table_options import TimeZone
from hafvt.data.windows import Window, WindowPart, known_part, plan_windows, write_window
from hafvt.errors import ArgumentError, HafvtError, warn
from hafvt.evaluation.protocols import get_protocol
from hafvt.experiments.backtest_report import Backtest, WindowResult, write_backtest
from hafvt.experiments.compare import BudgetName, model_notes
from hafvt.experiments.comparison_report import write_comparison
from hafvt.experiments.comparison_runner import BUDGETS, ComparedModel, run_comparison
from hafvt.experiments.fit import prepare_once
from hafvt.experiments.training_pool import save_or_check_settings
from hafvt.features.window_tables import copy_feature_tables
from hafvt.files import explained_write_errors
from hafvt.folders import folder_lock
from hafvt.models import configure
from hafvt.progress import report
from hafvt.settings import Jobs, OutFolder, PositiveCount, check_arguments
from hafvt.training.run import fingerprint

FILTERS = ("last", "min_per_domain", "min_per_item")
"""Settings of `prepare` that look at all interactions, later ones included."""


@check_arguments
def backtest(
    data: str | Path | Any,
    models: list[str],
    *,
    out: OutFolder,
    from_: str,
    every: str = "30d",
    windows: PositiveCount | None = None,
    items: str | Path | Any | None = None,
    budget: BudgetName = "full",
    protocol: str = "full",
    candidates: CandidateRule = "auto",
    time_zone: TimeZone = "UTC",
    jobs: Jobs | None = None,
) -> Backtest:
    """Train and evaluate models at several dates, as they would have been in operation.

    At each date, the interactions of the period that begins there are the test targets, those of the period
    before it are the validation targets, and all earlier ones are for training. Later interactions, users and
    items are unknown. At each date, validation also selects each model's learning rate. The models are those
    of compare, with its budgets; each date has a comparison of its own in the folder `windows`. Writes
    backtest.md and backtest.json with all dates, and the figure backtest.svg. To resume, repeat the command.

    Example: hafvt backtest data/movies popularity sasrec --out backtest/movies --from 2000-10-01 --every 30d
    --windows 4

    Args:
        data: a dataset folder; or a table of interactions, which is prepared with default settings into
            `out`/data.
        models: names of the models, see train.
        out: folder to write to.
        from_: the first date, where the first test period begins, such as 2025-06-01; or, if the times are no
            dates, a number.
        every: length of a period and time between two dates: hours (12h), days (30d), weeks (2w), months
            (1mo) or years (1y); or, if the times are no dates, a number.
        windows: number of dates; default: all whose test period ends before the last interaction.
        items: the table of items, if `data` is a table of interactions.
        budget: small or full, see compare.
        protocol: full, c2dsr or sampled-unseen, see evaluate.
        candidates: items that targets are ranked among, see evaluate.
        time_zone: zone of a date that names none, such as Europe/Berlin.
        jobs: number of parallel trainings; default: one per processor.

    Raises:
        HafvtError: a setting is wrong, a window has no targets, a model does not support the dataset, `out`
            holds something else, or a training failed; finished trainings are kept.
    """
    ranking, folder = get_protocol(protocol, candidates), Path(out)
    if not models or len(set(models)) < len(models):
        raise ArgumentError(f"--models {' '.join(models)}: name each model once")
    for name in models:
        configure(name, "default", None)  # reports a wrong name before any work
    is_table = not isinstance(data, Dataset | str | Path) or (
        not isinstance(data, Dataset) and Path(data).is_file()
    )
    if items is not None and not is_table:
        raise ArgumentError(
            "--items: a dataset has its items: leave them out, or name a table of interactions"
        )
    dataset = None if is_table else data if isinstance(data, Dataset) else Dataset.open(data)
    plan = partial(_plan, from_=from_, every=every, count=windows, time_zone=time_zone)
    planned = None if dataset is None else plan(dataset)  # reports wrong dates before a folder is made
    settings = {"content": "backtest", "budget": asdict(BUDGETS[budget]), "protocol": protocol}
    with folder_lock(folder), explained_write_errors(folder):
        save_or_check_settings(folder, settings | {"candidates": candidates}, "a back-test")
        if dataset is None:
            dataset = prepare_once(data, items, folder, remedy="choose another folder", split="time")
        scale, parts = planned or plan(dataset)
        warn_of_filters(dataset)
        results = []
        for number, (window, part) in enumerate(parts, 1):
            date, until = scale.format(window.test_from), scale.format(window.until)
            report(
                f"window {number} of {len(parts)}: {date} until {until}, "
                f"{part.split.train_lengths.sum():,} training interactions, {len(part.split.test):,} test "
                "targets"
            )
            window_folder = folder / "windows" / date.replace(":", "")
            data_then = open_window(dataset, window_folder / "data", window, part)
            compared = [ComparedModel(name, name) for name in models]
            notes = [f"{one.label}: {note}" for one in compared for note in model_notes(data_then, one)]
            comparison = window_folder / "comparison"
            model_results = run_comparison(data_then, comparison, compared, BUDGETS[budget], ranking, jobs)
            write_comparison(data_then, comparison, model_results, BUDGETS[budget], ranking, notes)
            results.append(WindowResult.of(scale, window, part, model_results))
        return write_backtest(folder, results, every, BUDGETS[budget], ranking.describe(data_then))


def _plan(
    data: Dataset, from_: str, every: str, count: int | None, time_zone: str
) -> tuple[TimeScale, list[tuple[Window, WindowPart]]]:
    """Return the unit of the times, and the windows with what is known in each.

    Raises:
        HafvtError: a date or period is wrong, or a window lacks training interactions or targets.
    """
    scale = TimeScale.of(np.asarray(data.times))
    windows = plan_windows(scale, scale.parse("--from", from_, None, time_zone), every, count)
    return scale, [(window, known_part(data, scale, window)) for window in windows]


def open_window(data: Dataset, folder: Path, window: Window, part: WindowPart) -> Dataset:
    """Return the dataset of a window, which an earlier call may have written.

    Raises:
        HafvtError: the folder has the window of another dataset, or other dates.
    """
    if not (folder / "manifest.json").exists():
        write_window(data, folder, window, part, {"window_of": fingerprint(data)})
    opened = Dataset.open(folder)
    expected = [window.valid_from, window.test_from, window.until]
    if opened.manifest.get("window") != expected or opened.manifest.get("window_of") != fingerprint(data):
        raise HafvtError(
            f"{folder} is of a back-test of another dataset, or with another --every: choose another folder"
        )
    copy_feature_tables(data, opened, part.has_item)
    return opened


def warn_of_filters(data: Dataset) -> None:
    """Warn of filters of `prepare` that looked at interactions after the windows."""
    settings = data.manifest.get("settings", {})
    if used := [name for name in FILTERS if settings.get(name)]:
        options = " and ".join(f"--{name.replace('_', '-')} {settings[name]}" for name in used)
        warn(
            f"{data.folder} was prepared with {options}, which selects by all interactions, also later ones: "
            "prepare it without"
        )
