"""Takes the pictures of the page for the documentation, on a generated world.

Run by hand: python docs/pictures/take.py [RUN]. Without a run it makes the demo's world and trains on it, two
minutes on two cores. Needs /usr/bin/chromium; the Debian package fonts-inter makes for better letters.
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
PERSON = 20  # of the dataset: somebody with a history of both shops


def train(folder: Path) -> Path:
    """Makes the demo's world and a model of it; returns the run's folder."""
    interactions, items = generate_world(folder / "world")
    data = hafvt.prepare(interactions, items, folder / "data", min_per_domain=3)
    hafvt.encode(data, image="classic", title="classic")
    return hafvt.train("hafvt", data, folder / "run", epochs=8, batch_size=64).folder


def settle(page: Page) -> None:
    """Waits for everything to be there and at rest."""
    page.locator("#why .strongest li").first.wait_for(state="attached")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(800)


def shoot(page: Page, name: str) -> None:
    """Writes what is to be seen in 256 colors, which takes a third of the bytes."""
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


def take(address: str) -> None:
    """Writes the pictures beside this file."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_context(**DESKTOP).new_page()
        person = page.request.get(f"{address}/users?limit=1&offset={PERSON}").json()["users"][0]["user_id"]
        page.goto(f"{address}/#person={person}&in=homeware")
        page.locator("#cards .main").nth(2).hover()
        settle(page)
        shoot(page, "page-light.png")

        page = browser.new_context(**DESKTOP, color_scheme="dark").new_page()
        page.goto(f"{address}/#person={person}&in=garments")
        page.locator("#finder-close").click()
        page.locator("#cards .main").nth(2).click()
        settle(page)
        shoot(page, "page-dark.png")

        page = browser.new_context(**PHONE).new_page()
        page.goto(f"{address}/#person={person}&in=homeware")
        page.locator("#cards .main").nth(1).wait_for()
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(800)
        shoot(page, "page-phone.png")
        page.locator("#cards .main").nth(1).tap()
        settle(page)
        shoot(page, "page-phone-why.png")
        browser.close()


def main() -> None:
    """Serves a run and takes the pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else train(Path(temporary))
        app = create_app(ModelSource(run))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started or app.state.models.current is None:
            time.sleep(0.1)
        take(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
