"""Takes the screenshots of the page for the documentation: python docs/pictures/take.py [RUN].

Without a run it generates the demo's dataset and trains on it, two minutes on two cores. It needs
/usr/bin/chromium; install Debian's fonts-inter for the font of the committed screenshots.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import hafvt
from hafvt.data.sources.demo import generate_world
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource

HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu"]
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}
USER = 20  # index of a user with a history in both shops


def train(folder: Path) -> Path:
    """Generates the demo's dataset and trains on it; returns the folder of the run."""
    interactions, items = generate_world(folder / "world")
    data = hafvt.prepare(interactions, items, folder / "data", min_per_domain=3)
    hafvt.encode(data, image="classic", title="classic")
    return hafvt.train("hafvt", data, folder / "run", epochs=8, batch_size=64).folder


def wait_until_still(page: Page) -> None:
    """Waits until the explanation is shown and all animations have ended."""
    page.locator("#explanation .strongest li").first.wait_for(state="attached")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(800)


def write_screenshot(page: Page, name: str) -> None:
    """Writes the visible part of the page in 256 colors, which take a third of the bytes."""
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


def take_screenshots(address: str) -> None:
    """Writes all screenshots to the folder of this file."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_context(**DESKTOP).new_page()
        user_id = page.request.get(f"{address}/users?limit=1&offset={USER}").json()["users"][0]["user_id"]
        page.goto(f"{address}/#user={user_id}&domain=homeware")
        page.wait_for_load_state("networkidle")  # until then cards move, and hover would scroll to them
        page.locator(".cards .main").nth(2).hover()
        wait_until_still(page)
        write_screenshot(page, "page-light.png")

        page = browser.new_context(**DESKTOP, color_scheme="dark").new_page()
        page.goto(f"{address}/#user={user_id}&domain=garments")
        page.locator("#finder-close").click()
        page.wait_for_load_state("networkidle")
        page.locator(".cards .main").nth(2).click()
        wait_until_still(page)
        page.evaluate("scrollTo(0, 0)")
        write_screenshot(page, "page-dark.png")

        page = browser.new_context(**PHONE).new_page()
        page.goto(f"{address}/#user={user_id}&domain=homeware")
        page.locator(".cards .main").nth(1).wait_for()
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(800)
        write_screenshot(page, "page-phone.png")
        page.locator(".cards .main").nth(1).tap()
        wait_until_still(page)
        write_screenshot(page, "page-phone-why.png")
        browser.close()


def main() -> None:
    """Serves a run and takes screenshots of the page."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else train(Path(temporary))
        app = create_app(ModelSource(run))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.1)
        take_screenshots(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
