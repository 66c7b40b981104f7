"""A fixture for the tests of HAF-VT."""

from __future__ import annotations

import pytest


@pytest.fixture
def few_directions(monkeypatch):
    """Reduces frozen vectors as large catalogs do: they are 12 and 8 wide here."""
    for module in ("item_embeddings", "hafvt"):
        monkeypatch.setattr(f"hafvt.models.{module}.CONTENT_WIDTH", 6)
