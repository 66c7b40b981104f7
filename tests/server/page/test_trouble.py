"""Hostile titles, missing pictures, failures, late answers, keys."""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

from playwright.sync_api import Route, expect

from hafvt.server.app import ServerSettings
from hafvt.server.manager import ModelSource
from tests.server.page.visitor import (
    MARKUP,
    ODD_ID,
    cards,
    choose_domain,
    first_user,
    names,
    overflow,
    serving,
    tiles,
)


def test_a_model_that_is_being_loaded_is_waited_for(visitor):
    visitor.expected += "|/model 503"
    said = [{"status": 503, "json": {"error": "the model is being loaded: try again soon"}}] * 2

    def answer(route: Route) -> None:
        if said:
            route.fulfill(**said.pop())
        else:
            route.continue_()

    page = visitor.open(prepare=lambda page: page.route("**/model", answer))
    expect(page.locator("#model")).to_have_text("The model is being loaded.")
    expect(cards(page)).to_have_count(10)


def test_hostile_titles_and_ids_are_text(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    shown = names(cards(page))
    assert MARKUP in shown
    assert page.locator("script:not([src])").count() == 0
    assert page.locator("img[src*='/x']").count() == 0
    assert overflow(page) <= 0
    page.get_by_role("searchbox", name="Search titles").fill("img onerror")
    expect(page.locator("#results .main")).to_have_count(1)
    page.locator("#results .main").click()
    page.get_by_role("searchbox", name="Search titles").fill("2e")
    expect(page.locator(f"#results .main[data-id={json.dumps(ODD_ID, ensure_ascii=False)}]")).to_have_count(1)
    page.locator("#results .main").click()
    expect(page.locator("#next-about")).to_have_text("The 10 best of garments after 2 items.")
    picture = tiles(page).nth(1).locator("img")
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 0
    page.reload()
    expect(tiles(page)).to_have_count(2)
    assert names(tiles(page))[0] == MARKUP


def test_unknown_ids_are_shown_and_skipped(visitor):
    visitor.expected += "|/items/.* 404"
    _, history = first_user(visitor)
    odd = ["<b>nothing</b>", "..", "x" * 200]
    page = visitor.open(f"#{urlencode({'item': [history[0], *odd]}, doseq=True)}")
    expect(page.locator("#next-about")).to_have_text(re.compile("after 1 item. 3 ids not in the catalog"))
    expect(page.locator(".tile.unknown")).to_have_count(3)
    assert names(tiles(page))[1] == "item <b>nothing</b>"


def test_a_missing_picture_is_a_placeholder(visitor):
    page = visitor.open()
    card = cards(page).filter(has_text="Bare shoulders")
    expect(card.locator(".blank")).to_have_text("BS")
    assert card.locator("img").count() == 0
    page.route("**/pictures/**", lambda route: route.abort())
    visitor.expected += "|/pictures/.* ERR_FAILED"
    page.reload()
    expect(page.locator("#cards .blank")).to_have_count(10)


def test_a_failure_is_one_line_with_a_way_to_try_again(visitor):
    visitor.expected += "|/recommend (503|ERR_FAILED)"
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    for fails, said in (
        (
            lambda route: route.fulfill(status=503, json={"error": "<b>the model</b> is being loaded"}),
            "<b>the",
        ),
        (lambda route: route.abort(), "The server does not answer."),
    ):
        page.route("**/recommend", fails)
        page.get_by_label("Show").select_option("5")
        expect(page.locator("#next .problem")).to_contain_text(said, ignore_case=True)
        page.unroute("**/recommend")
        page.locator("#next").get_by_role("button", name="Try again").click()
        expect(cards(page)).to_have_count(5)
        page.get_by_label("Show").select_option("10")
        expect(cards(page)).to_have_count(10)


def test_an_answer_that_comes_too_late_is_dropped(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    held: list[Route] = []

    def hold_garments(route: Route) -> None:
        if route.request.post_data_json["domain"] == "garments":
            held.append(route)
        else:
            route.continue_()

    page.route("**/recommend", hold_garments)
    choose_domain(page, "#domains", "homeware")
    expect(page.locator("#next-about")).to_contain_text("homeware")
    choose_domain(page, "#domains", "garments")
    expect(page.locator("#cards")).to_have_attribute("aria-busy", "true")
    choose_domain(page, "#domains", "homeware")
    expect(page.locator("#cards")).to_have_attribute("aria-busy", "false")
    wanted = names(cards(page))
    held[0].fulfill(json={"items": [], "ranked_by": "model", "unknown_ids": []})
    page.wait_for_timeout(100)
    assert names(cards(page)) == wanted
    expect(page.locator("#next-about")).to_contain_text("homeware")


def test_a_key_is_asked_for_and_kept_in_the_tab(visitor, source):
    visitor.expected += "|/(model|items).* 401"
    with serving(source, ServerSettings(api_key="sesame")) as address:
        page = visitor.open(address=address)
        for given in ("wrong", "sesame"):
            expect(page.get_by_role("dialog")).to_be_visible()
            page.get_by_label("API key").fill(given)
            page.get_by_role("button", name="Go on").click()
        expect(cards(page)).to_have_count(10)
        expect(page.locator("#cards canvas").first).to_be_visible()  # pictures come with the key too
        page.reload()
        expect(cards(page)).to_have_count(10)
        assert page.evaluate("localStorage.length") == 0
        page.context.close()


def test_a_model_that_cannot_explain_itself_says_so(visitor, sasrec_run):
    visitor.expected += "|/pictures/.* 404"  # the files that this data set names are not there
    with serving(ModelSource(sasrec_run)) as address:
        page = visitor.open("#item=i3&item=i41&in=d1", address)
        expect(page.locator("#next-about")).to_have_text("The 10 best of d1 after 2 items.")
        expect(page.locator("#why .story")).to_have_text("This model cannot say where its scores come from.")
        expect(page.locator("#why .share, #cards .bar, #threads .thread")).to_have_count(0)
        page.context.close()
