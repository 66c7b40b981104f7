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
from hafvt.files import read_json, sha256
from hafvt.inference.added_items import added_items_folder
from hafvt.inference.scorer import Float32
from hafvt.models.hafvt import BranchQuery, HafVt
from hafvt.ops.catalog_softmax import log_subtract_exp
from hafvt.ops.tiles import MAX_SAFE_LOGIT
from hafvt.training.run import Run, fingerprint

FORMAT = 2
MIN_ITEMS_TO_USE = 200_000  # items of a domain; all items of smaller domains are scored, which is fast enough
TILE = 8192  # items whose logits are in memory at a time, so that they fit the processor's cache


class FaissCandidateGenerator:
    """See `CandidateGenerator`: candidates are the best items of each branch, found by approximate search.

    An item's score (10) is a sum over branches, so an item with one of the best sums is also near the top of
    at least one branch. The scores equal those of `HafVt.scores`, with softmaxes over the whole catalog.

    Args:
        models: one for each domain.
        indexes: by domain, a faiss index of the items' vectors for each modality.
    """

    def __init__(self, models: Sequence[HafVt], indexes: dict[int, list[Any]]) -> None:
        self.models, self.indexes, self.domains = models, indexes, frozenset(indexes)

    @torch.inference_mode()
    def generate(
        self, items: Int64, lengths: Int64, domain: int, num_per_branch: int
    ) -> tuple[Int64, Float32]:
        """See `CandidateGenerator.generate`."""
        model = self.models[domain]
        tables, start = model.items.candidate_tables(), model.domains[domain].start
        queries: list[list[BranchQuery]] = [[] for _ in tables]  # by modality and sequence
        batch = Batch(torch.from_numpy(items), torch.from_numpy(lengths))
        for query in model.branch_queries(batch, domain):
            queries[query.modality].append(query)
        columns = self.search(queries, domain, num_per_branch)
        candidates = torch.from_numpy(columns.clip(min=0) + start)  # (B, C)
        total = torch.zeros(candidates.shape)
        for (table, trained_table), of_modality in zip(tables, queries, strict=True):
            h = torch.stack([query.h for query in of_modality], dim=1)  # (B, S, d)
            # (2), one history at a time, as the candidates' vectors of all histories take much memory.
            logits = torch.stack(
                [x @ table[row].T for x, row in zip(h, candidates, strict=True)]
            )  # (B, S, C)
            partitions = log_partitions(model, trained_table, of_modality, domain)
            for sequence, (query, lse) in enumerate(zip(of_modality, partitions, strict=True)):
                offset = log_subtract_exp(lse, query.log_excluded_mass) - query.log_weight
                branch = logits[:, sequence] - offset.masked_fill(query.is_empty, torch.inf)[:, None]
                total += branch.exp_()
        scores = model.finish_scores(total, batch, domain, candidates).numpy()
        return columns, np.where(columns < 0, -np.inf, scores).astype(np.float32)

    def search(self, queries: list[list[BranchQuery]], domain: int, num_per_branch: int) -> Int64:
        """Return the best columns of all branches, (B, C), ascending, each once; -1 fills short rows.

        Args:
            queries: by modality, the query of each sequence.
            domain: index of the domain.
            num_per_branch: number of columns that each branch proposes.
        """
        import_faiss().omp_set_num_threads(torch.get_num_threads())  # a setting of the calling thread
        proposals = []
        for index, of_modality in zip(self.indexes[domain], queries, strict=True):
            for query in of_modality:
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


def log_partitions(model: HafVt, table: Tensor, queries: list[BranchQuery], domain: int) -> list[Tensor]:
    """Return the logarithms of the denominators of the softmaxes (4-6), (B,) for each query.

    All queries are multiplied with the table together: reading it takes most of the time of a small batch.

    Args:
        model: the model.
        table: (V', d) vectors of all trained items in one modality, over which the softmaxes sum.
        queries: one for each sequence, of the same modality.
        domain: index of the ranked domain.
    """
    # No logit is larger than 1 / temperature, as no vector is longer than 1.
    can_overflow = 1 / model.config.temperature >= MAX_SAFE_LOGIT
    h = torch.cat([query.h for query in queries])
    rows = table[model.items.trained_ranges[domain]]
    return list(log_partition(h, rows, can_overflow).view(len(queries), -1))


def log_partition(h: Tensor, table: Tensor, can_overflow: bool) -> Tensor:
    """Return `logsumexp_j(h[i] . table[j])`, (N, d) and (V, d) -> (N,).

    Faster than `ops.catalog_softmax.log_partition` for few queries.
    """
    logits = (h @ table[start : start + TILE].T for start in range(0, len(table), TILE))
    if can_overflow:
        return torch.stack([z.logsumexp(1) for z in logits]).logsumexp(0)
    return torch.stack([z.exp_().sum(1) for z in logits]).sum(0).log()


def open_candidate_generator(run: Run) -> FaissCandidateGenerator | None:
    """Open the index of a run for its large domains; None without an index or without large domains.

    Args:
        run: a run with its added items, see `with_added_items`.

    Raises:
        HafvtError: the index is out of date or damaged, or faiss is missing.
    """
    folder = run.folder / "index"
    models = indexable_models(run)
    if not folder.exists() or not models:
        return None
    domains = [i for i, domain in enumerate(run.model.domains) if len(domain) >= MIN_ITEMS_TO_USE]
    if not domains:
        return None
    remedy = f"build it again with hafvt index {run.folder}, or remove {folder}"
    about = read_json(folder / "about.json")
    if about.get("format") != FORMAT:
        raise HafvtError(f"{folder}: another version of hafvt built this index: {remedy}")
    if about.get("model") != model_state(run):
        raise HafvtError(f"{folder}: the model or its items changed since the index was built: {remedy}")
    indexes = {}
    for domain in domains:
        paths = [folder / file_name(domain, m) for m in range(len(models[domain].modalities))]
        for path in paths:
            if not path.exists() or sha256(path) != about["files"].get(path.name):
                raise HafvtError(f"{path} is missing or damaged: {remedy}")
        indexes[domain] = [import_faiss().read_index(str(path)) for path in paths]
    return FaissCandidateGenerator(models, indexes)


def indexable_models(run: Run) -> list[HafVt]:
    """Return the models of a run, one for each domain; an empty list if they have no branches to index."""
    models = [model for model in run.models if isinstance(model, HafVt)]
    return models if len(models) == len(run.models) else []


def file_name(domain: int, modality: int) -> str:
    """Return the file name of the index of a domain and a modality, by their positions."""
    return f"domain{domain}-modality{modality}.faiss"


def model_state(run: Run) -> dict[str, Any]:
    """Return hashes that change with the weights or the items of a run."""
    paths = [*run.folder.glob("model*.safetensors"), *added_items_folder(run).rglob("*")]
    hashes = {str(path.relative_to(run.folder)): sha256(path) for path in sorted(paths) if path.is_file()}
    return {"dataset": fingerprint(run.data), "files": hashes}


def import_faiss() -> Any:
    """Return the module faiss.

    Raises:
        HafvtError: it is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError:
        raise missing_package("index", "faiss-cpu") from None
    return faiss
