"""`hafvt paper`: reproduce the tables of the HAF-VT paper."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from hafvt.data.dataset import Dataset
from hafvt.data.sources.c2dsr import prepare_c2dsr
from hafvt.data.sources.checks import checks_table, find_scenario, table1_checks
from hafvt.errors import ArgumentError
from hafvt.experiments.compare import BudgetName, ablate, compare
from hafvt.progress import console
from hafvt.settings import Folder, Jobs, OutFolder, check_arguments

TABLE_DOMAINS = {"table2": ("food", "kitchen"), "table3": ("movie", "book"), "table4": ("movie", "book")}


@check_arguments
def paper(
    table: Literal["table1", "table2", "table3", "table4"],
    data: Folder,
    *,
    out: OutFolder | None = None,
    budget: BudgetName = "full",
    jobs: Jobs | None = None,
) -> str:
    """Reproduce a table of the paper, with the published values beside it.

    Tables 2 to 4 prepare the data if needed, then train and evaluate under the protocol c2dsr, as compare
    and ablate do. A repeated call resumes.

    Example: hafvt paper table2 ../shared/data/c2dsr-food-kitchen --out paper/table2

    Args:
        table: table1 (statistics), table2 (Food-Kitchen), table3 (Movie-Book) or table4 (its ablation).
        data: a folder with a release of C2DSR's files, or a dataset folder; table4 needs a dataset folder
            with the features image and title.
        out: folder of runs and tables; table1 needs none.
        budget: small or full, see compare.
        jobs: number of parallel trainings; default: one per processor.

    Raises:
        HafvtError: a setting is wrong, `out` is missing, or what compare raises.
    """
    folder = Path(data)
    is_dataset = (folder / "manifest.json").exists()
    if table == "table1":
        with tempfile.TemporaryDirectory() as temporary:
            prepared = (
                folder if is_dataset else prepare_c2dsr(folder, Path(temporary) / "data").dataset.folder
            )
            return _table1(Dataset.open(prepared))
    if out is None:
        raise ArgumentError(f"{table} needs --out, a folder for its runs")
    if not is_dataset:
        release, folder = folder, Path(out) / "data"
        if not (folder / "manifest.json").exists():
            prepare_c2dsr(release, folder)
    dataset = Dataset.open(folder)
    scenario = find_scenario(dataset)
    if scenario is None or scenario.domains != TABLE_DOMAINS[table]:
        names = "-".join(domain.name for domain in dataset.domains)
        console.print(
            f"{table} is about {'-'.join(TABLE_DOMAINS[table])}, but this dataset about {names}: "
            "the published rows are left out"
        )
    run = ablate if table == "table4" else compare
    return str(run(dataset, Path(out) / "runs", budget=budget, protocol="c2dsr", jobs=jobs))


def _table1(data: Dataset) -> str:
    """Return the published statistics beside those of a dataset, with the reason why they differ."""
    scenario = find_scenario(data)
    name = "-".join(name.title() for name in scenario.domains) if scenario else "no scenario of the paper"
    checks = table1_checks(data)
    train = next(check for check in checks if check.name == "training sequences")
    reason = ""
    if train.verdict == "differs":
        reason = (
            f"\nThis dataset has {train.actual} of the paper's {train.expected} training sequences, as a "
            "release without its complete traindata_new has. The mean length differs for the same reason."
        )
    header = f"Table 1, {name}: the published values beside those of this dataset"
    return f"{header}\n{checks_table(checks)}{reason}"
