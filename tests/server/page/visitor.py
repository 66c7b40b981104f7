"""Helpers of tests that drive the page in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from tests.served import run_in_thread

ODD_ID = "../a/b?c#d&e=%2e <b>+ü"
MARKUP = "<img src=/x onerror=window.hacked=1><script>window.hacked=1</script> & text"
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 12

expect.set_options(timeout=20_000)  # milliseconds; machines may be busy


@contextmanager
def serving(*sources: ModelSource, **settings: Any) -> Iterator[str]:
    """Serves models in a thread; yields the address of the server."""
    with run_in_thread(create_app(*sources, **settings)) as port:
        yield f"http://127.0.0.1:{port}"


class Visitor:
    """Opens pages in new browser contexts and collects their errors.

    Attributes:
        errors: script errors, failed requests and requests to other hosts that `expected` does not match.
        expected: a regular expression of errors that a test provokes.
    """

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address
        self.errors: list[str] = []
        self.expected = "(?!)"  # matches nothing

    def open(
        self,
        fragment: str = "",
        address: str | None = None,
        prepare: Callable[[Page], None] = lambda page: None,
        **context: object,
    ) -> Page:
        address = address or self.address
        defaults = {"viewport": {"width": 1440, "height": 900}, "reduced_motion": "reduce"}
        page = self.browser.new_context(**{**defaults, **context}).new_page()
        page.on("pageerror", lambda error: self.errors.append(f"error: {error}"))
        page.on("console", self.on_console)
        page.on(
            "request",
            lambda request: (
                request.url.startswith(f"{address}/") or self.errors.append(f"requests {request.url}")
            ),
        )
        prepare(page)
        page.goto(f"{address}/{fragment}")
        return page

    def on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            status = re.search(r"status of (\d+)|ERR_\w+", message.text)
            error = f"{message.location['url']} {(status[1] or status[0]) if status else message.text}"
            if not re.search(self.expected, error):
                self.errors.append(error)


def send(visitor: Visitor, path: str, body: object = None) -> dict[str, Any]:
    """Returns the server's own answer to a request."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(visitor.address + path, data, {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def first_user(visitor: Visitor) -> tuple[str, list[str]]:
    """Returns the id of the first user and the item ids of the history."""
    user_id = send(visitor, "/users?limit=1")["users"][0]["user_id"]
    history = send(visitor, f"/users/{user_id}")["history"]
    return user_id, [item["item_id"] for item in history]


def cards(page: Page) -> Locator:
    return page.locator(".cards > .card:not(.ghost)")


def tiles(page: Page) -> Locator:
    return page.locator("#timeline > .tile:not(.add, .ghost)")


def names(entries: Locator) -> list[str]:
    return entries.locator(".name").all_inner_texts()


def titles(answer: dict[str, list[dict[str, str]]]) -> list[str]:
    return [(item["title"] or f"item {item['item_id']}").strip() for item in answer["items"]]


def by_branch(values: dict[str, dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Returns sequence -> modality -> value as (sequence, modality) -> value."""
    return {(sequence, modality): row[modality] for sequence, row in values.items() for modality in row}


def choose_domain(page: Page, group: str, domain: str) -> None:
    page.locator(group).get_by_role("radio", name=domain).check()


def press_in_menu(page: Page, entry: Locator, action: str, opener: str = ".main") -> None:
    """Opens the menu of a tile or card and presses one of its actions."""
    entry.hover()
    entry.locator(opener).click()
    page.locator("#menu").get_by_role("button", name=action).click()


def overflow(page: Page) -> int:
    """Returns by how many pixels the content is wider than the screen, which a phone would shrink it to."""
    return page.evaluate("document.documentElement.scrollWidth") - page.viewport_size["width"]
