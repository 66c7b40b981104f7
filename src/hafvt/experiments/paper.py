"""`hafvt paper`: the paper's tables from the data at hand."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hafvt.data.dataset import Dataset
from hafvt.data.sources.c2dsr import prepare_c2dsr
from hafvt.data.sources.checks import Check, checks_table, scenario_of, table1_checks
from hafvt.errors import HafvtError


@dataclass(frozen=True)
class Table1:
    """The paper's Table 1 beside what the data gives."""

    checks: tuple[Check, ...]
    scenario: str

    def __str__(self) -> str:
        """The table."""
        head = f"Table 1, {self.scenario}: the paper's figures beside those of the data at hand"
        return f"{head}\n{checks_table(self.checks)}"


def paper(table: Literal["table1"], *, data: str | Path) -> Table1:
    """Prints a table of the paper beside what the data at hand gives.

    Example: hafvt paper table1 --data ../shared/data/c2dsr-food-kitchen

    Args:
        table: table1 (the statistics of the scenarios).
        data: a dataset folder, or a release of C2DSR's files.
    """
    if table != "table1":
        raise HafvtError(f"no table {table!r}: choose table1")
    folder = Path(data)
    if (folder / "manifest.json").exists():
        dataset = Dataset.open(folder)
        return Table1(tuple(table1_checks(dataset)), _scenario(dataset))
    with tempfile.TemporaryDirectory() as temporary:
        dataset = prepare_c2dsr(folder, Path(temporary) / "data").dataset
        return Table1(tuple(table1_checks(dataset)), _scenario(dataset))


def _scenario(data: Dataset) -> str:
    known = scenario_of(data)
    return "-".join(name.title() for name in known.domains) if known else "no scenario of the paper"
