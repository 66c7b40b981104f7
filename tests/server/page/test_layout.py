"""The page: axe-core in its main states, layout shift, and recommendations in sight at every size."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.server.page.visitor import cards, first_user, overflow, tiles

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
OBSERVE_SHIFTS = """
    window.shift = 0;
    new PerformanceObserver(list => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
    }).observe({ type: "layout-shift", buffered: true })
"""


def assert_accessible(page: Page) -> None:
    page.wait_for_timeout(50)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_desktop(visitor, scheme):
    user_id, _ = first_user(visitor)
    page = visitor.open(color_scheme=scheme)
    expect(cards(page)).to_have_count(10)
    assert_accessible(page)
    page.get_by_role("tab", name="Users").click()
    page.get_by_label("User id").fill(user_id)
    page.get_by_label("User id").press("Enter")
    cards(page).nth(1).locator(".main").click()
    expect(page.locator("#explanation .strongest li")).to_have_count(3)
    assert_accessible(page)
    page.keyboard.press("Escape")
    tiles(page).first.locator(".main").click()
    assert_accessible(page)
    page.keyboard.press("Escape")
    visitor.expected += "|/recommend 503"
    page.route("**/recommend", lambda route: route.fulfill(status=503, json={"error": "being loaded"}))
    page.get_by_label("Show").select_option("5")
    expect(page.locator("#recommendations .problem")).to_be_visible()
    assert_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_phone(visitor, scheme):
    user_id, _ = first_user(visitor)
    page = visitor.open(f"#user={user_id}", **PHONE, color_scheme=scheme)
    expect(cards(page)).to_have_count(10)
    assert_accessible(page)
    cards(page).first.locator(".main").tap()
    expect(page.locator("#explanation .strongest li")).to_have_count(3)
    assert_accessible(page)
    page.get_by_role("button", name="Close the explanation").tap()
    page.get_by_role("button", name="Add items").first.tap()
    expect(page.locator("#results .main").first).to_be_visible()
    assert_accessible(page)


@pytest.mark.parametrize("screen", [PHONE, {"viewport": {"width": 1280, "height": 720}}])
def test_page_opening_a_user_shifts_little(visitor, screen):
    user_id, _ = first_user(visitor)
    for fragment in ("", f"#user={user_id}"):
        page = visitor.open(
            fragment,
            prepare=lambda page: page.add_init_script(OBSERVE_SHIFTS),
            **screen,
            reduced_motion="no-preference",
        )
        expect(cards(page)).to_have_count(10)
        page.wait_for_load_state("networkidle")
        if not fragment:
            page.goto(f"{visitor.address}/#user={user_id}")
            expect(tiles(page).first).to_be_visible()
            page.wait_for_load_state("networkidle")
        assert page.evaluate("shift") < 0.1


@pytest.mark.parametrize(
    ("width", "height"),
    [(320, 640), (390, 844), (844, 390), (640, 360), (768, 1024), (1000, 768), (1280, 720), (2560, 1440)],
)
def test_first_card_is_in_sight(visitor, width, height):
    user_id, _ = first_user(visitor)
    page = visitor.open(f"#user={user_id}", viewport={"width": width, "height": height})
    for _ in range(2):
        expect(cards(page).first).to_be_visible()
        page.wait_for_load_state("networkidle")
        box = cards(page).first.bounding_box()
        assert box["y"] + 60 < height
        assert overflow(page) <= 0
        if width == 2560:
            used = page.locator("#main").bounding_box()["width"]
            assert used > 0.95 * width
        page.goto("about:blank")
        page.goto(visitor.address)  # without a history


def test_touch_targets_have_44_pixels(visitor):
    user_id, _ = first_user(visitor)
    page = visitor.open(f"#user={user_id}", **PHONE)
    expect(cards(page)).to_have_count(10)
    small = """() => [...document.querySelectorAll("button, select, input, a")].filter(one => {
        const target = one.type === "radio" ? one.closest("label") : one;
        const box = target.getBoundingClientRect();
        return one.id !== "skip" && box.width && (box.width < 44 || box.height < 44);
    }).map(one => one.outerHTML.slice(0, 120))"""
    assert page.evaluate(small) == []
    page.get_by_role("button", name="Add items").first.tap()
    expect(page.locator("#results .main").first).to_be_visible()
    assert page.evaluate(small) == []
    page.get_by_role("button", name="See 10 recommendations").tap()
    cards(page).first.locator(".main").tap()
    expect(page.locator("#explanation .strongest li")).to_have_count(3)
    assert page.evaluate(small) == []


def test_text_follows_the_font_size_of_the_browser(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    size = "parseFloat(getComputedStyle(document.querySelector('.card .name')).fontSize)"
    before = page.evaluate(size)
    page.evaluate("document.documentElement.style.fontSize = '32px'")  # as a default of twice 16 does
    assert page.evaluate(size) == pytest.approx(2 * before)
    assert overflow(page) <= 0


def test_selection_is_visible_in_forced_colors(visitor):
    user_id, _ = first_user(visitor)
    page = visitor.open(f"#user={user_id}", forced_colors="active")
    expect(cards(page)).to_have_count(10)
    cards(page).nth(1).locator(".main").click()
    expect(cards(page).nth(1)).to_have_class(re.compile("selected"))
    outline = "one => getComputedStyle(one).outlineStyle"
    assert cards(page).nth(1).evaluate(outline) == "solid"
    assert cards(page).nth(2).evaluate(outline) == "none"
    assert page.locator("#domains label:has(:checked)").evaluate(outline) == "solid"
    assert page.locator(".tabs [aria-selected=true]").evaluate(outline) == "solid"
