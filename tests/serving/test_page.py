"""The page, driven in a real browser: what people see and do, by pointer, keyboard and on small screens."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import polars as pl
import pytest
import uvicorn
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

import hafvt
from hafvt.data.sources.demo import generate_world
from hafvt.serving.app import Settings, create_app
from hafvt.serving.live import Source

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
ODD_ID = "../a/b?c#d&e=%2e <b>+ü"
MARKUP = "<img src=/x onerror=window.hacked=1><script>window.hacked=1</script> & \u202etxet"
expect.set_options(timeout=20_000)  # machines may be busy
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A model of one epoch on a tiny world in which the four most popular garments are odd ones."""
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
    ).write_csv(items)
    log.with_columns(pl.col("item_id").replace(odd, ODD_ID)).write_csv(interactions)
    data = hafvt.prepare(interactions, items, folder / "data", min_per_domain=3)
    hafvt.encode(data, image="classic", title="classic")
    sizes = {"id_width": 8, "content_width": 8}
    return Source(hafvt.train("hafvt", data, folder / "run", params=sizes, epochs=1).folder)


@contextmanager
def serving(source: Source, settings: Settings | None = None) -> Iterator[str]:
    """Serves a model in a thread; gives its address."""
    app = create_app(source, settings)
    server, models = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning")), app.state.models
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        while models.live is None:
            assert thread.is_alive()
            time.sleep(0.02)
        yield address
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def address(source: Source) -> Iterator[str]:
    with serving(source) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:  # of this module: its event loop would hinder other tests
    if not CHROMIUM.exists():
        pytest.fail(f"no {CHROMIUM}: apt-get install --no-install-recommends chromium, as root")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """Opens pages, and listens to what goes wrong behind them."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address
        self.wrong: list[str] = []
        self.expected = r"/pictures/.* 404"  # a person's faces are asked for without knowing who has one

    def open(
        self,
        fragment: str = "",
        address: str | None = None,
        before: Callable[[Page], None] = lambda page: None,
        **context: object,
    ) -> Page:
        address = address or self.address
        usual = {"viewport": {"width": 1440, "height": 900}, "reduced_motion": "reduce"}
        page = self.browser.new_context(**{**usual, **context}).new_page()
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", self.hear)
        page.on(
            "request",
            lambda request: request.url.startswith(f"{address}/") or self.wrong.append(f"asks {request.url}"),
        )
        before(page)
        page.goto(f"{address}/{fragment}")
        return page

    def hear(self, message: object) -> None:
        if message.type in ("error", "warning"):
            status = re.search(r"status of (\d+)|ERR_\w+", message.text)
            said = f"{message.location['url']} {(status[1] or status[0]) if status else message.text}"
            if not re.search(self.expected, said):
                self.wrong.append(said)


@pytest.fixture
def visitor(browser: Browser, address: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, address)
    yield visitor
    for context in browser.contexts:
        for page in context.pages:
            assert page.evaluate("window.hacked") is None
        context.close()
    assert visitor.wrong == []


def ask(visitor: Visitor, path: str, body: object = None) -> dict[str, Any]:
    """Returns what the server itself answers."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(visitor.address + path, data, {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def somebody(visitor: Visitor) -> tuple[str, list[str]]:
    """Returns the id of a person and those of their history, as the server tells them."""
    user_id = ask(visitor, "/people?limit=1")["people"][0]["user_id"]
    found = ask(visitor, f"/people/{user_id}")["history"]
    return user_id, [item["item_id"] for item in found]


def cards(page: Page) -> Locator:
    return page.locator("#cards > .card:not(.ghost)")


def tiles(page: Page) -> Locator:
    return page.locator("#timeline > .tile:not(.add, .ghost)")


def names(entries: Locator) -> list[str]:
    return entries.locator(".name").all_inner_texts()


def titles(found: dict[str, list[dict[str, str]]]) -> list[str]:
    return [(item["title"] or f"item {item['item_id']}").strip() for item in found["items"]]


def choose(page: Page, group: str, domain: str) -> None:
    page.locator(group).get_by_role("radio", name=domain).check()


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_without_a_history_popularity_decides_and_says_so(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    expect(page.locator("#next-about")).to_have_text("No history yet: what is most popular in garments.")
    expect(page.locator("#why .story")).to_contain_text("Because many choose it")
    asked = {"history": [], "domain": "garments"}
    told = ask(visitor, "/recommend", asked)
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
    choose(page, "#finder-domains", "homeware")
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


def test_a_model_that_is_being_loaded_is_waited_for(visitor):
    visitor.expected += "|/model 503"
    said = [{"status": 503, "json": {"error": "the model is being loaded: try again soon"}}] * 2

    def answer(route: Route) -> None:
        if said:
            route.fulfill(**said.pop())
        else:
            route.continue_()

    page = visitor.open(before=lambda page: page.route("**/model", answer))
    expect(page.locator("#model")).to_have_text("The model is being loaded.")
    expect(cards(page)).to_have_count(10)


def test_nothing_found_is_said(visitor):
    page = visitor.open()
    page.get_by_role("searchbox", name="Search titles").fill("zzzz")
    expect(page.locator("#found")).to_have_text("Nothing found. Try fewer words.")


def test_a_person_is_picked_and_recommended_to_as_the_server_does(visitor):
    page = visitor.open()
    user_id, history = somebody(visitor)
    page.get_by_role("tab", name="People").click()
    page.locator("#people .main").first.click()
    expect(page.locator("#history-title")).to_have_text(f"Person {user_id}")
    expect(tiles(page)).to_have_count(len(history))
    expect(page.locator("#next-about")).to_contain_text(f"after {len(history)} items")
    asked = {"history": history, "domain": "garments", "shares": True}
    told = ask(visitor, "/recommend", asked)
    plain = [name for name in titles(told) if name not in (MARKUP, LONG)]
    assert [name for name in names(cards(page)) if name in plain] == plain
    assert f"person={user_id}" in page.url


def test_the_finder_takes_ids_of_people_and_says_who_is_unknown(visitor):
    page = visitor.open()
    user_id, history = somebody(visitor)
    page.get_by_role("tab", name="People").click()
    page.get_by_label("Id of a person").fill(user_id)
    page.get_by_label("Id of a person").press("Enter")
    expect(tiles(page)).to_have_count(len(history))
    visitor.expected += "|/people/nobody 404"
    page.get_by_label("Id of a person").fill("nobody")
    page.get_by_label("Id of a person").press("Enter")
    expect(page.locator("#history-about")).to_contain_text("No such person")
    expect(cards(page)).to_have_count(10)


def test_pointing_at_a_recommendation_explains_it(visitor):
    user_id, history = somebody(visitor)
    page = visitor.open(f"#person={user_id}")
    expect(cards(page).first).to_be_visible()
    asked = {"history": history, "domain": "garments"}
    third = ask(visitor, "/recommend", asked)["items"][2]
    asked = {"history": history, "item": third["item_id"]}
    told = ask(visitor, "/explain", asked)
    cards(page).nth(2).hover()
    expect(page.locator("#why-title")).to_have_text(names(cards(page))[2])
    expect(page.locator("#why .strongest li")).to_have_count(3)
    share = {f"{one['sequence']}, {one['modality']}": one["share"] for one in told["shares"]}
    assert sum(share.values()) == pytest.approx(1, abs=1e-3)
    bars = page.locator("#why .share")
    expect(bars).to_have_count(9)
    widest = max(share.values())
    for bar, value in zip(bars.all(), share.values(), strict=True):
        fill, track = bar.locator(".fill").bounding_box(), bar.locator(".track").bounding_box()
        assert fill["width"] == pytest.approx(max(1, track["width"] * value / widest), abs=1.5)
    # The attention on the timeline: the bars sum to what the branches add up to.
    sums = [0.0] * len(history)
    for one in told["attention"]:
        for place, weight in enumerate(one["weights"]):
            sums[place] += weight * share[f"{one['sequence']}, {one['modality']}"]
    heights = tiles(page).locator(".look").evaluate_all(
        "all => all.map(look => [...look.querySelectorAll('.bit')].reduce("
        "(sum, bit) => sum + parseFloat(bit.style.height), 0))"
    )
    assert heights == pytest.approx([52 * one / max(sums) for one in sums], abs=0.5)
    assert page.locator("#threads .thread").count() > 0
    # One branch alone.
    bars.nth(1).click()
    expect(bars.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#why .looked h3")).to_have_text("What garments, pictures, looked at")
    only = next(one["weights"] for one in told["attention"])
    garments = sum(weight > 0 for weight in only)
    assert tiles(page).locator(".look .bit").count() == garments


def test_a_press_keeps_the_explanation_and_escape_lets_go(visitor):
    user_id, _ = somebody(visitor)
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
    user_id, history = somebody(visitor)
    page = visitor.open(f"#{urlencode({'item': history[:3]}, doseq=True)}")
    expect(tiles(page)).to_have_count(3)
    choose(page, "#domains", "homeware")
    page.get_by_label("Show").select_option("5")
    expect(cards(page)).to_have_count(5)
    expect(page.locator("#next-about")).to_have_text("The 5 best of homeware after 3 items.")
    before, seen = names(tiles(page)), names(cards(page))
    tiles(page).nth(2).hover()
    tiles(page).nth(2).locator(".earlier").click()
    expect(tiles(page).nth(1)).to_contain_text(before[2])
    page.wait_for_load_state("networkidle")
    page.reload()
    expect(page.locator("#next-about")).to_have_text("The 5 best of homeware after 3 items.")
    assert names(tiles(page)) == [before[0], before[2], before[1]]
    expect(page.locator("#domains input:checked")).to_have_value("homeware")
    assert len(seen) == 5
    tiles(page).nth(0).hover()
    tiles(page).nth(0).locator(".close").click()
    expect(page.locator("#next-about")).to_have_text("The 5 best of homeware after 2 items.")


def test_the_keyboard_alone_suffices(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    keys = page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(40):
            keys.press("Tab")
            if page.evaluate("what => document.activeElement.matches(what)", selector):
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
    expect(page.locator("#next-about")).to_have_text("The 10 best of homeware after 1 item.")
    tab_to("#cards .main")
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    place = page.evaluate("[...document.querySelectorAll('#cards .main')].indexOf(document.activeElement)")
    assert place > 2
    expect(page.locator("#why-title")).to_have_text(names(cards(page))[place])
    keys.press("Enter")
    expect(page.locator("#why")).to_have_class(re.compile("pinned"))
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
    for _ in range(60):  # and it leaves the page again: there is no trap
        keys.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
    else:
        raise AssertionError("the tab key never leaves the page")


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
    _, history = somebody(visitor)
    odd = ["<b>nothing</b>", "..", "x" * 200]
    page = visitor.open(f"#{urlencode({'item': [history[0], *odd]}, doseq=True)}")
    expect(page.locator("#next-about")).to_have_text(re.compile("after 1 item. 3 ids not in the catalogue"))
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


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_sticks_out(visitor, width):
    page = visitor.open(viewport={"width": width, "height": 740}, has_touch=width < 1000)
    user_id, _ = somebody(visitor)
    expect(cards(page)).to_have_count(10)
    assert overflow(page) <= 0
    page.goto(f"{visitor.address}/#person={user_id}")
    page.reload()
    expect(tiles(page).first).to_be_visible()
    if not page.locator("#finder").is_visible():
        page.locator("#find").click()
    page.get_by_role("tab", name="People").click()
    expect(page.locator("#people .main").first).to_be_visible()
    assert overflow(page) <= 0
    assert page.locator(".thumbs .main, .tile .main, .card .main, .button:visible").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().width > innerWidth).length"
    ) == 0


def test_on_a_phone_a_tap_opens_the_explanation_and_closes_it(visitor):
    user_id, _ = somebody(visitor)
    page = visitor.open(f"#person={user_id}", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    expect(cards(page).first).to_be_visible()
    expect(page.locator("#why")).not_to_be_visible()
    cards(page).nth(1).locator(".main").tap()
    expect(page.locator("#why")).to_be_visible()
    expect(page.locator("#why .strongest li")).to_have_count(3)
    assert overflow(page) <= 0
    page.get_by_role("button", name="Close the explanation").tap()
    expect(page.locator("#why")).not_to_be_visible()
    assert page.evaluate("document.activeElement.closest('.card') !== null")


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable_and_kept(visitor, scheme):
    page = visitor.open(color_scheme=scheme)
    expect(cards(page)).to_have_count(10)
    other = {"light": "dark", "dark": "light"}[scheme]
    for theme in (scheme, other):
        ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (ground < 0.1) == (theme == "dark")
        panel = luminance(page.locator("#why").evaluate("one => getComputedStyle(one).backgroundColor"))
        texts = {"#next-about": ground, "#model": ground, "h1": ground, "#why .story": panel, "#found": panel}
        for selector, behind in texts.items():
            colour = luminance(page.locator(selector).evaluate("one => getComputedStyle(one).color"))
            high, low = max(colour, behind), min(colour, behind)
            assert (high + 0.05) / (low + 0.05) >= 4.5, selector
        if theme == scheme:
            page.get_by_role("button", name="Dark theme").click()
            page.reload()
            expect(cards(page)).to_have_count(10)


def test_a_failure_is_one_line_with_a_way_to_try_again(visitor):
    visitor.expected += "|/recommend (503|ERR_FAILED)"
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    for fails, said in (
        (lambda route: route.fulfill(status=503, json={"error": "<b>the model</b> is being loaded"}), "<b>the"),
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
    choose(page, "#domains", "homeware")
    expect(page.locator("#next-about")).to_contain_text("homeware")
    choose(page, "#domains", "garments")
    expect(page.locator("#cards")).to_have_attribute("aria-busy", "true")
    choose(page, "#domains", "homeware")
    expect(page.locator("#cards")).to_have_attribute("aria-busy", "false")
    wanted = names(cards(page))
    held[0].fulfill(json={"items": [], "by": "model", "unknown": []})
    page.wait_for_timeout(100)
    assert names(cards(page)) == wanted
    expect(page.locator("#next-about")).to_contain_text("homeware")


def test_a_key_is_asked_for_and_kept_in_the_tab(visitor, source):
    visitor.expected += "|/(model|items).* 401"
    with serving(source, Settings(api_key="sesame")) as address:
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


def test_people_who_listen_find_their_way(visitor):
    page = visitor.open()
    expect(cards(page)).to_have_count(10)
    nameless: Callable[[str], list[str]] = lambda role: [  # noqa: E731
        one.evaluate("one => one.outerHTML") for one in page.get_by_role(role, name=re.compile(r"^\s*$")).all()
    ]
    assert [nameless(role) for role in ("button", "textbox", "searchbox", "combobox", "radio", "tab")] == [[]] * 6
    for role, name in (("banner", ""), ("main", ""), ("region", "Your history"), ("region", "Start from")):
        expect(page.get_by_role(role, name=name)).to_have_count(1)
    assert page.locator("h1").count() == 1
    assert page.locator("img:not([alt])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    expect(page.locator("#next-about")).to_have_attribute("role", "status")


def test_cards_glide_to_their_new_places_unless_people_want_stillness(visitor):
    for wish, moves in (("reduce", False), ("no-preference", True)):
        page = visitor.open(reduced_motion=wish)
        expect(cards(page)).to_have_count(10)
        page.evaluate(
            "() => { window.moved = 0; const animate = Element.prototype.animate;"
            "Element.prototype.animate = function (...all) { moved++; return animate.apply(this, all) } }"
        )
        choose(page, "#domains", "homeware")
        expect(page.locator("#next-about")).to_contain_text("homeware")
        assert page.evaluate("moved > 0") == moves
