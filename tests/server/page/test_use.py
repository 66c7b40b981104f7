"""People put histories together, get recommendations, and see why."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from tests.server.page.visitor import (
    LONG,
    MARKUP,
    by_branch,
    cards,
    choose_domain,
    first_user,
    names,
    send,
    tiles,
    titles,
)


def test_without_a_history_popularity_decides_and_says_so(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    expect(page.locator("#next-about")).to_have_text("No history yet: what is most popular in garments.")
    expect(page.locator("#why .story")).to_contain_text("users chose it")
    asked = {"history": [], "domain": "garments"}
    told = send(visitor, "/recommend", asked)
    assert names(cards(page))[4:] == titles(told)[4:]  # the first four are odd
    expect(tiles(page)).to_have_count(0)


def test_a_history_is_composed_by_searching_and_ranks_anew(visitor):
    page = visitor.open()
    page.get_by_role("searchbox", name="Search titles").fill("bare should")
    found = page.locator("#results .main")
    expect(found).to_have_count(1)
    found.click()
    expect(found).to_have_attribute("aria-pressed", "true")
    assert names(tiles(page)) == ["Bare shoulders"]
    expect(page.locator("#next-about")).to_have_text("The 10 best of garments after 1 item.")
    first = names(cards(page))
    page.get_by_role("searchbox", name="Search titles").fill("")
    choose_domain(page, "#finder-domains", "homeware")
    expect(page.locator("#found")).to_have_text("40 items")
    page.locator("#results .main").nth(2).click()
    page.locator("#results .main").nth(5).click()
    expect(page.locator("#next-about")).to_have_text("The 10 best of garments after 3 items.")
    assert names(cards(page)) != first
    expect(page.locator("#history-about")).to_have_text(re.compile("1 garments.*2 homeware"))
    cards(page).nth(3).hover()
    added = names(cards(page))[3]
    cards(page).nth(3).locator(".plus").click()
    expect(tiles(page)).to_have_count(4)
    assert names(tiles(page))[3] == added
    expect(page.locator("#next-about")).to_have_text("The 10 best of garments after 4 items.")
    assert added not in names(cards(page))
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#next-about")).to_contain_text("No history yet")


def test_nothing_found_is_said(visitor):
    page = visitor.open()
    page.get_by_role("searchbox", name="Search titles").fill("zzzz")
    expect(page.locator("#found")).to_have_text("Nothing found. Try fewer words.")


def test_a_person_is_picked_and_recommended_to_as_the_server_does(visitor):
    page = visitor.open()
    user_id, history = first_user(visitor)
    page.get_by_role("tab", name="People").click()
    page.locator("#people .main").first.click()
    expect(page.locator("#history-title")).to_have_text(f"Person {user_id}")
    expect(tiles(page)).to_have_count(len(history))
    expect(page.locator("#next-about")).to_contain_text(f"after {len(history)} items")
    asked = {"history": history, "domain": "garments", "include_shares": True}
    told = send(visitor, "/recommend", asked)
    plain = [name for name in titles(told) if name not in (MARKUP, LONG)]
    assert [name for name in names(cards(page)) if name in plain] == plain
    assert f"person={user_id}" in page.url


def test_the_finder_takes_ids_of_people_and_says_who_is_unknown(visitor):
    page = visitor.open()
    user_id, history = first_user(visitor)
    page.get_by_role("tab", name="People").click()
    page.get_by_label("Id of a person").fill(user_id)
    page.get_by_label("Id of a person").press("Enter")
    expect(tiles(page)).to_have_count(len(history))
    visitor.expected += "|/users/nobody 404"
    page.get_by_label("Id of a person").fill("nobody")
    page.get_by_label("Id of a person").press("Enter")
    expect(page.locator("#history-about")).to_contain_text("No such user")
    expect(cards(page)).to_have_count(10)


def test_pointing_at_a_recommendation_explains_it(visitor):
    user_id, history = first_user(visitor)
    page = visitor.open(f"#person={user_id}")
    expect(cards(page).first).to_be_visible()
    asked = {"history": history, "domain": "garments"}
    third = send(visitor, "/recommend", asked)["items"][2]
    asked = {"history": history, "item": third["item_id"]}
    told = send(visitor, "/explain", asked)
    cards(page).nth(2).hover()
    expect(page.locator("#why-title")).to_have_text(names(cards(page))[2])
    expect(page.locator("#why .strongest li")).to_have_count(3)
    share = by_branch(told["shares"])
    assert sum(share.values()) == pytest.approx(1, abs=1e-3)
    bars = page.locator("#why .share")
    expect(bars).to_have_count(9)
    widest = max(share.values())
    for bar, value in zip(bars.all(), share.values(), strict=True):
        fill, track = bar.locator(".fill").bounding_box(), bar.locator(".track").bounding_box()
        assert fill["width"] == pytest.approx(max(1, track["width"] * value / widest), abs=1.5)
    # The attention on the timeline: the bars sum to what the branches add up to.
    sums = [0.0] * len(history)
    for branch, weights in by_branch(told["attention"]).items():
        for place, weight in enumerate(weights):
            sums[place] += weight * share[branch]
    heights = (
        tiles(page)
        .locator(".look")
        .evaluate_all(
            "all => all.map(look => [...look.querySelectorAll('.bit')].reduce("
            "(sum, bit) => sum + parseFloat(bit.style.height), 0))"
        )
    )
    assert heights == pytest.approx([52 * one / max(sums) for one in sums], abs=0.5)
    assert page.locator("#threads .thread").count() > 0
    # One branch alone.
    bars.nth(1).click()
    expect(bars.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#why .looked h3")).to_have_text("What garments, pictures, looked at")
    only = told["attention"]["garments"]["id"]
    garments = sum(weight > 0 for weight in only)
    assert tiles(page).locator(".look .bit").count() == garments


def test_a_press_keeps_the_explanation_and_escape_lets_go(visitor):
    user_id, _ = first_user(visitor)
    page = visitor.open(f"#person={user_id}")
    cards(page).nth(1).locator(".main").click()
    expect(page.locator("#why")).to_have_class(re.compile("pinned"))
    kept = page.locator("#why-title").inner_text()
    cards(page).nth(3).hover()
    page.wait_for_timeout(300)
    expect(page.locator("#why-title")).to_have_text(kept)
    assert "why=" in page.url
    page.reload()
    expect(page.locator("#why")).to_have_class(re.compile("pinned"))
    expect(page.locator("#why-title")).to_have_text(kept)
    page.keyboard.press("Escape")
    expect(page.locator("#why")).not_to_have_class(re.compile("pinned"))
    assert "why=" not in page.url


def test_domain_number_and_history_survive_a_reload(visitor):
    _, history = first_user(visitor)
    page = visitor.open(f"#{urlencode({'item': history[:3]}, doseq=True)}")
    expect(tiles(page)).to_have_count(3)
    choose_domain(page, "#domains", "homeware")
    page.get_by_label("Show").select_option("5")
    expect(cards(page)).to_have_count(5)
    expect(page.locator("#next-about")).to_have_text("The 5 best of homeware after 3 items.")
    before = names(tiles(page))
    tiles(page).nth(2).hover()
    tiles(page).nth(2).locator(".earlier").click()
    expect(tiles(page).nth(1)).to_contain_text(before[2])
    page.wait_for_load_state("networkidle")
    page.reload()
    expect(page.locator("#next-about")).to_have_text("The 5 best of homeware after 3 items.")
    assert names(tiles(page)) == [before[0], before[2], before[1]]
    expect(page.locator("#domains input:checked")).to_have_value("homeware")
    tiles(page).nth(0).hover()
    tiles(page).nth(0).locator(".close").click()
    expect(page.locator("#next-about")).to_have_text("The 5 best of homeware after 2 items.")
