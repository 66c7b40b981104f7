"""The page: histories, recommendations and explanations."""

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
    press_in_menu,
    send,
    tiles,
    titles,
)

pytestmark = pytest.mark.browser


def test_page_empty_history_shows_popular_items(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    expect(page.locator("#recommendations-note")).to_have_text(
        "No history yet: the most popular items of garments."
    )
    expect(page.locator("#explanation .summary")).to_contain_text("Popular: chosen")
    body = {"history": [], "domain": "garments"}
    answer = send(visitor, "/recommend", body)
    assert names(cards(page))[4:] == titles(answer)[4:]  # the first four are odd
    expect(tiles(page)).to_have_count(0)


def test_finder_chosen_items_change_recommendations(visitor):
    page = visitor.open()
    page.get_by_role("searchbox", name="Search titles").fill("bare should")
    result = page.locator("#results .main")
    expect(result).to_have_count(1)
    result.click()
    expect(result).to_have_attribute("aria-pressed", "true")
    assert names(tiles(page)) == ["Bare shoulders"]
    expect(page.locator("#recommendations-note")).to_have_text("The 10 best of garments after 1 item.")
    first_names = names(cards(page))
    page.get_by_role("searchbox", name="Search titles").fill("")
    choose_domain(page, "#finder-domains", "homeware")
    expect(page.locator("#item-count")).to_have_text("40 items")
    page.locator("#results .main").nth(2).click()
    page.locator("#results .main").nth(5).click()
    expect(page.locator("#recommendations-note")).to_have_text("The 10 best of garments after 3 items.")
    assert names(cards(page)) != first_names
    expect(page.locator("#history-note")).to_have_text(re.compile("1 garments.*2 homeware"))
    cards(page).nth(3).hover()
    added = names(cards(page))[3]
    cards(page).nth(3).locator(".plus").first.click()
    expect(tiles(page)).to_have_count(4)
    assert names(tiles(page))[3] == added
    expect(page.locator("#recommendations-note")).to_have_text("The 10 best of garments after 4 items.")
    assert added not in names(cards(page))
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#recommendations-note")).to_contain_text("No history yet")


def test_finder_query_without_match_shows_note(visitor):
    page = visitor.open()
    page.get_by_role("searchbox", name="Search titles").fill("zzzz")
    expect(page.locator("#item-count")).to_have_text("No item found. Try fewer words.")


def test_finder_chosen_user_gets_the_servers_recommendations(visitor):
    page = visitor.open()
    user_id, history = first_user(visitor)
    page.get_by_role("tab", name="Users").click()
    page.locator("#users .main").first.click()
    expect(page.locator("#history-title")).to_have_text(f"User {user_id}")
    expect(tiles(page)).to_have_count(len(history))
    expect(page.locator("#recommendations-note")).to_contain_text(f"after {len(history)} items")
    body = {"history": history, "domain": "garments", "include_shares": True}
    answer = send(visitor, "/recommend", body)
    plain = [name for name in titles(answer) if name not in (MARKUP, LONG)]
    assert [name for name in names(cards(page)) if name in plain] == plain
    assert f"user={user_id}" in page.url


def test_finder_user_id_loads_history_or_shows_error(visitor):
    page = visitor.open()
    user_id, history = first_user(visitor)
    page.get_by_role("tab", name="Users").click()
    page.get_by_label("User id").fill(user_id)
    page.get_by_label("User id").press("Enter")
    expect(tiles(page)).to_have_count(len(history))
    page.get_by_label("User id").fill("nobody")
    page.get_by_label("User id").press("Enter")
    expect(page.locator("#user-count")).to_have_text("No user id contains “nobody”.")
    expect(cards(page)).to_have_count(10)


def test_card_hovered_shows_explanation(visitor):
    user_id, history = first_user(visitor)
    page = visitor.open(f"#user={user_id}")
    expect(cards(page).first).to_be_visible()
    body = {"history": history, "domain": "garments"}
    third = send(visitor, "/recommend", body)["items"][2]
    body = {"history": history, "item": third["item_id"]}
    answer = send(visitor, "/explain", body)
    cards(page).nth(2).hover()
    expect(page.locator("#explanation-title")).to_have_text(names(cards(page))[2])
    expect(page.locator("#explanation .strongest li")).to_have_count(3)
    share = by_branch(answer["shares"])
    assert sum(share.values()) == pytest.approx(1, abs=1e-3)
    bars = page.locator("#explanation .share")
    expect(bars).to_have_count(9)
    widest = max(share.values())
    for bar, value in zip(bars.all(), share.values(), strict=True):
        fill, track = bar.locator(".fill").bounding_box(), bar.locator(".track").bounding_box()
        assert fill["width"] == pytest.approx(max(1, track["width"] * value / widest), abs=1.5)
    # The bars on the timeline: attention summed over branches, weighted by their shares.
    sums = [0.0] * len(history)
    for branch, weights in by_branch(answer["attention"]).items():
        for place, weight in enumerate(weights):
            sums[place] += weight * share[branch]
    heights = (
        tiles(page)
        .locator(".attention")
        .evaluate_all(
            "all => all.map(bars => [...bars.querySelectorAll('.segment')].reduce("
            "(sum, bar) => sum + parseFloat(bar.style.height), 0))"
        )
    )
    assert heights == pytest.approx([52 * one / max(sums) for one in sums], abs=0.5)
    assert page.locator("#threads .thread").count() > 0
    # The attention of one branch.
    bars.nth(1).click()
    expect(bars.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#explanation .attention-part h3")).to_have_text(
        "Items that mattered most for garments, pictures"
    )
    weights = answer["attention"]["garments"]["id"]
    garments = sum(weight > 0 for weight in weights)
    assert tiles(page).locator(".attention .segment").count() == garments


def test_card_pressed_pins_explanation_until_escape(visitor):
    user_id, _ = first_user(visitor)
    page = visitor.open(f"#user={user_id}")
    cards(page).nth(1).locator(".main").click()
    expect(page.locator("#explanation")).to_have_class(re.compile("pinned"))
    title = page.locator("#explanation-title").inner_text()
    cards(page).nth(3).hover()
    page.wait_for_timeout(300)
    expect(page.locator("#explanation-title")).to_have_text(title)
    assert "explain=" in page.url
    page.reload()
    expect(page.locator("#explanation")).to_have_class(re.compile("pinned"))
    expect(page.locator("#explanation-title")).to_have_text(title)
    page.keyboard.press("Escape")
    expect(page.locator("#explanation")).not_to_have_class(re.compile("pinned"))
    assert "explain=" not in page.url


def test_state_after_reload_is_the_same(visitor):
    _, history = first_user(visitor)
    page = visitor.open(f"#{urlencode({'item': history[:3]}, doseq=True)}")
    expect(tiles(page)).to_have_count(3)
    choose_domain(page, "#domains", "homeware")
    page.get_by_label("Show").select_option("5")
    expect(cards(page)).to_have_count(5)
    expect(page.locator("#recommendations-note")).to_have_text("The 5 best of homeware after 3 items.")
    before = names(tiles(page))
    press_in_menu(page, tiles(page).nth(2), "Move earlier")
    expect(tiles(page).nth(1)).to_contain_text(before[2])
    page.wait_for_load_state("networkidle")
    page.reload()
    expect(page.locator("#recommendations-note")).to_have_text("The 5 best of homeware after 3 items.")
    assert names(tiles(page)) == [before[0], before[2], before[1]]
    expect(page.locator("#domains input:checked")).to_have_value("homeware")
    press_in_menu(page, tiles(page).nth(0), "Remove from the history")
    expect(page.locator("#recommendations-note")).to_have_text("The 5 best of homeware after 2 items.")


def test_similar_items_of_a_card_and_a_tile_are_the_servers(visitor):
    _, history = first_user(visitor)
    page = visitor.open(f"#{urlencode({'item': history[:3]}, doseq=True)}")
    expect(cards(page)).to_have_count(10)
    for press in (
        lambda: press_in_menu(page, tiles(page).nth(1), "Similar items"),
        lambda: press_in_menu(page, cards(page).nth(4), "Similar items", ".actions"),
    ):
        press()
        expect(page.locator("#item-count")).to_contain_text("Similar to")
        name = page.locator("#item-count b").inner_text()
        item = names(tiles(page))[1], names(cards(page))[4]
        assert name in item
    answer = send(visitor, f"/similar-items/{history[1]}?k=24")
    press_in_menu(page, tiles(page).nth(1), "Similar items")
    expect(page.locator("#results .main").first).to_have_attribute("data-id", answer["items"][0]["item_id"])
    expect(page.locator("#results .main")).to_have_count(24)
    assert page.evaluate("document.activeElement.id") == "finder-title"
    page.get_by_role("button", name="Show all items").click()
    expect(page.locator("#item-count")).to_have_text("80 items")
