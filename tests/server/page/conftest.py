"""A browser, and a server of a model whose catalog has odd titles, ids and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import Browser, sync_playwright

import hafvt
from hafvt.data.sources.demo import generate_world
from hafvt.server.manager import ModelSource
from tests.server.page.visitor import LONG, MARKUP, ODD_ID, Visitor, serving

CHROMIUM = Path("/usr/bin/chromium")
SERVICES = ("quic", "background-networking", "component-update", "sync")  # no requests of its own
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", *(f"--disable-{name}" for name in SERVICES)]


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A model of one epoch on a small generated dataset whose four most popular garments are odd."""
    folder = tmp_path_factory.mktemp("page")
    interactions, items = generate_world(folder / "world", users=200, items_per_shop=40)
    log, table = pl.read_csv(interactions), pl.read_csv(items)
    counts = log.join(table, on="item_id").filter(pl.col("domain") == "garments")["item_id"]
    odd, markup, long, bare = counts.value_counts(sort=True)["item_id"].head(4)
    is_ = pl.col("item_id").eq
    title = pl.when(is_(markup)).then(pl.lit(MARKUP)).when(is_(long)).then(pl.lit(LONG))
    table.with_columns(
        pl.col("item_id").replace(odd, ODD_ID),
        title.when(is_(bare)).then(pl.lit("Bare shoulders")).otherwise(pl.col("title")).alias("title"),
        pl.when(is_(bare)).then(None).otherwise(pl.col("image")).alias("image"),
        pl.format("Brand {}", pl.col("item_id").str.slice(-1)).alias("brand"),
        pl.format("https://shop.example/{}", pl.col("item_id")).alias("page"),
    ).write_csv(items)
    log.with_columns(pl.col("item_id").replace(odd, ODD_ID)).write_csv(interactions)
    data = hafvt.prepare(interactions, items, folder / "data", min_per_domain=3)
    hafvt.encode(data, image="classic", title="classic")
    sizes = {"id_width": 8}
    return ModelSource(hafvt.train("hafvt", data, folder / "run", params=sizes, epochs=1).folder)


@pytest.fixture(scope="package")
def address(source: ModelSource) -> Iterator[str]:
    with serving(source) as address:
        yield address


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:  # package scope: its event loop would disturb other tests
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install --no-install-recommends chromium, as root")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser: Browser, address: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, address)
    yield visitor
    for context in browser.contexts:
        for page in context.pages:
            assert page.evaluate("window.hacked") is None
        context.close()
    assert visitor.errors == []
