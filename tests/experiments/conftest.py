"""One comparison that several tests read."""

from __future__ import annotations

import pytest

from hafvt.experiments.compare import compare
from hafvt.experiments.comparison_runner import BUDGETS, Budget
from tests.conftest import write_small

QUICK_BUDGET = Budget(
    epochs=2,
    learning_rates=(1e-3, 1e-2),
    search_epochs=1,
    num_seeds=2,
    max_length=6,
    batch_size=16,
    validate_every=1,
    patience=0,
)


@pytest.fixture(autouse=True)
def quick_budget(monkeypatch):
    """Makes the budget "small" as quick as possible."""
    monkeypatch.setitem(BUDGETS, "small", QUICK_BUDGET)


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """The dataset, the folder and the result of a comparison of GRU4Rec and popularity."""
    root = tmp_path_factory.mktemp("compared")
    data = write_small(root / "data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(BUDGETS, "small", QUICK_BUDGET)
        comparison = compare(
            data.folder, root / "out", models=["gru4rec", "popularity"], budget="small", jobs=2
        )
    return data, root / "out", comparison
