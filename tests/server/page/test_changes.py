"""The page: where the focus is after each action, undo, failures that end, and a model that is replaced."""

from __future__ import annotations

import shutil
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from hafvt.server.manager import ModelSource
from tests.server.page.test_layout import PHONE
from tests.server.page.visitor import cards, choose_domain, first_user, names, press_in_menu, serving, tiles

pytestmark = pytest.mark.browser


def focus(page: Page) -> str:
    """Returns what has the focus: its id, or class and place of its list entry."""
    return page.evaluate(
        """() => {
            const one = document.activeElement, entry = one.closest("li");
            if (!entry) return one.id || one.tagName;
            return `${entry.className.split(" ")[0]} ${[...entry.parentElement.children].indexOf(entry)}`;
        }"""
    )


def test_focus_stays_in_place_after_each_action(visitor):
    _, history = first_user(visitor)
    page = visitor.open(f"#{urlencode({'item': history[:3]}, doseq=True)}")
    expect(cards(page)).to_have_count(10)
    added = names(cards(page))[2]
    cards(page).nth(2).locator(".plus").first.focus()
    page.keyboard.press("Enter")
    expect(tiles(page)).to_have_count(4)
    expect(page.locator("#recommendations-note")).to_contain_text("after 4 items")
    assert added not in names(cards(page))
    assert focus(page) == "card 2"
    cards(page).nth(1).locator(".main").click()
    page.locator("#explanation").get_by_role("button", name="Add to the history").click()
    expect(page.locator("#recommendations-note")).to_contain_text("after 5 items")
    assert focus(page) == "card 1"
    press_in_menu(page, tiles(page).nth(3), "Move later")
    assert focus(page) == "tile 4"
    tiles(page).nth(4).locator(".main").click()
    expect(page.locator("#menu").get_by_role("button", name="Move later")).to_be_disabled()
    page.keyboard.press("Escape")
    assert focus(page) == "tile 4"
    press_in_menu(page, tiles(page).nth(1), "Remove from the history")
    assert focus(page) == "tile 1"
    page.get_by_role("button", name="Clear").click()
    assert focus(page) == "tile 0"
    visitor.expected += "|/recommend 422"
    page.route("**/recommend", lambda route: route.fulfill(status=422, json={"error": "no"}))
    page.get_by_label("Show").select_option("5")
    page.locator("#recommendations").get_by_role("button", name="Try again").click()
    assert focus(page) == "recommendations-title"


def test_phone_sheets_are_dialogs(visitor):
    user_id, history = first_user(visitor)
    page = visitor.open(f"#user={user_id}", **PHONE)
    expect(cards(page)).to_have_count(10)
    cards(page).nth(1).locator(".main").tap()
    dialog = page.get_by_role("dialog", name=names(cards(page))[1])
    expect(dialog).to_be_visible()
    assert focus(page) == "explanation-title"
    page.touchscreen.tap(200, 20)  # outside
    expect(dialog).not_to_be_visible()
    assert focus(page) == "card 1"
    page.get_by_role("button", name="Add items").first.tap()
    finder = page.get_by_role("dialog", name="Start from")
    expect(finder).to_be_visible()
    assert focus(page) == "query"
    page.locator("#results .main[aria-pressed=false]").first.tap()
    finder.get_by_role("button", name="See 10 recommendations").tap()
    expect(finder).not_to_be_visible()
    assert focus(page) == "recommendations-title"
    expect(tiles(page)).to_have_count(len(history) + 1)
    cards(page).first.locator(".main").tap()
    page.locator("#explanation").get_by_role("button", name="Add to the history").tap()
    expect(tiles(page)).to_have_count(len(history) + 2)
    assert focus(page) == "card 0"


def test_every_change_can_be_undone(visitor):
    _, history = first_user(visitor)
    page = visitor.open(f"#{urlencode({'item': history[:3]}, doseq=True)}")
    expect(tiles(page)).to_have_count(3)
    expect(cards(page)).to_have_count(10)
    before = names(tiles(page))
    press_in_menu(page, tiles(page).nth(0), "Move later")
    page.get_by_role("button", name="Clear").click()
    page.locator("#toast").get_by_role("button", name="Undo").click()
    expect(tiles(page)).to_have_count(3)
    assert names(tiles(page)) == [before[1], before[0], before[2]]
    page.keyboard.press("Control+z")
    expect(tiles(page).first).to_contain_text(before[0])
    choose_domain(page, "#domains", "homeware")
    page.go_back()
    expect(page.locator("#domains input:checked")).to_have_value("garments")
    page.keyboard.press("Control+z")  # nothing is left to undo
    expect(tiles(page)).to_have_count(3)


def test_tiles_of_ignored_items_are_marked_and_a_long_link_is_one_request(visitor):
    _, history = first_user(visitor)
    ids = [history[place % len(history)] for place in range(200)]
    requests = []
    page = visitor.open(
        f"#{urlencode({'item': ids}, doseq=True)}",
        prepare=lambda page: page.on("request", lambda request: requests.append(request.url)),
    )
    expect(tiles(page)).to_have_count(200)
    assert sum(url.endswith("/items") for url in requests) == 1
    assert not [url for url in requests if "/items/" in url]
    expect(page.locator(".tile.ignored")).to_have_count(150)
    expect(page.locator("#history-note")).to_contain_text("only the last 50 count")


def test_failed_recommendations_keep_old_cards_and_recover(visitor):
    visitor.expected += "|/recommend (429|503)"
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    before, answers = names(cards(page)), [429, 503]

    def answer(route) -> None:
        if answers:
            headers = {"Retry-After": "1"}
            route.fulfill(status=answers.pop(0), json={"error": "busy"}, headers=headers)
        else:
            route.continue_()

    page.route("**/recommend", answer)
    choose_domain(page, "#domains", "homeware")
    expect(page.locator("#recommendations .problem")).to_be_visible()
    assert names(cards(page)) == before
    expect(page.locator("#recommendations-note")).to_contain_text("homeware")  # by itself
    expect(page.locator("#recommendations .problem")).to_have_count(0)


def test_random_user_failure_is_reported(visitor):
    visitor.expected += "|/users.* 500"
    page = visitor.open()
    page.get_by_role("tab", name="Users").click()
    expect(page.locator("#users .main").first).to_be_visible()
    page.route("**/users?*", lambda route: route.fulfill(status=500, json={"error": "the server failed"}))
    page.get_by_role("button", name="Random user").click()
    expect(page.locator("#user-count")).to_contain_text("The server failed.")


def test_page_notices_a_replaced_model(visitor, source, tmp_path):
    run = shutil.copytree(source.folder, tmp_path / "run")
    with serving(ModelSource(run)) as address:
        page = visitor.open(address=address)
        expect(cards(page)).to_have_count(10)
        version = page.request.get(f"{address}/model").json()["version"]
        (run / "model.json").write_bytes((run / "model.json").read_bytes() + b"\n")
        for _ in range(200):
            if page.request.get(f"{address}/model").json()["version"] != version:
                break
            page.wait_for_timeout(100)
        choose_domain(page, "#domains", "homeware")
        expect(page.locator("#toast")).to_have_text("A newer model answers now.")
        expect(page.locator("#recommendations-note")).to_contain_text("homeware")
        page.context.close()
