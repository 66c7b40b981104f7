"""`hafvt paper`: the paper's tables from the data at hand."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hafvt.data.dataset import Dataset
from hafvt.data.sources.c2dsr import prepare_c2dsr
from hafvt.data.sources.checks import checks_table, find_scenario, table1_checks
from hafvt.errors import HafvtError
from hafvt.experiments.compare import ablate, compare
from hafvt.progress import console

SCENARIOS = {"table2": ("food", "kitchen"), "table3": ("movie", "book"), "table4": ("movie", "book")}


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper beside what the data gives, as text."""

    text: str

    def __str__(self) -> str:
        """The table."""
        return self.text


def paper(
    table: Literal["table1", "table2", "table3", "table4"],
    *,
    data: str | Path,
    out: str | Path | None = None,
    budget: Literal["small", "full"] = "full",
    jobs: int | None = None,
) -> PaperTable:
    """Makes a table of the paper from the data at hand, the paper's own figures beside it.

    Tables 2 to 4 prepare a release where it is one, then train and evaluate under the protocol c2dsr, as
    compare and ablate do; started again, they go on where they were.

    Example: hafvt paper table2 --data ../shared/data/c2dsr-food-kitchen --out paper/table2

    Args:
        table: table1 (statistics), table2 (Food-Kitchen), table3 (Movie-Book) or table4 (its ablation).
        data: a dataset folder, or a release of C2DSR's files; table4 needs a dataset with image and title.
        out: folder for runs and tables; table1 needs none.
        budget: small or full, see compare.
        jobs: trainings side by side; default: one for each processor.
    """
    folder = Path(data)
    if table == "table1":
        if (folder / "manifest.json").exists():
            return _table1(Dataset.open(folder))
        with tempfile.TemporaryDirectory() as temporary:
            return _table1(prepare_c2dsr(folder, Path(temporary) / "data").dataset)
    if table not in SCENARIOS:
        raise HafvtError(f"no table {table!r}: choose table1, {', '.join(SCENARIOS)}")
    if out is None:
        raise HafvtError(f"{table} needs --out, a folder for its runs")
    if not (folder / "manifest.json").exists():
        release, folder = folder, Path(out) / "data"
        if not (folder / "manifest.json").exists():
            prepare_c2dsr(release, folder)
    dataset = Dataset.open(folder)
    known = find_scenario(dataset)
    if known is None or known.domains != SCENARIOS[table]:
        wanted, has = "-".join(SCENARIOS[table]), "-".join(d.name for d in dataset.domains)
        console.print(f"{table} is of {wanted}, this data of {has}: the paper's rows are left out")
    work = ablate if table == "table4" else compare
    return PaperTable(str(work(dataset, Path(out) / "runs", budget=budget, protocol="c2dsr", jobs=jobs)))


def _table1(data: Dataset) -> PaperTable:
    known = find_scenario(data)
    name = "-".join(name.title() for name in known.domains) if known else "no scenario of the paper"
    head = f"Table 1, {name}: the paper's figures beside those of the data at hand"
    return PaperTable(f"{head}\n{checks_table(table1_checks(data))}")
