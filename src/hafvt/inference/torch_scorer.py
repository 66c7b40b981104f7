"""`TorchScorer`: a trained run as a `Scorer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafvt.data.batches import Batch
from hafvt.data.dataset import Dataset, Int64
from hafvt.files import sha256
from hafvt.folders import read_folder
from hafvt.inference.added_items import added_items_folder, feature_vectors, with_added_items
from hafvt.inference.candidates import FaissCandidateGenerator
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.index_files import open_index
from hafvt.inference.item_vectors import ItemVectors, VectorReader, unit_vectors
from hafvt.inference.scorer import Branch, Float32, ScoreBreakdown, request_times
from hafvt.training.run import Run, fingerprint, open_run


class TorchScorer:
    """The models of a run as a `Scorer`."""

    def __init__(self, run: Run) -> None:
        self.models, model = run.models, run.model
        self.name, self.domains, self.max_length = run.name, model.domains, model.max_length
        self.uses_times, self.can_explain = model.uses_times, model.can_explain
        self.sequence_names = model.sequence_names if model.can_explain else ()
        self.modalities = model.modalities if model.can_explain else ()

    @torch.inference_mode()
    def scores(self, items: Int64, lengths: Int64, domain: int, time: int | None = None) -> Float32:
        """See `Scorer.scores`."""
        times = torch.from_numpy(request_times(time, len(lengths)))
        batch = Batch(torch.from_numpy(items), torch.from_numpy(lengths), times)
        scores: Float32 = self.models[domain].scores(batch, domain).float().numpy()
        return scores

    @torch.inference_mode()
    def branches(self, items: Int64, lengths: Int64, domain: int, time: int | None = None) -> list[Branch]:
        """See `BranchScorer.branches`."""
        times = torch.from_numpy(request_times(time, len(lengths)))
        batch = Batch(torch.from_numpy(items), torch.from_numpy(lengths), times)
        branches = []
        for query in self.models[domain].branch_queries(batch, domain, by_row=True):
            log_weights = query.log_weight.expand(len(lengths)).masked_fill(query.is_empty, -torch.inf)
            branches.append(
                Branch(
                    query.modality, query.h.numpy(), log_weights.numpy(), query.log_subtracted_mass.numpy()
                )
            )
        return branches

    @torch.inference_mode()
    def item_rows(self, items: Int64, domain: int) -> list[Float32]:
        """See `BranchScorer.item_rows`."""
        return [rows.numpy() for rows in self.models[domain].scoring_rows(torch.from_numpy(items))]

    @torch.inference_mode()
    def explain(
        self, items: Int64, domain: int, candidates: Int64, time: int | None = None
    ) -> ScoreBreakdown:
        """See `Scorer.explain`."""
        times = torch.from_numpy(request_times(time, 1))
        batch = Batch(torch.from_numpy(items[None]), torch.tensor([len(items)]), times)
        (shares,), (attention,) = self.models[domain].explain(
            batch, domain, torch.from_numpy(candidates[None])
        )
        return ScoreBreakdown(shares.numpy().astype(np.float32), attention.numpy().astype(np.float32))


def model_state(run: Run) -> dict[str, Any]:
    """Return hashes that change with the weights or the items of a run."""
    paths = [*run.folder.glob("model*.safetensors"), *added_items_folder(run).rglob("*")]
    hashes = {str(path.relative_to(run.folder)): sha256(path) for path in sorted(paths) if path.is_file()}
    return {"dataset": fingerprint(run.data), "files": hashes}


def open_run_index(run: Run, scorer: TorchScorer, catalog: ItemCatalog) -> FaissCandidateGenerator | None:
    """Open the index of a run, see `open_index`; None without an index."""
    index = run.folder / "index"
    if not index.exists() or not run.model.can_index:
        return None
    remedy = f"build it again with hafvt index {run.folder}, or remove {index}"
    return read_folder(index, lambda: open_index(index, scorer, catalog, remedy, lambda: model_state(run)))


def open_trained_run(
    folder: str | Path, data: str | Path | Dataset | None = None, *, threads: int = 0
) -> tuple[TorchScorer, ItemCatalog, tuple[bool, ...], FaissCandidateGenerator | None, VectorReader]:
    """Open a run with its added items and its index; return the arguments of `Recommender`.

    Args and Raises are those of `Recommender.open`.
    """
    trained_run = open_run(folder, data)
    run, catalog = with_added_items(trained_run)
    if threads:
        torch.set_num_threads(threads)
    scorer, exclude_seen = TorchScorer(run), run.data.exclude_seen(run.candidates)
    generator = open_run_index(run, scorer, catalog)
    id_vectors = run.model.id_vectors

    def read_vectors() -> dict[str, ItemVectors]:
        vectors = feature_vectors(trained_run, catalog)
        if id_vectors is None:
            return vectors
        return {"id": unit_vectors(id_vectors.float().numpy(), catalog.train_counts > 0), **vectors}

    return scorer, catalog, exclude_seen, generator, read_vectors
