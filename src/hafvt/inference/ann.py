"""`hafvt index`: builds an approximate nearest neighbor index of a large catalog and measures its recall."""

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
from hafvt.files import write_manifest
from hafvt.folders import atomic_folder
from hafvt.inference.added_items import with_added_items
from hafvt.inference.candidates import (
    FORMAT,
    INDEX,
    FaissCandidateGenerator,
    file_name,
    import_faiss,
    model_state,
)
from hafvt.inference.histories import user_history
from hafvt.inference.recommendations import Recommendations
from hafvt.inference.recommender import Recommender
from hafvt.inference.torch_scorer import TorchScorer
from hafvt.progress import peak_memory_gib, progress
from hafvt.settings import Folder, PositiveCount, check_arguments
from hafvt.training.run import histories_of, open_run

# Items of a domain; in smaller ones, candidates would be a large part of all items.
MIN_ITEMS_TO_BUILD = 5_000
K = 10  # the measured recall is recall@K
PROMISED_RECALL = 0.99
TARGET_RECALL = 0.995  # no further cells are probed above it; higher than promised, as it is an estimate
MIN_PROBES = 8  # cells that are probed at least


@dataclass(frozen=True)
class IndexSummary:
    """What `index` built and measured.

    Attributes:
        recall: by domain, the fraction of the exact ten best items that the index finds.
        cells: by domain, the number of cells into which its vectors are grouped.
        probes: by domain and modality, the number of cells that a search reads.
        num_histories: number of histories that the recall is measured on.
        seconds: duration of building, without measuring.
        mib: size of the index, on disk and in memory.
        peak_gib: most memory of the process while building, including the model.
        folder: where the index is.
    """

    recall: dict[str, float]
    cells: dict[str, int]
    probes: dict[str, dict[str, int]]
    num_histories: int
    seconds: float
    mib: float
    peak_gib: float
    folder: Path

    def __str__(self) -> str:
        """Return one line per domain, and one about time, memory and disk."""
        lines = []
        for name, recall in self.recall.items():
            probes = ", ".join(f"{count:,} ({modality})" for modality, count in self.probes[name].items())
            lines.append(
                f"{name}: recall@{K} {recall:.2%} of the exact results on {self.num_histories} histories; "
                f"probes {probes} of {self.cells[name]:,} cells"
                + ("" if recall >= PROMISED_RECALL else "  LOW: remove the folder to score all items")
            )
        cost = f"{self.seconds:,.0f} s, {self.mib:,.0f} MiB, at most {self.peak_gib:.1f} GiB while building"
        return "\n".join([*lines, f"{cost}; wrote {self.folder}"])


@check_arguments
def index(
    run: Folder, *, histories: PositiveCount = 500, data: str | Path | Dataset | None = None
) -> IndexSummary:
    """Build an index of a large catalog, so that recommending does not score every item.

    The index selects a few thousand candidates, and the model scores these exactly. It is used in domains
    of at least 200,000 items. Build it again after training the model again or adding items. Install it with
    pip install 'hafvt[index]'.

    Example: hafvt index runs/hafvt

    Args:
        run: the folder that train wrote; the index is written to its folder `index`.
        histories: number of users whose recommendations are compared with the exact ones.
        data: the dataset, if it has moved since training.

    Raises:
        HafvtError: there is no finished run of hafvt or no domain that is large enough, or faiss is missing.
    """
    faiss = import_faiss()
    trained_run, catalog = with_added_items(open_run(run, data))
    folder, state = trained_run.folder / "index", model_state(trained_run)
    models, modalities = trained_run.models, trained_run.model.modalities
    if not trained_run.model.can_index:
        raise HafvtError(f"{run}: {trained_run.name} has no index: it scores all items; only hafvt has one")
    domains = [i for i, domain in enumerate(catalog.domains) if len(domain) >= MIN_ITEMS_TO_BUILD]
    if not domains:
        raise HafvtError(
            f"no domain of {trained_run.folder} has {MIN_ITEMS_TO_BUILD:,} items: scoring all items "
            "is as fast"
        )
    with atomic_folder(folder, INDEX, overwrite=True) as temporary:
        start_time, indexes = time.monotonic(), dict[int, list[Any]]()
        with progress("index", len(domains) * len(modalities), "tables") as advance, torch.inference_mode():
            for domain in domains:
                indexes[domain] = []
                for table, _ in models[domain].branch_vectors(domain):
                    indexes[domain].append(build_index(table.numpy()))
                    advance()
        seconds = time.monotonic() - start_time

        scorer = TorchScorer(trained_run)
        exclude_seen = (True,) * len(catalog.domains)
        exact = Recommender(scorer, catalog, exclude_seen)
        approximate = Recommender(scorer, catalog, exclude_seen, FaissCandidateGenerator(models, indexes))
        sample = sample_histories(histories_of(trained_run, data), histories)
        recalls, cells, probes = {}, {}, {}
        for domain in domains:
            name = catalog.domains[domain].name
            expected = best_ids(exact, sample, name, "exact results")

            def recall(name: str = name, expected: list[set[str]] = expected) -> float:
                actual = best_ids(approximate, sample, name, "index results")
                pairs = zip(expected, actual, strict=True)
                return float(np.mean([len(e & a) / max(len(e), 1) for e, a in pairs]))

            recalls[name] = choose_probes(indexes[domain], recall)
            cells[name] = indexes[domain][0].nlist
            probes[name] = {m: index.nprobe for m, index in zip(modalities, indexes[domain], strict=True)}

        for domain, domain_indexes in indexes.items():
            for modality, index in enumerate(domain_indexes):
                # Python writes the bytes, as faiss does not report a full disk.
                content = faiss.serialize_index(index).data
                (temporary / file_name(domain, modality)).write_bytes(content)
        mib = sum(path.stat().st_size for path in temporary.iterdir()) / 2**20
        manifest = {"model": state, "recall": recalls, "probes": probes}
        write_manifest(temporary / INDEX.marker, FORMAT, manifest)
    return IndexSummary(recalls, cells, probes, len(sample), seconds, mib, peak_memory_gib(), folder)


def build_index(vectors: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Return a faiss index of vectors, (items, d), by inner product.

    The index groups the vectors into cells around 2 * sqrt(items) means and stores 8 bits per number. HNSW
    takes minutes to build instead of seconds, and its recall is low with the many equal vectors of items
    without a picture.
    """
    faiss = import_faiss()
    num_items, width = vectors.shape
    cells = max(1, min(int(2 * num_items**0.5), num_items // 39))  # faiss asks for 39 vectors per mean
    index = faiss.index_factory(width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64
    index.train(vectors)
    index.add(vectors)
    return index


def choose_probes(indexes: list[Any], measure_recall: Callable[[], float]) -> float:
    """Set how many cells each index probes: as few as `TARGET_RECALL` permits, as probing takes the time.

    It doubles the number for all indexes until the recall suffices, then halves it for one index at a time.

    Args:
        indexes: the indexes of the modalities of one domain; the function sets their `nprobe`.
        measure_recall: returns the recall with the present numbers.

    Returns:
        The recall with the chosen numbers; below the target only if all cells are probed.
    """
    cells = indexes[0].nlist
    count, recall = 0, 0.0
    while recall < TARGET_RECALL and count < cells:
        count = min(max(2 * count, MIN_PROBES), cells)
        for index in indexes:
            index.nprobe = count
        recall = measure_recall()
    for index in indexes:
        while index.nprobe > MIN_PROBES and recall >= TARGET_RECALL:
            previous, index.nprobe = index.nprobe, index.nprobe // 2
            lower_recall = measure_recall()
            if lower_recall < TARGET_RECALL:
                index.nprobe = previous
                break
            recall = lower_recall
    return recall


def sample_histories(data: Dataset, count: int) -> list[list[str]]:
    """Return the histories, as item ids, of users sampled with a fixed seed."""
    users = np.random.default_rng(0).permutation(data.num_users)[:count]
    return [user_history(data, user) for user in users.tolist()]


def best_ids(recommender: Recommender, histories: list[list[str]], domain: str, title: str) -> list[set[str]]:
    """Return the ids of the `K` best items for each history, with progress: a million items take a while."""
    results: list[Recommendations] = []
    with progress(f"{title}, {domain}", len(histories), "histories") as advance:
        for start in range(0, len(histories), 32):
            results += recommender.recommend(histories[start : start + 32], domain, K)
            advance(len(histories[start : start + 32]))
    return [{scored.item.item_id for scored in result.items} for result in results]
