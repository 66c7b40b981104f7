"""The page: markup in titles, missing pictures, failures, late answers, API keys."""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Route, expect

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

pytestmark = pytest.mark.browser


def test_page_model_being_loaded_is_waited_for(visitor):
    visitor.expected += "|/model 503"
    answers = [{"status": 503, "json": {"error": "the model is being loaded: try again soon"}}] * 2

    def answer(route: Route) -> None:
        if answers:
            route.fulfill(**answers.pop())
        else:
            route.continue_()

    page = visitor.open(prepare=lambda page: page.route("**/model", answer))
    expect(page.locator("#model")).to_have_text("The model is being loaded.")
    expect(cards(page)).to_have_count(10)


def test_page_markup_in_titles_and_ids_is_text(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    card_names = names(cards(page))
    assert MARKUP in card_names
    assert page.locator("script:not([src], [type='application/json'])").count() == 0
    assert page.locator("img[src*='/x']").count() == 0
    assert overflow(page) <= 0
    page.get_by_role("searchbox", name="Search titles").fill("img onerror")
    expect(page.locator("#results .main")).to_have_count(1)
    page.locator("#results .main").click()
    page.get_by_role("searchbox", name="Search titles").fill("2e")
    expect(page.locator(f"#results .main[data-id={json.dumps(ODD_ID, ensure_ascii=False)}]")).to_have_count(1)
    page.locator("#results .main").click()
    expect(page.locator("#recommendations-note")).to_have_text("The 10 best of garments after 2 items.")
    picture = tiles(page).nth(1).locator("img")
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 0
    page.reload()
    expect(tiles(page)).to_have_count(2)
    assert names(tiles(page))[0] == MARKUP


def test_history_unknown_ids_are_shown_and_skipped(visitor):
    _, history = first_user(visitor)
    odd = ["<b>nothing</b>", "..", "x" * 200]
    page = visitor.open(f"#{urlencode({'item': [history[0], *odd]}, doseq=True)}")
    expect(page.locator("#recommendations-note")).to_have_text(
        re.compile("after 1 item. 3 ids not in the catalog")
    )
    expect(page.locator(".tile.unknown")).to_have_count(3)
    assert names(tiles(page))[1] == "item <b>nothing</b>"


def test_item_without_picture_shows_initials(visitor):
    page = visitor.open()
    card = cards(page).filter(has_text="Bare shoulders")
    expect(card.locator(".blank")).to_have_text("BS")
    assert card.locator("img").count() == 0
    page.route("**/pictures/**", lambda route: route.abort())
    visitor.expected += "|/pictures/.* ERR_FAILED"
    page.reload()
    expect(page.locator(".cards .blank")).to_have_count(10)


def test_recommend_failure_shows_error_and_retry(visitor):
    visitor.expected += "|/recommend (503|ERR_FAILED)"
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    for fail, message in (
        (
            lambda route: route.fulfill(status=503, json={"error": "<b>the model</b> is being loaded"}),
            "<b>the",
        ),
        (lambda route: route.abort(), "The server does not answer."),
    ):
        page.route("**/recommend", fail)
        page.get_by_label("Show").select_option("5")
        expect(page.locator("#recommendations .problem")).to_contain_text(message, ignore_case=True)
        page.unroute("**/recommend")
        page.locator("#recommendations").get_by_role("button", name="Try again").click()
        expect(cards(page)).to_have_count(5)
        page.get_by_label("Show").select_option("10")
        expect(cards(page)).to_have_count(10)


def test_recommend_late_answer_is_dropped(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    delayed: list[Route] = []

    def delay_garments(route: Route) -> None:
        if route.request.post_data_json["domain"] == "garments":
            delayed.append(route)
        else:
            route.continue_()

    page.route("**/recommend", delay_garments)
    choose_domain(page, "#domains", "homeware")
    expect(page.locator("#recommendations-note")).to_contain_text("homeware")
    choose_domain(page, "#domains", "garments")
    expect(page.locator(".cards")).to_have_attribute("aria-busy", "true")
    choose_domain(page, "#domains", "homeware")
    expect(page.locator(".cards")).to_have_attribute("aria-busy", "false")
    expected = names(cards(page))
    delayed[0].fulfill(json={"items": [], "ranked_by": "model", "unknown_ids": []})
    page.wait_for_timeout(100)
    assert names(cards(page)) == expected
    expect(page.locator("#recommendations-note")).to_contain_text("homeware")


def test_api_key_is_prompted_for_and_kept_in_the_tab(visitor, source):
    visitor.expected += "|/(model|items).* 401"
    with serving(source, api_key="sesame") as address:
        page = visitor.open(address=address)
        for key in ("wrong", "sesame"):
            expect(page.get_by_role("dialog")).to_be_visible()
            page.get_by_label("API key", exact=True).fill(key)
            page.get_by_role("button", name="Continue").click()
        expect(cards(page)).to_have_count(10)
        expect(page.locator(".cards canvas").first).to_be_visible()  # pictures come with the key too
        page.reload()
        expect(cards(page)).to_have_count(10)
        assert page.evaluate("localStorage.length") == 0
        page.context.close()


def test_page_model_without_explanations_shows_note(visitor, sasrec_run):
    visitor.expected += "|/pictures/.* 404"  # the files that this data set names are not there
    with serving(ModelSource(sasrec_run)) as address:
        page = visitor.open("#item=i3&item=i41&domain=d1", address)
        expect(page.locator("#recommendations-note")).to_have_text("The 10 best of d1 after 2 items.")
        expect(page.locator("#explanation .summary")).to_have_text("This model cannot explain its scores.")
        expect(page.locator("#explanation .share, .cards .bar, #threads .thread")).to_have_count(0)
        page.context.close()
