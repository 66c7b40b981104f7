"""The page: what was chosen next, several lists, columns of items, and ways out of the page."""

from __future__ import annotations

import csv
import json
import shlex
from io import StringIO
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from hafvt.server.manager import ModelSource
from tests.server.page.visitor import (
    cards,
    choose_domain,
    first_user,
    names,
    press_in_menu,
    send,
    serving,
    tiles,
)

pytestmark = pytest.mark.browser


def open_options(page: Page) -> None:
    page.get_by_role("button", name="Options").click()
    expect(page.locator("#options")).to_be_visible()


def test_look_back_shows_what_was_chosen_next_and_its_rank(visitor):
    user_id, history = first_user(visitor)
    page = visitor.open(f"#user={user_id}")
    expect(tiles(page)).to_have_count(len(history))
    targets = send(visitor, f"/users/{user_id}")["targets"]
    assert targets
    for index, target in enumerate(targets):
        page.locator("#target").select_option(str(index))
        expect(tiles(page)).to_have_count(target["num_before"])
        item_id, domain = target["item"]["item_id"], target["item"]["domain"]
        body = {"history": history[: target["num_before"]], "domain": domain, "rank_of": item_id}
        rank = send(visitor, "/recommend", body | {"time": target["time"]})["rank"]
        note = page.locator("#recommendations-note")
        expect(note).to_contain_text(f"here at rank {rank:g} of 40 items")
        page.get_by_label("Show").select_option("50")
        expect(page.locator(".card.hit")).to_have_count(1)
        expect(page.locator(".card.hit .rank")).to_have_text(f"{rank:g} Chosen next")
        page.reload()
        expect(note).to_contain_text(f"here at rank {rank:g} of 40 items")
    page.locator("#target").select_option("")
    expect(tiles(page)).to_have_count(len(history))


def test_models_stand_side_by_side(visitor, served_run, sasrec_run):
    visitor.expected += "|/pictures/.* 404"
    sources = [ModelSource(served_run), ModelSource(sasrec_run)]
    with serving(*sources) as address:
        page = visitor.open("#item=i3&item=i41&domain=d1", address)
        expect(cards(page)).to_have_count(10)
        expect(page.locator("#model")).to_contain_text("ranked by hafvt, sasrec")
        page.get_by_role("checkbox", name="sasrec").check()
        expect(page.locator(".list")).to_have_count(2)
        lists = {name: page.get_by_role("region", name=name, exact=True) for name in ("hafvt", "sasrec")}
        body = {"history": ["i3", "i41"], "domain": "d1"}
        for name, region in lists.items():
            answer = page.request.post(f"{address}/recommend?model={name}", data=body).json()
            assert answer["model"] == name
            expect(region.locator(".card:not(.ghost)")).to_have_count(10)
            shown = region.locator(".card .name").all_inner_texts()
            assert shown == [item["title"] or f"item {item['item_id']}" for item in answer["items"]]
        left, right = (region.bounding_box() for region in lists.values())
        assert left["y"] == right["y"]
        assert left["x"] < right["x"]
        lists["sasrec"].locator(".card .main").nth(1).click()
        expect(page.locator("#explanation .summary")).to_have_text("This model cannot explain its scores.")
        page.get_by_role("checkbox", name="hafvt").uncheck()
        expect(page.locator(".list")).to_have_count(1)
        page.get_by_role("checkbox", name="sasrec").click()  # one model remains
        expect(page.get_by_role("checkbox", name="sasrec")).to_be_checked()
        page.reload()
        expect(page.locator("#explanation .summary")).to_have_text("This model cannot explain its scores.")
        page.context.close()


def test_all_domains_are_shown_at_once(visitor):
    _, history = first_user(visitor)
    page = visitor.open(f"#{urlencode({'item': history[:3]}, doseq=True)}")
    choose_domain(page, "#domains", "All")
    expect(page.locator(".list")).to_have_count(2)
    for name in ("garments", "homeware"):
        region = page.get_by_role("region", name=name, exact=True)
        expect(region.locator(".card:not(.ghost)")).to_have_count(10)
    page.keyboard.press("Control+z")
    expect(page.locator(".list")).to_have_count(1)


def test_hidden_items_and_items_of_the_history(visitor):
    _, history = first_user(visitor)
    page = visitor.open(f"#{urlencode({'item': history, 'k': 50}, doseq=True)}")
    expect(page.locator("#recommendations-note")).to_contain_text("best of garments")
    hidden, num_cards = names(cards(page))[2], cards(page).count()
    press_in_menu(page, cards(page).nth(2), "Not this one", ".actions")
    expect(page.locator("#recommendations-note")).to_contain_text("1 item hidden by you.")
    assert hidden not in names(cards(page))
    page.reload()
    expect(page.locator("#recommendations-note")).to_contain_text("1 item hidden by you.")
    page.get_by_role("button", name="Show again").click()
    expect(cards(page)).to_have_count(num_cards)
    open_options(page)
    page.get_by_role("checkbox", name="Include items of the history").check()
    expect(cards(page)).to_have_count(40)
    assert "seen=1" in page.url


def test_lists_leave_as_csv_and_as_curl(visitor):
    _, history = first_user(visitor)
    page = visitor.open(
        f"#{urlencode({'item': history[:3]}, doseq=True)}", permissions=["clipboard-read", "clipboard-write"]
    )
    expect(cards(page)).to_have_count(10)
    open_options(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    text = download.value.path().read_text(encoding="utf-8-sig")
    answer = send(visitor, "/recommend", {"history": history[:3], "domain": "garments"})
    rows = list(csv.DictReader(StringIO(text)))
    assert [row["item_id"] for row in rows] == [item["item_id"] for item in answer["items"]]
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 11)]
    assert {row["model"] for row in rows} == {"hafvt"}
    assert all(row["because_of"] for row in rows)
    open_options(page)
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#toast")).to_have_text("Copied")
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[:3] == ["curl", "-s", f"{visitor.address}/recommend"]
    assert send(visitor, "/recommend", json.loads(words[-1]))["items"][0]["item_id"] == rows[0]["item_id"]


def test_columns_of_items_are_on_cards_and_in_explanations(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    item = send(visitor, "/recommend", {"history": [], "domain": "garments"})["items"][5]
    assert set(item["attributes"]) == {"brand", "page"}
    open_options(page)
    page.get_by_role("checkbox", name="brand").check()
    expect(cards(page).nth(5).locator(".facts")).to_have_text(item["attributes"]["brand"])
    page.keyboard.press("Escape")
    cards(page).nth(5).locator(".main").click()
    link = page.locator("#explanation dd a")
    expect(link).to_have_attribute("href", item["attributes"]["page"])
    expect(link).to_have_attribute("rel", "noopener noreferrer")
    page.keyboard.press("Escape")
    cards(page).nth(5).hover()
    cards(page).nth(5).locator(".actions").click()
    expect(page.get_by_role("link", name="Open page")).to_have_attribute("href", item["attributes"]["page"])
