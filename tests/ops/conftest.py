"""Fixtures of the tests of softmaxes."""

from __future__ import annotations

import pytest

from hafvt.ops import tiles


@pytest.fixture(params=["products", "attention"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles both ways: as products and as attention, which any processor has."""
    monkeypatch.setattr(tiles, "uses_flash_attention", lambda q, **_: request.param == "attention")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.TILE_SHAPE, "cpu", (64, 100))
    monkeypatch.setattr(tiles, "FLASH_GROUP_ITEMS", 500)
