"""The model that a server answers with, and how another one takes its place while it runs."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.files import read_json
from hafvt.inference.recommender import Recommender
from hafvt.server.pictures import Pictures
from hafvt.server.prometheus import Metrics
from hafvt.server.search import Search

logger = logging.getLogger("hafvt.server")

WATCH_S = 2.0  # seconds between two looks at the model's files

Version = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class ModelSource:
    """Where the model comes from.

    Attributes:
        folder: a run, or what `export` made of one.
        data: the dataset, where it is no longer in the place that the run remembers.
    """

    folder: Path
    data: Path | None = None

    def open(self) -> Recommender:
        """Opens the model.

        Raises:
            HafvtError: there is none.
        """
        return Recommender.open(self.folder, self.data, threads=threads())

    def people(self) -> Dataset | None:
        """Returns the dataset for its people's histories, None where it is not at hand."""
        try:
            return Dataset.open(self.data or read_json(self.folder / "model.json")["data"])
        except (HafvtError, KeyError, TypeError):
            return None

    def version(self) -> Version:
        """Returns what changes when the model does: name, time and size of its files.

        What evaluations write beside it (results, ranks, reports) does not count.
        """
        own = [*self.folder.glob("model*"), self.folder / "export.json"]
        beside = (path for name in ("added_items", "index") for path in (self.folder / name).rglob("*"))
        found = []
        for path in sorted([*own, *beside]):
            try:
                status = path.stat()
            except OSError:  # not there, or gone meanwhile
                continue
            found.append((str(path), status.st_mtime_ns, status.st_size))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready to answer, with what the page wants to know beside it.

    Attributes:
        recommender: the model and its items.
        search: finds the items.
        pictures: theirs.
        people: their histories; None where they are not at hand.
        loaded: when, in ISO format.
    """

    recommender: Recommender
    search: Search
    pictures: Pictures
    people: Dataset | None
    loaded: str

    @classmethod
    def open(cls, source: ModelSource) -> LoadedModel:
        """Opens and warms up a model; takes seconds.

        Raises:
            HafvtError: there is none, or its scores are no numbers.
        """
        recommender = source.open()
        catalog = recommender.catalog
        for number, domain in enumerate(catalog.domains):
            histories = [np.arange(size, dtype=np.int64) % catalog.domains[-1].stop for size in (1, 2, 50)]
            if len(domain) and not np.isfinite(recommender.scores(histories, number)).all():
                raise HafvtError(f"{source.folder}: its scores are no numbers: train it anew")
        people = source.people()
        # What is read on first use is read now, so that no request waits for it.
        catalog.indices([catalog.item(0).item_id])
        if people is not None:
            people.item_table.height, people.user_ids.len()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(recommender, Search(catalog), Pictures(catalog), people, now)


class ModelManager:
    """Keeps one model live; loads another aside when its files change or when asked to, then swaps them.

    Requests under way keep the one they began with. A new one that cannot be loaded is reported, and the old
    one stays.

    Args:
        source: where they come from.
        metrics: counts what was loaded.
    """

    def __init__(self, source: ModelSource, metrics: Metrics) -> None:
        self.source, self.metrics = source, metrics
        self.live: LoadedModel | None = None
        self.problem: HafvtError | None = None  # why the first one could not be loaded
        self.on_problem: Callable[[], None] = lambda: None
        self.asked = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    def ask(self) -> None:
        """Asks for the model to be loaded anew; for signal handlers and other threads."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.asked.set)

    async def run(self) -> None:
        """Loads the first model, then watches over it until it is cancelled."""
        self.loop = asyncio.get_running_loop()
        loaded = await asyncio.to_thread(self.source.version)
        await self.load()
        if self.live is None:
            self.on_problem()
            return
        # What is here by now, torch's modules above all, is no garbage ever. Under load the collector would
        # walk all of it every other second, for a tenth of a second in which nobody is answered.
        gc.freeze()
        try:
            await self.watch(loaded)
        finally:
            gc.unfreeze()

    async def watch(self, loaded: Version) -> None:
        """Loads the model anew whenever it is asked for or its files are others than those loaded."""
        seen = loaded
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.asked.wait(), WATCH_S)
            asked = self.asked.is_set()
            self.asked.clear()
            version = await asyncio.to_thread(self.source.version)
            # Files that changed since the last look are perhaps still being written.
            if asked or (version != loaded and version == seen):
                loaded = version
                await self.load()
            seen = version

    async def load(self) -> None:
        """Loads a model aside and swaps it in; keeps the old one where that fails."""
        try:
            self.live = await asyncio.to_thread(LoadedModel.open, self.source)
        except Exception as error:  # a broken file may raise anything, and the old model must live on
            self.metrics.reloads["failed"] += 1
            if self.live is None:
                said = error if isinstance(error, HafvtError) else HafvtError(f"cannot load: {error!r}")
                self.problem = said
            else:
                logger.error("the new model cannot be loaded, the old one stays: %s", error)
        else:
            self.metrics.reloads["ok"] += 1
            await asyncio.to_thread(give_back)
            catalog = self.live.recommender.catalog
            logger.info("serving %s, %d items", self.live.recommender.scorer.name, len(catalog.train_counts))


def threads() -> int:
    """Returns how many threads score: one core is left for reading requests and writing answers.

    Threads that wait for that core would spin, torch's as well as onnxruntime's.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else max(1, (os.cpu_count() or 2) - 1)


def give_back() -> None:
    """Gives freed memory back to the system: glibc would keep what the old model took."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
