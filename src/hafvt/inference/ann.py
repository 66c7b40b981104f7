"""`hafvt index`: an approximate index of a large catalog, and how near it comes to the exact answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.files import atomic_folder, read_json, sha256, write_json
from hafvt.inference.added_items import folder_of as additions_of
from hafvt.inference.added_items import with_added_items
from hafvt.inference.recommender import Recommendations, Recommender
from hafvt.inference.shortlist import FaissShortlist, faiss
from hafvt.inference.torch_scorer import TorchScorer
from hafvt.models.hafvt import HafVt
from hafvt.progress import peak_memory_gib, progress
from hafvt.training.run import Run, fingerprint, open_run

FORMAT = 1
LARGE = 200_000  # items of a domain; smaller ones are ranked exactly, which is quick enough
LEAST = 5_000  # items of a domain; of fewer, the candidates would be a great part
K = 10  # whose recall is measured
ENOUGH = 0.995  # recall at which no further cells are probed: some way above the 99 % that are promised
PROBES = 8  # cells that are probed at first


@dataclass(frozen=True)
class Indexed:
    """What an index is like.

    Attributes:
        recall: the share of the exact ten best items that it finds, by domain; over `histories` people.
        cells: in which a domain's vectors are gathered, by domain.
        probes: how many of them are looked into, by domain and modality.
        histories: how many people's histories were asked with.
        seconds: that building took, without the measurement.
        mib: of the index, on disk and in memory.
        peak_gib: the most memory that building took, the model included.
        folder: where it is.
    """

    recall: dict[str, float]
    cells: dict[str, int]
    probes: dict[str, dict[str, int]]
    histories: int
    seconds: float
    mib: float
    peak_gib: float
    folder: Path

    def __str__(self) -> str:
        """A line for each domain, then what it took."""
        lines = [
            f"{name}: recall@{K} {recall:.2%} of the exact answer on {self.histories} histories; looks into "
            + ", ".join(f"{count:,} ({modality})" for modality, count in self.probes[name].items())
            + f" of {self.cells[name]:,} cells"
            + ("" if recall >= 0.99 else "  LOW: remove the folder, then all items are ranked")
            for name, recall in self.recall.items()
        ]
        took = f"{self.seconds:,.0f} s, {self.mib:,.0f} MiB, at most {self.peak_gib:.1f} GiB while building"
        return "\n".join([*lines, f"{took}; wrote {self.folder}"])


def index(run: str | Path, *, histories: int = 500, data: str | Path | Dataset | None = None) -> Indexed:
    """Builds an index of a large catalog, so that recommending does not rank every item.

    Recommendations then come from a few thousand candidates, which are found approximately and scored
    exactly. It is used in domains of 200,000 items and more; below, all items are ranked as before. Build it
    again when the model was trained anew or items were added. Needs pip install 'hafvt[index]'.

    Example: hafvt index runs/hafvt

    Args:
        run: the folder that train wrote; the index goes into its folder index, in place of an older one.
        histories: how many people's histories its answers are compared with the exact ones for.
        data: the dataset, where it has moved since training.

    Returns:
        How near it comes, and what it took.

    Raises:
        HafvtError: no finished run of hafvt, no domain that is worth it, or faiss is missing.
    """
    if histories < 1:
        raise HafvtError(f"--histories is {histories}: give 1 or more")
    faiss()
    opened, catalog = with_added_items(open_run(run, data))
    models = hafvt_models(opened)
    chosen = [number for number, domain in enumerate(catalog.domains) if len(domain) >= LEAST]
    if not chosen:
        raise HafvtError(
            f"no domain of {opened.folder} has {LEAST:,} items: without an index all are ranked, as quickly"
        )
    begun, built = time.monotonic(), dict[int, list[Any]]()
    with progress("index", len(chosen) * len(models[0].modalities), "tables") as advance:
        for number in chosen:
            built[number], domain = [], catalog.domains[number]
            with torch.inference_mode():
                tables = models[number].items.candidates()
            for table, _ in tables:
                built[number].append(build(table[domain.start : domain.stop].numpy()))
                advance()
    seconds = time.monotonic() - begun
    scorer = TorchScorer(opened)
    exact, near = Recommender(scorer, catalog), Recommender(scorer, catalog, FaissShortlist(models, built))
    asked = some_histories(opened.data, histories)
    found, cells, probes = {}, {}, {}
    for number in chosen:
        domain = catalog.domains[number]
        answers = together(exact, asked, domain.name, "exact answers")

        def reached(name: str = domain.name, answers: list[Recommendations] = answers) -> float:
            return recall(answers, together(near, asked, name, "near answers"))

        found[domain.name] = tune(built[number], reached)
        cells[domain.name] = built[number][0].nlist
        names = models[number].modalities
        probes[domain.name] = {name: one.nprobe for name, one in zip(names, built[number], strict=True)}
    folder = opened.folder / "index"
    with atomic_folder(folder, overwrite=True) as temporary:
        for number, of_domain in built.items():
            for modality, one in enumerate(of_domain):
                faiss().write_index(one, str(temporary / file_name(number, modality)))
        files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        mib = sum(path.stat().st_size for path in temporary.iterdir()) / 2**20
        about = {"format": FORMAT, "of": state(opened), "files": files, "recall": found, "probes": probes}
        write_json(temporary / "about.json", about)
    return Indexed(found, cells, probes, len(asked), seconds, mib, peak_memory_gib(), folder)


def open_shortlist(run: Run) -> FaissShortlist | None:
    """Opens the index of a run for its large domains; None where it has none of them, or no index.

    Args:
        run: with the items that were added, see `with_added_items`.

    Raises:
        HafvtError: the index is of other weights or items, or damaged, or faiss is missing.
    """
    folder = run.folder / "index"
    if not folder.exists() or not isinstance(run.model, HafVt):
        return None
    chosen = [number for number, domain in enumerate(run.model.domains) if len(domain) >= LARGE]
    if not chosen:
        return None
    remedy = f"build it anew with hafvt index {run.folder}, or remove {folder}"
    about = read_json(folder / "about.json")
    if about.get("format") != FORMAT or about.get("of") != state(run):
        raise HafvtError(f"{folder}: the model or its items changed since it was built: {remedy}")
    models, indexes = hafvt_models(run), {}
    for number in chosen:
        names = [file_name(number, modality) for modality in range(len(models[number].modalities))]
        for path in (folder / name for name in names):
            if not path.exists() or sha256(path) != about["files"].get(path.name):
                raise HafvtError(f"{path} is missing or damaged: {remedy}")
        indexes[number] = [faiss().read_index(str(folder / name)) for name in names]
    return FaissShortlist(models, indexes)


def hafvt_models(run: Run) -> list[HafVt]:
    """Returns the models of a run.

    Raises:
        HafvtError: they are of another kind.
    """
    found = [model for model in run.models if isinstance(model, HafVt)]
    if len(found) < len(run.models):
        raise HafvtError(f"{run.folder}: an index serves hafvt alone; {run.name} ranks all items")
    return found


def build(rows: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Returns a faiss index of vectors, (items, d), by inner product.

    Vectors are gathered in cells around 2 * sqrt(items) means and kept with 8 bits per number. A graph
    (HNSW) takes minutes to build where this takes seconds, and falters on the many equal vectors of items
    without a picture.
    """
    count, width = rows.shape
    cells = max(1, min(int(2 * count**0.5), count // 39))  # faiss wants 39 vectors for each mean
    made = faiss().index_factory(width, f"IVF{cells},SQ8", faiss().METRIC_INNER_PRODUCT)
    made.cp.max_points_per_centroid = 64
    made.train(rows)
    made.add(rows)
    return made


def tune(indexes: list[Any], reached: Callable[[], float]) -> float:
    """Chooses how many cells to look into, by powers of two: few, as that is what takes time.

    First as many for all indexes as it takes, then less for each that can do with less.

    Args:
        indexes: of the modalities of one domain; their `nprobe` is set.
        reached: the recall with what is set.

    Returns:
        The recall that is reached, at least `ENOUGH` where all cells are enough.
    """
    cells = indexes[0].nlist
    count, found = min(PROBES, cells), 0.0
    while True:
        for one in indexes:
            one.nprobe = count
        found = reached()
        if found >= ENOUGH or count == cells:
            break
        count = min(2 * count, cells)
    for one in indexes:
        while one.nprobe > PROBES and found >= ENOUGH:
            before, one.nprobe = one.nprobe, one.nprobe // 2
            less = reached()
            if less < ENOUGH:
                one.nprobe = before
                break
            found = less
    return found


def file_name(domain: int, modality: int) -> str:
    """Returns the name of the file for a domain and a modality: by number, whatever they are called."""
    return f"domain{domain}-modality{modality}.faiss"


def state(run: Run) -> dict[str, Any]:
    """Returns hashes that change with the weights or the catalog."""
    paths = [*run.folder.glob("model*.safetensors"), *additions_of(run).rglob("*")]
    hashes = {str(path.relative_to(run.folder)): sha256(path) for path in sorted(paths) if path.is_file()}
    return {"dataset": fingerprint(run.data), "files": hashes}


def some_histories(data: Dataset, most: int) -> list[list[str]]:
    """Returns the histories, as item ids, of people drawn at random, always the same."""
    users = np.random.default_rng(0).permutation(data.num_users)[:most]
    ids = data.item_table["item_id"]
    return [
        ids.gather(np.asarray(data.items[data.offsets[user] : data.offsets[user + 1]], np.int64)).to_list()
        for user in users
    ]


def together(
    recommender: Recommender, asked: list[list[str]], domain: str, title: str
) -> list[Recommendations]:
    """Returns recommendations, with progress: at a million items, exact ones take a while."""
    found = []
    with progress(f"{title}, {domain}", len(asked), "histories") as advance:
        for start in range(0, len(asked), 32):
            found += recommender.recommend(asked[start : start + 32], domain, K)
            advance(len(asked[start : start + 32]))
    return found


def recall(exact: list[Recommendations], near: list[Recommendations]) -> float:
    """Returns the mean share of the exactly best items that were found."""
    shares = []
    for whole, part in zip(exact, near, strict=True):
        best = {one.item.item_id for one in whole.items}
        shares.append(len(best & {one.item.item_id for one in part.items}) / max(len(best), 1))
    return float(np.mean(shares))
