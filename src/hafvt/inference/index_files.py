"""The folder of an index: what `hafvt index` wrote, opened with or without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from hafvt.data.dataset import Int64
from hafvt.errors import HafvtError, warn
from hafvt.files import explained_read_errors, read_manifest, write_manifest
from hafvt.folders import FolderKind
from hafvt.inference.candidates import DomainIndex, FaissCandidateGenerator, Sample, import_faiss
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.scorer import BranchScorer, Float32

FORMAT = 4
INDEX = FolderKind("an index", "about.json", ("*.faiss", "*.npz"))
MIN_ITEMS_TO_USE = 100_000  # items of a domain; all items of smaller domains are scored, which is fast enough
PROMISED_RECALL = 0.99  # with a lower recall, all items are scored


class DomainReport(BaseModel):
    """What was measured of the index of one domain.

    Attributes:
        recall: the fraction of the exact ten best items that the index finds.
        largest_error: the largest difference of the score of a recommended item from the exact one.
        num_histories: number of validation histories that both are measured on.
        num_per_branch: number of items that each branch proposes beyond k and the excluded items.
        cells: number of cells into which the vectors are grouped.
        probes: by modality, the number of cells that a search reads.
        sample_size: by modality, the number of items of the sample for the denominators; empty if scores are
            dot products.
    """

    recall: float
    largest_error: float
    num_histories: int
    num_per_branch: int
    cells: int
    probes: dict[str, int]
    sample_size: dict[str, int]


class IndexManifest(BaseModel):
    """What about.json holds besides format number and hashes.

    Attributes:
        model: hashes of the model and its items.
        domains: by name.
        cold_item_boost: see `DomainIndex`.
        log_repeat_factor: see `DomainIndex`.
    """

    model: dict[str, Any]
    domains: Annotated[dict[str, DomainReport], Field(min_length=1)]
    cold_item_boost: float
    log_repeat_factor: float


def write_index(folder: Path, indexes: dict[int, DomainIndex], manifest: IndexManifest) -> None:
    """Write the files of an index into a folder."""
    faiss = import_faiss()
    for domain, index in indexes.items():
        for modality, searcher in enumerate(index.searchers):
            # Python writes the bytes, as faiss does not report a full disk.
            content = faiss.serialize_index(searcher).data
            (folder / faiss_name(domain, modality)).write_bytes(content)
        for modality, sample in enumerate(index.samples):
            np.savez(folder / sample_name(domain, modality), columns=sample.columns, weights=sample.weights)
    write_manifest(folder / INDEX.marker, FORMAT, manifest.model_dump(mode="json"))


def open_index(
    folder: Path,
    scorer: BranchScorer,
    catalog: ItemCatalog,
    remedy: str,
    model_state: Callable[[], dict[str, Any]] | None = None,
) -> FaissCandidateGenerator | None:
    """Open an index; None without a large domain whose recall is at least `PROMISED_RECALL`.

    Args:
        folder: of the index.
        scorer: the model.
        catalog: its items.
        remedy: what to do if the index is out of date or damaged.
        model_state: returns hashes of the model and its items, which those of the index equal.

    Raises:
        HafvtError: the index is out of date or damaged, or faiss is missing.
    """
    large = [n for n, domain in enumerate(catalog.domains) if len(domain) >= MIN_ITEMS_TO_USE]
    if not large:
        return None
    content = read_manifest(folder / INDEX.marker, FORMAT, remedy)
    with explained_read_errors(folder / INDEX.marker, remedy):
        manifest = IndexManifest.model_validate(content)
    if model_state is not None and manifest.model != model_state():
        raise HafvtError(f"{folder}: the model or its items changed since the index was built: {remedy}")
    indexes, faiss = {}, import_faiss()
    for number in large:
        name = catalog.domains[number].name
        report = manifest.domains.get(name)
        if report is None:
            continue
        if report.recall < PROMISED_RECALL:
            warn(
                f"{folder}: recall@10 in {name} is {report.recall:.2%}, below {PROMISED_RECALL:.0%}, so all "
                "items are scored: remove the folder to hide this message"
            )
            continue
        with explained_read_errors(folder, remedy):
            count = len(report.probes)
            searchers = [faiss.read_index(str(folder / faiss_name(number, m))) for m in range(count)]
            samples = []
            for modality in range(len(report.sample_size)):
                with np.load(folder / sample_name(number, modality), allow_pickle=False) as arrays:
                    samples.append((arrays["columns"], arrays["weights"]))
        one = domain_index(scorer, catalog, number, searchers, samples, manifest)
        indexes[number] = replace(one, num_per_branch=report.num_per_branch)
    return FaissCandidateGenerator(scorer, indexes) if indexes else None


def domain_index(
    scorer: BranchScorer,
    catalog: ItemCatalog,
    number: int,
    searchers: list[Any],
    samples: Sequence[tuple[Int64, Float32]],
    factors: Any,
) -> DomainIndex:
    """Return the index of a domain.

    Args:
        scorer: the model.
        catalog: its items.
        number: index of the domain.
        searchers: by modality, a faiss index.
        samples: by modality, the columns and weights of a `Sample`.
        factors: has `cold_item_boost` and `log_repeat_factor`, see `DomainIndex`.
    """
    domain = catalog.domains[number]
    full_samples = []
    for modality, (columns, weights) in enumerate(samples):
        vectors = scorer.item_rows(columns + domain.start, number)[modality]
        norm = float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max(initial=0)))
        full_samples.append(Sample(columns, weights, np.ascontiguousarray(vectors), norm))
    is_cold = catalog.train_counts[domain.start : domain.stop] == 0
    return DomainIndex(
        domain.start, searchers, full_samples, is_cold, factors.cold_item_boost, factors.log_repeat_factor
    )


def faiss_name(domain: int, modality: int) -> str:
    """Return the file name of the faiss index of a domain and a modality, by their positions."""
    return f"domain{domain}-modality{modality}.faiss"


def sample_name(domain: int, modality: int) -> str:
    """Return the file name of the sample of a domain and a modality, by their positions."""
    return f"domain{domain}-modality{modality}-sample.npz"
