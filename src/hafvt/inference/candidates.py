"""Candidate generation: a faiss index selects the items of a large domain that HAF-VT scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hafvt.data.batches import Batch
from hafvt.data.dataset import Int64
from hafvt.errors import HafvtError, missing_package
from hafvt.files import explained_read_errors, read_manifest, sha256
from hafvt.folders import FolderKind
from hafvt.inference.added_items import added_items_folder
from hafvt.inference.scorer import Float32, request_times
from hafvt.models.base import BranchQuery, Model
from hafvt.ops.catalog_softmax import log_subtract_exp
from hafvt.ops.tiles import MAX_SAFE_LOGIT
from hafvt.training.run import Run, fingerprint

FORMAT = 3
INDEX = FolderKind("an index", "about.json", ("*.faiss",))
MIN_ITEMS_TO_USE = 200_000  # items of a domain; all items of smaller domains are scored, which is fast enough
TILE = 8192  # items whose logits are in memory at a time, so that they fit the processor's cache


class FaissCandidateGenerator:
    """Selects promising items of a large domain by approximate search; scores them as `Model.scores` does.

    An item's score is a sum over branches, so an item with one of the best sums is also near the top of at
    least one branch. The softmaxes run over the whole catalog.

    Args:
        models: one for each domain.
        indexes: by domain, a faiss index of the items' vectors for each modality.

    Attributes:
        domains: indices of the domains that have an index.
    """

    def __init__(self, models: Sequence[Model], indexes: dict[int, list[Any]]) -> None:
        self.models, self.indexes, self.domains = models, indexes, frozenset(indexes)

    @torch.inference_mode()
    def generate(
        self, items: Int64, lengths: Int64, domain: int, num_per_branch: int, time: int | None = None
    ) -> tuple[Int64, Float32]:
        """Return candidates for the next item of each history, and their scores; histories as for `Scorer`.

        Args:
            items: (B, T) item indices, right-padded.
            lengths: (B,) number of items of each row without padding.
            domain: index of the domain.
            num_per_branch: number of items that each branch of the model proposes.
            time: of the request, see `Scorer`.

        Returns:
            (B, C) columns of the candidates in the domain, ascending, -1 where a row has fewer than C; and
            their scores, (B, C), -inf where the column is -1.
        """
        times = torch.from_numpy(request_times(time, len(lengths)))
        model, batch = self.models[domain], Batch(torch.from_numpy(items), torch.from_numpy(lengths), times)
        tables = model.branch_vectors(domain)
        queries: list[list[BranchQuery]] = [[] for _ in tables]  # by modality and sequence
        for query in model.branch_queries(batch, domain):
            queries[query.modality].append(query)
        columns = self.search(queries, domain, num_per_branch)
        rows = torch.from_numpy(columns.clip(min=0))  # (B, C)
        total = torch.zeros(rows.shape)
        for (table, softmax_table), modality_queries in zip(tables, queries, strict=True):
            h = torch.stack([query.h for query in modality_queries], dim=1)  # (B, S, d)
            # One history at a time, as the candidates' vectors of all histories take much memory.
            logits = torch.stack([x @ table[row].T for x, row in zip(h, rows, strict=True)])  # (B, S, C)
            # All sequences together: reading the table takes most of the time of a small batch.
            log_partitions = log_partition(h.flatten(0, 1), softmax_table).view(h.shape[:2])  # (B, S)
            for sequence, query in enumerate(modality_queries):
                offset = log_subtract_exp(log_partitions[:, sequence], query.log_subtracted_mass)
                offset = (offset - query.log_weight).masked_fill(query.is_empty, torch.inf)
                total += (logits[:, sequence] - offset[:, None]).exp_()
        candidates = rows + model.domains[domain].start
        scores = model.finish_scores(total, batch, domain, candidates).numpy()
        return columns, np.where(columns < 0, -np.inf, scores).astype(np.float32)

    def search(self, queries: list[list[BranchQuery]], domain: int, num_per_branch: int) -> Int64:
        """Return the best columns of all branches, (B, C), ascending, each once; -1 fills short rows.

        `queries` has for each modality the query of each sequence; the others are as in `generate`.
        """
        import_faiss().omp_set_num_threads(torch.get_num_threads())  # a setting of the calling thread
        proposals = []
        for index, modality_queries in zip(self.indexes[domain], queries, strict=True):
            for query in modality_queries:
                labels = np.full((len(query.h), num_per_branch), -1, dtype=np.int64)
                is_active = ~query.is_empty.numpy()
                if is_active.any():
                    labels[is_active] = index.search(query.h.numpy()[is_active], num_per_branch)[1]
                proposals.append(labels)
        columns = np.sort(np.concatenate(proposals, axis=1), axis=1)
        is_repeated = columns[:, 1:] == columns[:, :-1]
        columns[:, 1:][is_repeated] = -1
        width = max(1, int((columns >= 0).sum(1).max(initial=0)))
        return np.sort(columns, axis=1)[:, -width:]


def log_partition(h: Tensor, table: Tensor) -> Tensor:
    """Return `logsumexp_j(h[i] . table[j])`, (N, d) and (V, d) -> (N,), for vectors of at most unit length.

    Faster than `ops.catalog_softmax.log_partition` for few queries.
    """
    logits = (h @ table[start : start + TILE].T for start in range(0, len(table), TILE))
    if h.norm(dim=1).amax() >= MAX_SAFE_LOGIT:
        return torch.stack([z.logsumexp(1) for z in logits]).logsumexp(0)
    return torch.stack([z.exp_().sum(1) for z in logits]).sum(0).log()


def open_candidate_generator(run: Run) -> FaissCandidateGenerator | None:
    """Open the index of a run, with its added items; None without an index or without large domains.

    Raises:
        HafvtError: the index is out of date or damaged, or faiss is missing.
    """
    folder = run.folder / "index"
    domains = [i for i, domain in enumerate(run.model.domains) if len(domain) >= MIN_ITEMS_TO_USE]
    if not folder.exists() or not run.model.can_index or not domains:
        return None
    remedy = f"build it again with hafvt index {run.folder}, or remove {folder}"
    manifest = read_manifest(folder / INDEX.marker, FORMAT, remedy)
    if manifest.get("model") != model_state(run):
        raise HafvtError(f"{folder}: the model or its items changed since the index was built: {remedy}")
    indexes, faiss = {}, import_faiss()
    with explained_read_errors(folder, remedy):
        for domain in domains:
            names = [file_name(domain, modality) for modality in range(len(run.model.modalities))]
            indexes[domain] = [faiss.read_index(str(folder / name)) for name in names]
    return FaissCandidateGenerator(run.models, indexes)


def file_name(domain: int, modality: int) -> str:
    """Return the file name of the index of a domain and a modality, by their positions."""
    return f"domain{domain}-modality{modality}.faiss"


def model_state(run: Run) -> dict[str, Any]:
    """Return hashes that change with the weights or the items of a run."""
    paths = [*run.folder.glob("model*.safetensors"), *added_items_folder(run).rglob("*")]
    hashes = {str(path.relative_to(run.folder)): sha256(path) for path in sorted(paths) if path.is_file()}
    return {"dataset": fingerprint(run.data), "files": hashes}


def import_faiss() -> Any:
    """Return the module faiss; raise HafvtError if it is not installed."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise missing_package("index", "faiss-cpu") from None
    return faiss
