"""`hafvt index`: builds an approximate nearest neighbor index of a large catalog and measures it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hafvt.data.dataset import Bool, Dataset, Int64
from hafvt.errors import HafvtError
from hafvt.folders import atomic_folder
from hafvt.inference.added_items import with_added_items
from hafvt.inference.candidates import DomainIndex, FaissCandidateGenerator, import_faiss
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.index_files import (
    INDEX,
    PROMISED_RECALL,
    DomainReport,
    IndexManifest,
    domain_index,
    write_index,
)
from hafvt.inference.recommender import Recommender
from hafvt.inference.scorer import Float32
from hafvt.inference.top_candidates import CandidateRequest, top_candidates
from hafvt.inference.torch_scorer import TorchScorer, model_state
from hafvt.models.base import ScoreFactors
from hafvt.ops.top_k import top_k_columns
from hafvt.progress import peak_memory_gib, progress
from hafvt.settings import Folder, PositiveCount, check_arguments
from hafvt.training.run import histories_of, open_run

# Items of a domain; in smaller ones, candidates would be a large part of all items.
MIN_ITEMS_TO_BUILD = 5_000
K = 10  # the measured recall is recall@K
DEPTH = 1_000  # exact best items whose scores are compared
TARGET_RECALL = 0.995  # no further cells are probed above it; higher than promised, as it is an estimate
NUM_PER_BRANCH = (100, 200, 400)  # items that a branch proposes; the next number if the recall is low
MIN_PROBES = 8  # cells that are probed at least
SAMPLE_SIZE = 32_768  # items of the sample for the denominators, about
POINTS_PER_CELL = 64  # items by which faiss finds the mean of a cell
ROW_CHUNK = 65_536  # items whose vectors are read at a time
NO_FACTORS = ScoreFactors(1.0, 0.0)  # of scores that are dot products


@dataclass(frozen=True)
class IndexSummary:
    """What `index` built and measured.

    Attributes:
        domains: by name, what was measured.
        seconds: duration of building, without measuring.
        mib: size of the index, on disk and in memory.
        peak_gib: most memory of the process while building, including the model.
        folder: where the index is.
    """

    domains: dict[str, DomainReport]
    seconds: float
    mib: float
    peak_gib: float
    folder: Path

    @property
    def recall(self) -> dict[str, float]:
        """By domain, the fraction of the exact ten best items that the index finds."""
        return {name: report.recall for name, report in self.domains.items()}

    def __str__(self) -> str:
        """Return one line per domain, and one about time, memory and disk."""
        lines = []
        for name, report in self.domains.items():
            probes = ", ".join(f"{count:,} ({modality})" for modality, count in report.probes.items())
            low = f"  LOW, below {PROMISED_RECALL:.0%}: all items of {name} are scored"
            lines.append(
                f"{name}: recall@{K} {report.recall:.2%} of the exact results on {report.num_histories} "
                f"validation histories, scores within {report.largest_error:.2g}; "
                f"probes {probes} of {report.cells:,} cells"
                + (low if report.recall < PROMISED_RECALL else "")
            )
        cost = f"{self.seconds:,.0f} s, {self.mib:,.0f} MiB, at most {self.peak_gib:.1f} GiB while building"
        return "\n".join([*lines, f"{cost}; wrote {self.folder}"])


@check_arguments
def index(
    run: Folder, *, histories: PositiveCount = 500, data: str | Path | Dataset | None = None
) -> IndexSummary:
    """Build an index of a large catalog, so that recommending does not score every item.

    The index selects a few hundred candidates, and the model scores these. It is used in domains of at least
    100,000 items where its recall is at least 99 %. Build it again after training the model again or adding
    items. Install it with pip install 'hafvt[index]'.

    Example: hafvt index runs/hafvt

    Args:
        run: the folder that train wrote; the index is written to its folder `index`.
        histories: number of validation histories whose recommendations are compared with the exact ones.
        data: the dataset, if it has moved since training.

    Raises:
        HafvtError: there is no finished run of hafvt or sasrec or no domain that is large enough, or faiss is
            missing.
    """
    import_faiss()
    trained_run, catalog = with_added_items(open_run(run, data))
    folder, model = trained_run.folder / "index", trained_run.model
    if not model.can_index:
        raise HafvtError(
            f"{run}: {trained_run.name} has no index: it scores all items; only hafvt and sasrec have one"
        )
    domains = [i for i, domain in enumerate(catalog.domains) if len(domain) >= MIN_ITEMS_TO_BUILD]
    if not domains:
        raise HafvtError(
            f"no domain of {trained_run.folder} has {MIN_ITEMS_TO_BUILD:,} items: scoring all items "
            "is as fast"
        )
    modalities, scorer = model.modalities or ("id",), TorchScorer(trained_run)
    factors = trained_run.models[domains[0]].score_factors()
    indexes: dict[int, DomainIndex] = {}
    with atomic_folder(folder, INDEX, overwrite=True) as temporary:
        start_time = time.monotonic()
        with progress("index", len(domains) * len(modalities), "tables") as advance:
            for domain in domains:
                indexes[domain] = build_domain(scorer, catalog, domain, len(modalities), factors, advance)
        seconds = time.monotonic() - start_time
        sample = validation_histories(histories_of(trained_run, data), catalog, histories)
        exclude_seen = trained_run.data.exclude_seen(trained_run.candidates)
        reports = {}
        for domain in domains:
            name = catalog.domains[domain].name
            expected = exact_results(Recommender(scorer, catalog, exclude_seen), sample, domain)
            for count in NUM_PER_BRANCH:
                one = replace(indexes[domain], num_per_branch=count)

                def measure(
                    one: DomainIndex = one, domain: int = domain, expected: list[ExactResult] = expected
                ) -> tuple[float, float]:
                    generator = FaissCandidateGenerator(scorer, {domain: one})
                    return compare(generator, scorer, sample, domain, expected)

                if choose_probes(one.searchers, lambda: measure()[0]) >= TARGET_RECALL:
                    break
            recall, largest_error = measure()
            reports[name] = DomainReport(
                recall=recall,
                largest_error=largest_error,
                num_histories=len(sample),
                num_per_branch=one.num_per_branch,
                cells=one.searchers[0].nlist,
                probes={m: s.nprobe for m, s in zip(modalities, one.searchers, strict=True)},
                sample_size={m: len(s.columns) for m, s in zip(modalities, one.samples, strict=False)},
            )
        manifest = IndexManifest(
            model=model_state(trained_run), domains=reports, **(factors or NO_FACTORS)._asdict()
        )
        write_index(temporary, indexes, manifest)
        mib = sum(path.stat().st_size for path in temporary.iterdir()) / 2**20
    return IndexSummary(reports, seconds, mib, peak_memory_gib(), folder)


def build_domain(
    scorer: TorchScorer,
    catalog: ItemCatalog,
    domain: int,
    num_modalities: int,
    factors: ScoreFactors | None,
    advance: Callable[[int], None],
) -> DomainIndex:
    """Return the index of a domain, with samples if there are `factors`."""
    items = catalog.domains[domain]
    is_trained = catalog.train_counts[items.start : items.stop] > 0
    searchers, samples = [], []
    for modality in range(num_modalities):

        def read_rows(columns: Int64, modality: int = modality) -> Float32:
            return scorer.item_rows(columns + items.start, domain)[modality]

        searchers.append(build_searcher(read_rows, len(items)))
        if factors is not None:
            samples.append(draw_sample(cells_of(searchers[-1]), is_trained, SAMPLE_SIZE))
        advance(1)
    return domain_index(scorer, catalog, domain, searchers, samples, factors or NO_FACTORS)


def build_searcher(read_rows: Callable[[Int64], Float32], num_items: int) -> Any:
    """Return a faiss index of the vectors of items, by inner product.

    The index groups the vectors into cells around 2 * sqrt(items) means and stores 8 bits per number. HNSW
    takes minutes to build instead of seconds, and its recall is low with the many equal vectors of items
    without a picture.

    Args:
        read_rows: returns the vectors of columns, (n,) -> (n, d).
        num_items: number of items.
    """
    faiss = import_faiss()
    cells = max(1, min(int(2 * num_items**0.5), num_items // 39))  # faiss asks for 39 vectors per mean
    count = min(num_items, POINTS_PER_CELL * cells)
    points = read_rows(np.sort(np.random.default_rng(0).permutation(num_items)[:count]))
    searcher = faiss.index_factory(points.shape[1], f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    searcher.cp.max_points_per_centroid = POINTS_PER_CELL
    searcher.train(points)
    for start in range(0, num_items, ROW_CHUNK):
        searcher.add(read_rows(np.arange(start, min(start + ROW_CHUNK, num_items))))
    return searcher


def cells_of(searcher: Any) -> list[Int64]:
    """Return the items of each cell of a faiss index."""
    lists, faiss = searcher.invlists, import_faiss()
    sizes = [lists.list_size(cell) for cell in range(searcher.nlist)]
    return [
        np.array(faiss.rev_swig_ptr(lists.get_ids(cell), size)) if size else np.empty(0, dtype=np.int64)
        for cell, size in enumerate(sizes)
    ]


def draw_sample(strata: Sequence[Int64], is_counted: Bool, size: int) -> tuple[Int64, Float32]:
    """Draw about `size` items from all strata, in proportion, with a fixed seed.

    Args:
        strata: the items of each stratum.
        is_counted: items that may be drawn.
        size: number of items; each stratum gets at least one.

    Returns:
        The items, (n,), ascending, and for each the size of its stratum by the number drawn from it.
    """
    random, share = np.random.default_rng(0), size / max(int(is_counted.sum()), 1)
    items, weights = [], []
    for stratum in strata:
        counted = np.sort(stratum[is_counted[stratum]])
        if not len(counted):
            continue
        count = min(len(counted), max(1, round(share * len(counted))))
        items.append(random.choice(counted, count, replace=False))
        weights.append(np.full(count, len(counted) / count, dtype=np.float32))
    if not items:
        return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    order = np.argsort(columns := np.concatenate(items))
    return columns[order], np.concatenate(weights)[order]


def choose_probes(searchers: list[Any], measure_recall: Callable[[], float]) -> float:
    """Set how many cells each index probes: as few as `TARGET_RECALL` permits, as probing takes the time.

    It doubles the number for all indexes until the recall suffices, then halves it for one index at a time.

    Args:
        searchers: the faiss indexes of the modalities of one domain; the function sets their `nprobe`.
        measure_recall: returns the recall with the present numbers.

    Returns:
        The recall with the chosen numbers; below the target only if all cells are probed.
    """
    cells = searchers[0].nlist
    count, recall = 0, 0.0
    while recall < TARGET_RECALL and count < cells:
        count = min(max(2 * count, MIN_PROBES), cells)
        for searcher in searchers:
            searcher.nprobe = count
        recall = measure_recall()
    for searcher in searchers:
        while searcher.nprobe > MIN_PROBES and recall >= TARGET_RECALL:
            previous, searcher.nprobe = searcher.nprobe, searcher.nprobe // 2
            lower_recall = measure_recall()
            if lower_recall < TARGET_RECALL:
                searcher.nprobe = previous
                break
            recall = lower_recall
    return recall


def validation_histories(data: Dataset, catalog: ItemCatalog, count: int) -> list[Int64]:
    """Return histories before validation targets, sampled with a fixed seed, as indices in a catalog.

    Without validation targets, they are training histories.
    """
    random = np.random.default_rng(0)
    if len(data.valid):
        stops = np.sort(random.permutation(data.valid)[:count])
        users = data.users_at(stops)
    else:
        users = np.sort(random.permutation(data.num_users)[:count])
        stops = data.offsets[users] + data.train_lengths[users]
    ids = data.item_table["item_id"]
    parts = [np.asarray(data.items[data.offsets[u] : stop]) for u, stop in zip(users, stops, strict=True)]
    return [catalog.indices(ids.gather(part).to_list()).indices for part in parts if len(part)]


class ExactResult(NamedTuple):
    """The exact best items of a history.

    Attributes:
        seen: columns of the history that are not recommended.
        columns: (DEPTH,) the best columns, best first.
        scores: (DEPTH,).
    """

    seen: Int64
    columns: Int64
    scores: Float32


def exact_results(exact: Recommender, histories: list[Int64], domain: int) -> list[ExactResult]:
    """Return the exact best items for histories, with progress: a million items take a while."""
    results, items = list[ExactResult](), exact.catalog.domains[domain]
    chunk = max(1, 16_000_000 // len(items))
    with progress(f"exact results, {items.name}", len(histories), "histories") as advance:
        for start in range(0, len(histories), chunk):
            part = histories[start : start + chunk]
            for history, scores in zip(part, exact.scores(part, domain), strict=True):
                seen = history[(history >= items.start) & (history < items.stop)] - items.start
                seen = seen if exact.exclude_seen[domain] else seen[:0]
                best = top_k_columns(scores, DEPTH, seen)
                results.append(ExactResult(seen, best, scores[best]))
            advance(len(part))
    return results


def compare(
    generator: FaissCandidateGenerator,
    scorer: TorchScorer,
    histories: list[Int64],
    domain: int,
    expected: list[ExactResult],
) -> tuple[float, float]:
    """Return recall@K of an index, and the largest difference of a score of its K best items.

    An item is among the K best if its exact score is not below the K-th exact one: ties count as equal.
    Of an item below the `DEPTH` exact best ones, the exact score is at most the last of these.
    """
    seen, recalls, largest_error = [result.seen for result in expected], [], 0.0
    none = [np.empty(0, dtype=np.int64)] * len(seen)
    best = top_candidates(generator, scorer, CandidateRequest(histories, domain, K, seen, none))
    for row, exact in enumerate(expected):
        if row not in best:  # all items are scored
            recalls.append(1.0)
            continue
        columns, scores = best[row]
        order = np.argsort(exact.columns)
        places = order[np.searchsorted(exact.columns, columns, sorter=order).clip(max=len(order) - 1)]
        exact_scores = np.where(exact.columns[places] == columns, exact.scores[places], exact.scores[-1])
        recalls.append(float((exact_scores >= exact.scores[K - 1]).mean()))
        largest_error = max(largest_error, float(np.abs(scores - exact_scores).max()))
    return float(np.mean(recalls)) if recalls else 1.0, largest_error
