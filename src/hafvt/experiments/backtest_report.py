"""Write the results of a back-test: backtest.md, backtest.json and backtest.svg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from hafvt.data.cut_times import TimeScale
from hafvt.data.windows import Window, WindowPart
from hafvt.evaluation.results import results_to_json
from hafvt.experiments.comparison_runner import Budget, ModelResult
from hafvt.files import atomic_file, write_json
from hafvt.reports.comparison import lines_svg
from hafvt.tables import ABSENT, markdown_table


@dataclass(frozen=True)
class WindowResult:
    """The results of all models at one date.

    Attributes:
        valid_from: where validation starts, as text.
        test_from: the date, where test starts.
        until: where test ends.
        train_interactions: number of training interactions.
        valid_targets: number of validation targets.
        test_targets: number of test targets.
        model_results: of each model.
    """

    valid_from: str
    test_from: str
    until: str
    train_interactions: int
    valid_targets: int
    test_targets: int
    model_results: tuple[ModelResult, ...]

    @classmethod
    def of(
        cls, scale: TimeScale, window: Window, part: WindowPart, model_results: Sequence[ModelResult]
    ) -> Self:
        """Return the results with the dates and sizes of a window."""
        return cls(
            scale.format(window.valid_from),
            scale.format(window.test_from),
            scale.format(window.until),
            int(part.split.train_lengths.sum()),
            len(part.split.valid),
            len(part.split.test),
            tuple(model_results),
        )

    @property
    def domains(self) -> list[str]:
        """The domains with test targets and, of several, "overall"."""
        return list(self.model_results[0].seed_results[0])

    def mrr(self, number: int, domain: str) -> float | None:
        """Return the MRR of a model, mean over its seeds; None where the domain has no targets."""
        result = self.model_results[number]
        return result.mean_and_std(domain, "MRR")[0] if domain in self.domains else None


@dataclass(frozen=True)
class Backtest:
    """The results of a back-test; `str()` returns its tables and the paths of its files.

    Attributes:
        windows: results at each date.
        text: the content of backtest.md.
        folder: folder of backtest.md, backtest.json, backtest.svg and windows/.
    """

    windows: tuple[WindowResult, ...]
    text: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.text}\nwrote {self.folder / 'backtest.md'}, backtest.json and backtest.svg"


def write_backtest(
    out: Path, windows: Sequence[WindowResult], every: str, budget: Budget, candidates: str
) -> Backtest:
    """Write the three files of a back-test and return its results.

    Args:
        out: folder of the files.
        windows: results at each date.
        every: length of a period.
        budget: of each model.
        candidates: what the targets of the last window are ranked among, in words.
    """
    labels = [result.label for result in windows[0].model_results]
    domains = list(dict.fromkeys(domain for window in windows for domain in window.domains))
    domains.sort(key=lambda name: name != "overall")  # the mean of the domains first
    tables = "\n".join(
        f"## {domain}\n\n{_table(windows, labels, domain, with_sizes=domain == domains[0])}"
        for domain in domains
    )
    text = (
        f"# Back-test of {', '.join(labels)}\n\n"
        f"Test MRR in % at {len(windows)} dates; bold: best of a row. At each date, the interactions of the "
        f"following period ({every}) are the test targets and those of the period before it the validation "
        f"targets; models train on all earlier ones, and later ones are unknown. Test targets at the last "
        f"date are ranked among {candidates}.\n\n"
        f"Budget at each date: {budget}.\n\n![MRR over time](backtest.svg)\n\n{tables}"
    )
    values = {
        label: [
            (row, 100 * mrr)
            for row, window in enumerate(windows)
            if (mrr := window.mrr(number, domains[0])) is not None
        ]
        for number, label in enumerate(labels)
    }
    title = f"Test MRR (%), {domains[0]}, {every} from each date"
    figure = lines_svg(title, [window.test_from for window in windows], values)
    with atomic_file(out / "backtest.svg") as temporary:
        temporary.write_text(figure, encoding="utf-8")
    write_json(out / "backtest.json", {"every": every, "windows": [_window_json(w) for w in windows]})
    with atomic_file(out / "backtest.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Backtest(tuple(windows), text, out)


def _table(windows: Sequence[WindowResult], labels: Sequence[str], domain: str, *, with_sizes: bool) -> str:
    """Return the table of a domain: a row for each date, the mean, and at how many dates a model is best.

    With `with_sizes`, it has the numbers of training interactions and test targets of all domains.
    """
    header = ["training interactions", "test targets"] if with_sizes else []
    rows, mrrs = [], []
    for window in windows:
        row = [window.mrr(number, domain) for number in range(len(labels))]
        sizes = [f"{window.train_interactions:,}", f"{window.test_targets:,}"]
        rows.append([f"{window.test_from} until {window.until}", *sizes[: len(header)], *_cells(row)])
        if None not in row:
            mrrs.append([value for value in row if value is not None])
    values = np.array(mrrs).reshape(len(mrrs), len(labels))
    if len(mrrs) > 1:
        rows.append(["mean", *[""] * len(header), *_cells(values.mean(0).tolist())])
        best = (values == values.max(1, keepdims=True)).sum(0)
        rows.append(["best at", *[""] * len(header), *(f"{count} of {len(mrrs)}" for count in best)])
    return markdown_table(["test period", *header, *labels], rows)


def _cells(values: Sequence[float | None]) -> list[str]:
    """Return MRRs in %, the best in bold if there are several."""
    best = max((value for value in values if value is not None), default=None)
    cells = [ABSENT if value is None else f"{100 * value:.2f}" for value in values]
    return [
        f"**{cell}**" if value == best is not None and len(values) > 1 else cell
        for cell, value in zip(cells, values, strict=True)
    ]


def _window_json(window: WindowResult) -> dict[str, object]:
    """Return what backtest.json holds of a date."""
    return {
        "valid_from": window.valid_from,
        "test_from": window.test_from,
        "until": window.until,
        "train_interactions": window.train_interactions,
        "valid_targets": window.valid_targets,
        "test_targets": window.test_targets,
        "models": {
            result.label: {
                "learning_rate": result.learning_rate,
                "best_epochs": result.best_epochs,
                "seconds": result.mean_seconds,
                "results": [results_to_json(seed) for seed in result.seed_results],
                "lists": result.list_results,
            }
            for result in window.model_results
        },
    }
