"""The page: keyboard, screen sizes, themes, reduced motion, and screen readers."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.server.page.visitor import cards, choose_domain, first_user, names, overflow, tiles

pytestmark = pytest.mark.browser


def test_keyboard_reaches_all_functions(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    keys = page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(40):
            keys.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
                assert outline != "0px" or selector.startswith("#domains")
                return
        raise AssertionError(f"the tab key does not reach {selector}")

    tab_to("#skip")
    tab_to("#query")
    keys.type("bare")
    expect(page.locator("#results .main")).to_have_count(1)
    keys.press("ArrowDown")
    keys.press("Enter")
    expect(tiles(page)).to_have_count(1)
    tab_to("#domains input")
    keys.press("ArrowRight")
    expect(page.locator("#recommendations-note")).to_have_text("The 10 best of homeware after 1 item.")
    tab_to(".cards .main")
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    place = page.evaluate("[...document.querySelectorAll('.cards .main')].indexOf(document.activeElement)")
    assert place > 2
    expect(page.locator("#explanation-title")).to_have_text(names(cards(page))[place])
    keys.press("Enter")
    expect(page.locator("#explanation")).to_have_class(re.compile("pinned"))
    keys.press("Escape")
    keys.press("Tab")  # the card's own button that adds it
    keys.press("Enter")
    expect(tiles(page)).to_have_count(2)
    page.evaluate("document.querySelector('#clear').focus()")
    tab_to("#timeline .main")
    order = names(tiles(page))
    keys.press("Home")
    keys.press("Alt+ArrowRight")
    expect(tiles(page).first).to_contain_text(order[1])
    keys.press("Delete")
    expect(tiles(page)).to_have_count(1)
    assert names(tiles(page)) == [order[1]]
    assert page.evaluate("document.activeElement.closest('.tile') !== null")
    for _ in range(60):  # the focus leaves the page again: there is no trap
        keys.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
    else:
        raise AssertionError("the tab key never leaves the page")


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_layout_any_width_has_no_overflow(visitor, width):
    page = visitor.open(viewport={"width": width, "height": 740}, has_touch=width < 1000)
    user_id, _ = first_user(visitor)
    expect(cards(page)).to_have_count(10)
    assert overflow(page) <= 0
    page.goto(f"{visitor.address}/#user={user_id}")
    page.reload()
    expect(tiles(page).first).to_be_visible()
    if not page.locator("#finder").is_visible():
        page.locator("#open-finder").click()
    page.get_by_role("tab", name="Users").click()
    expect(page.locator("#users .main").first).to_be_visible()
    assert overflow(page) <= 0
    assert (
        page.locator(".thumbs .main, .tile .main, .card .main, .button:visible").evaluate_all(
            "all => all.filter(one => one.getBoundingClientRect().width > innerWidth).length"
        )
        == 0
    )


def test_phone_tap_opens_and_closes_explanation(visitor):
    user_id, _ = first_user(visitor)
    page = visitor.open(
        f"#user={user_id}", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    expect(cards(page).first).to_be_visible()
    expect(page.locator("#explanation")).not_to_be_visible()
    cards(page).nth(1).locator(".main").tap()
    expect(page.locator("#explanation")).to_be_visible()
    expect(page.locator("#explanation .strongest li")).to_have_count(3)
    assert overflow(page) <= 0
    page.get_by_role("button", name="Close the explanation").tap()
    expect(page.locator("#explanation")).not_to_be_visible()
    assert page.evaluate("document.activeElement.closest('.card') !== null")


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_has_contrast_and_is_kept(visitor, scheme):
    page = visitor.open(color_scheme=scheme)
    expect(cards(page)).to_have_count(10)
    other = {"light": "dark", "dark": "light"}[scheme]
    for theme in (scheme, other):
        ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (ground < 0.1) == (theme == "dark")
        panel = luminance(
            page.locator("#explanation").evaluate("one => getComputedStyle(one).backgroundColor")
        )
        texts = {
            "#recommendations-note": ground,
            "#model": ground,
            "h1": ground,
            "#explanation .summary": panel,
            "#item-count": panel,
        }
        for selector, background in texts.items():
            color = luminance(page.locator(selector).evaluate("one => getComputedStyle(one).color"))
            high, low = max(color, background), min(color, background)
            assert (high + 0.05) / (low + 0.05) >= 4.5, selector
        if theme == scheme:
            page.get_by_role("button", name="Dark theme").click()
            page.reload()
            expect(cards(page)).to_have_count(10)


def test_page_controls_and_regions_have_names(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    for role in ("button", "textbox", "searchbox", "combobox", "radio", "tab"):
        expect(page.get_by_role(role, name=re.compile(r"^\s*$"))).to_have_count(0)
    for role, name in (
        ("banner", ""),
        ("main", ""),
        ("region", "Your history"),
        ("region", "Start from"),
    ):
        expect(page.get_by_role(role, name=name)).to_have_count(1)
    assert page.locator("h1").count() == 1
    assert page.locator("img:not([alt])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    expect(page.locator("#recommendations-note")).to_have_attribute("role", "status")


def test_cards_glide_unless_reduced_motion(visitor):
    for setting, moves in (("reduce", False), ("no-preference", True)):
        page = visitor.open(reduced_motion=setting)
        expect(cards(page)).to_have_count(10)
        page.evaluate(
            "() => { window.moved = 0; const animate = Element.prototype.animate;"
            "Element.prototype.animate = function (...all) { moved++; return animate.apply(this, all) } }"
        )
        choose_domain(page, "#domains", "homeware")
        expect(page.locator("#recommendations-note")).to_contain_text("homeware")
        assert page.evaluate("moved > 0") == moves
