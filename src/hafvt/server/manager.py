"""Load the model of a server, and replace it by a newer one while the server runs."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from hafvt.data.dataset import RUN_CATALOG, Dataset
from hafvt.errors import HafvtError
from hafvt.files import read_json
from hafvt.folders import recover_folder
from hafvt.inference.policies import Policy, read_policies
from hafvt.inference.recommender import Recommender
from hafvt.server.pictures import PictureCache
from hafvt.server.prometheus import ServerMetrics
from hafvt.server.search import ItemSearch
from hafvt.server.users import UserHistories

logger = logging.getLogger("hafvt.server")

CHECK_INTERVAL_S = 2.0  # seconds between two checks of the model's files

FileStates = dict[Path, tuple[int, int]]
"""Modification time in ns and size in bytes of each file of a model."""


@dataclass(frozen=True)
class ModelSource:
    """The folder of a run or export, that of its dataset, and a file of policies.

    Without `data`, the dataset is that of the model.json of the run.
    """

    folder: Path
    data: Path | None = None
    policies: Path | None = None

    def open_dataset(self) -> Dataset | None:
        """Return the dataset, which has the histories of users; it may be newer than the model.

        Without `data`, it is None for an export, and for a run whose dataset was removed.
        """
        if self.data is not None:
            return Dataset.open(self.data)
        manifest_path = self.folder / "model.json"  # exports have none
        data = read_json(manifest_path)["data"] if manifest_path.exists() else None
        if data is None:  # an export, or a run of the Hugging Face Hub
            return None
        folder = Path(data)
        recover_folder(folder)
        if (self.folder / RUN_CATALOG).exists() and not folder.exists():
            logger.info("%s does not exist, so there are no users", folder)
            return None
        return Dataset.open(folder)

    def resolve(self) -> ModelSource:
        """Return the source with the folders that symbolic links lead to now."""
        return replace(self, folder=self.folder.resolve(), data=self.data and self.data.resolve())

    def file_states(self) -> FileStates:
        """Return the states of the model's files, which differ after the model has changed.

        Results, ranks and reports in the same folder are ignored.
        """
        subfolders = (path for name in ("added_items", "index") for path in (self.folder / name).rglob("*"))
        states = {}
        policies = () if self.policies is None else (self.policies,)
        for path in (*self.folder.glob("model*"), self.folder / "export.json", *subfolders, *policies):
            with suppress(OSError):  # missing, or removed since it was listed
                status = path.stat()
                states[path] = status.st_mtime_ns, status.st_size
        return states

    def version(self) -> str:
        """Return a hash that differs after another training, export or addition of items.

        It is equal for copies of a model, so that several servers behind one address agree.
        """
        digest = hashlib.sha256()
        for path, (_, size) in sorted(self.file_states().items()):
            if path == self.policies:
                continue
            digest.update(f"{path.relative_to(self.folder)} {size}\n".encode())
            if path.name in ("model.json", "export.json"):
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory, with the item search, pictures and users that the web page shows.

    Attributes:
        recommender: the model and its catalog.
        search: finds items of the catalog.
        pictures: returns pictures of the items.
        users: histories of the dataset's users; None without the dataset.
        loaded_at: time of loading, ISO 8601, UTC.
        version: see `ModelSource.version`.
        policies: by name, rules that requests may name.
    """

    recommender: Recommender
    search: ItemSearch
    pictures: PictureCache
    users: UserHistories | None
    loaded_at: str
    version: str
    policies: Mapping[str, Policy] = field(default_factory=dict)

    @classmethod
    def open(cls, source: ModelSource) -> LoadedModel:
        """Open a model and check that its scores are finite; takes seconds.

        Raises:
            HafvtError: there is no model, its scores are not finite, or a policy does not fit its items.
        """
        source = source.resolve()  # so that all files are of one model if a link changes meanwhile
        version = source.version()
        recommender = Recommender.open(source.folder, source.data, threads=num_scoring_threads())
        catalog = recommender.catalog
        for index, domain in enumerate(catalog.domains):
            histories = [np.arange(size, dtype=np.int64) % catalog.domains[-1].stop for size in (1, 2, 50)]
            if len(domain) and not np.isfinite(recommender.scores(histories, index)).all():
                raise HafvtError(f"{source.folder}: its scores are not finite: train the model again")
        # The first lookup fills the catalog's caches, so that no request waits for them.
        catalog.indices([catalog.item(0).item_id])
        dataset = source.open_dataset()
        users = UserHistories(dataset, catalog) if dataset is not None else None
        loaded_at = datetime.now(UTC).isoformat(timespec="seconds")
        policies = {} if source.policies is None else read_policies(source.policies)
        for name, policy in policies.items():
            try:
                selectors = [recommender.selector(policy.rules, d) for d in range(len(catalog.domains))]
                if unknown_ids := selectors[0].unknown_ids:
                    ids = ", ".join(item_id[:80] for item_id in unknown_ids[:3])
                    logger.warning("policy %s: %d ids are unknown, such as %s", name, len(unknown_ids), ids)
            except HafvtError as error:
                raise HafvtError(f"--policies {source.policies}: policy {name[:80]!r}: {error}") from None
        search, pictures = ItemSearch(catalog), PictureCache(catalog)
        return cls(recommender, search, pictures, users, loaded_at, version, policies)


class ModelManager:
    """Holds the current model; loads and swaps in a newer one when the model's files change or on request.

    The current model answers requests while a newer one loads; a request keeps its model until it ends. If a
    newer model cannot be loaded, the manager logs the error in one line and keeps the current model.

    Args:
        source: the files that models are loaded from; the first model is loaded at once.
        metrics: counts successful and failed reloads; the first load is none.

    Raises:
        HafvtError: the first model cannot be loaded.
    """

    def __init__(self, source: ModelSource, metrics: ServerMetrics) -> None:
        self.source, self.metrics = source, metrics
        self._states_at_load = source.file_states()  # of the latest attempt, successful or not
        self.current = self._load()
        self._reload_requested = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def request_reload(self) -> None:
        """Load the model again soon; safe to call from signal handlers and other threads."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._reload_requested.set)

    async def run(self) -> None:
        """Load newer models until cancelled."""
        self._loop = asyncio.get_running_loop()
        collect_and_freeze()
        try:
            await self._watch()
        finally:
            gc.unfreeze()

    async def _watch(self) -> None:
        """Load the model again on request, and when its files have changed and are completely written."""
        previous_states = self._states_at_load
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._reload_requested.wait(), CHECK_INTERVAL_S)
            is_requested = self._reload_requested.is_set()
            self._reload_requested.clear()
            states = await asyncio.to_thread(self.source.file_states)
            # Files that changed since the previous check may be incomplete.
            if is_requested or (states != self._states_at_load and states == previous_states):
                self._states_at_load = states
                try:
                    self.current = await asyncio.to_thread(self._load)
                    self.metrics.reloads.labels("ok").inc()
                except HafvtError as error:
                    self.metrics.reloads.labels("failed").inc()
                    logger.error("the new model cannot be loaded, the old one stays: %s", error)
                await asyncio.to_thread(collect_and_freeze)
            previous_states = states

    def _load(self) -> LoadedModel:
        """Return a model that is read from the files now.

        Raises:
            HafvtError: it cannot be loaded.
        """
        try:
            model = LoadedModel.open(self.source)
        except HafvtError:
            raise
        except Exception as error:  # a damaged file may raise any error
            raise HafvtError(f"{self.source.folder}: cannot load the model: {error!r}") from error
        name, num_items = model.recommender.scorer.name, len(model.recommender.catalog)
        logger.info("serving %s, %d items", name, num_items)
        return model


def served_names(managers: Sequence[ModelManager]) -> list[str]:
    """Return a distinct name for each served model: that of the model, or of its folder, or with a number."""
    names = [manager.current.recommender.scorer.name for manager in managers]
    if len(set(names)) < len(names):
        names = [manager.source.folder.resolve().name for manager in managers]
    repeats = Counter(names)
    return [name if repeats[name] == 1 else f"{name} {number}" for number, name in enumerate(names, 1)]


def num_scoring_threads() -> int:
    """Return the number of threads that score: OMP_NUM_THREADS, or all cores but one.

    The remaining core reads requests and writes responses. If a scoring thread shared this core, the other
    scoring threads of torch or onnxruntime would busy-wait for it.
    """
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() else max(1, (os.cpu_count() or 2) - 1)


def collect_and_freeze() -> None:
    """Free the replaced model, return its memory to the system, and exclude all objects from collections.

    Under load, the collector would scan the objects, mainly torch's modules, every 2 seconds and block all
    requests for 0.1 seconds. Without `malloc_trim`, glibc keeps the freed memory.
    """
    gc.unfreeze()  # else cycles of a replaced model, frozen before, would stay in memory
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
