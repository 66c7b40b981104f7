"""The report in a browser: on paper, in the dark, and on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from hafvt.evaluation.metrics import MetricValue
from hafvt.reports.page import write_page
from tests.reports.test_page import user_example

pytestmark = pytest.mark.browser

METRICS = ("MRR", "NDCG@5", "NDCG@10", "HR@1", "HR@5", "HR@10")
PAPER = 695  # pixels between the margins of A4
SIDEWAYS = """() => Math.max(document.documentElement.scrollWidth - innerWidth,
    ...[...document.querySelectorAll(".scroll")].map(one => one.scrollWidth - one.clientWidth))"""


@pytest.fixture
def report(tmp_path: Path) -> str:
    figures = {name: MetricValue(0.1234, 0.1111, 0.1357) for name in METRICS}
    results = {
        name: {"garments": figures, "homeware": figures, "overall": figures}
        for name in ("hafvt", "sasrec", "recent-popularity")
    }
    users = [user_example(name) for name in ("ann", "ben")]
    write_page(tmp_path / "report.html", title="Shops", results=results, curves={}, users=users)
    return (tmp_path / "report.html").as_uri()


def test_printed_report_is_whole_and_light(browser: Browser, report: str):
    page = browser.new_context(color_scheme="dark", viewport={"width": PAPER, "height": 1000}).new_page()
    page.goto(report)
    page.emulate_media(media="print")
    assert page.evaluate(SIDEWAYS) <= 0
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(27, 30, 35)"
    assert page.locator(".meaning dl").bounding_box()["height"] > 50
    assert page.locator(".card").first.evaluate("one => getComputedStyle(one).breakInside") == "avoid"
    assert page.pdf(prefer_css_page_size=True).count(b"/Type /Page\n") in range(1, 6)
    page.context.close()


@pytest.mark.parametrize("width", [320, 768, 1200])
def test_report_does_not_scroll_sideways(browser: Browser, report: str, width: int):
    page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    page.goto(report)
    assert page.evaluate(SIDEWAYS) <= 0
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_report(browser: Browser, report: str, scheme: str):
    page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()
    page.goto(report)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    page.context.close()
