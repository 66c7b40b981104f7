"""A visitor of the page: opens it in a browser and notices what goes wrong behind it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

from hafvt.server.app import ServerSettings, create_app
from hafvt.server.manager import ModelSource

ODD_ID = "../a/b?c#d&e=%2e <b>+ü"
MARKUP = "<img src=/x onerror=window.hacked=1><script>window.hacked=1</script> & \u202etxet"
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 12

expect.set_options(timeout=20_000)  # milliseconds; machines may be busy


@contextmanager
def serving(source: ModelSource, settings: ServerSettings | None = None) -> Iterator[str]:
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
        while models.current is None:
            assert thread.is_alive()
            time.sleep(0.02)
        yield address
    finally:
        server.should_exit = True
        thread.join(10)


class Visitor:
    """Opens pages, and listens to what goes wrong behind them."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address
        self.wrong: list[str] = []
        self.expected = "(?!)"  # nothing

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

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            status = re.search(r"status of (\d+)|ERR_\w+", message.text)
            said = f"{message.location['url']} {(status[1] or status[0]) if status else message.text}"
            if not re.search(self.expected, said):
                self.wrong.append(said)


def ask(visitor: Visitor, path: str, body: object = None) -> dict[str, Any]:
    """Returns what the server itself answers."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(visitor.address + path, data, {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def somebody(visitor: Visitor) -> tuple[str, list[str]]:
    """Returns the id of a person and those of their history, as the server tells them."""
    user_id = ask(visitor, "/users?limit=1")["users"][0]["user_id"]
    found = ask(visitor, f"/users/{user_id}")["history"]
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
