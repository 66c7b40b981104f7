"""`TorchScorer`: a trained run as a `Scorer`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hafvt.data.batches import Batch
from hafvt.data.dataset import Dataset, Int64
from hafvt.folders import read_folder
from hafvt.inference.added_items import feature_vectors, with_added_items
from hafvt.inference.candidates import FaissCandidateGenerator, open_candidate_generator
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.item_vectors import ItemVectors, VectorReader, unit_vectors
from hafvt.inference.scorer import Float32, ScoreBreakdown, request_times
from hafvt.training.run import Run, open_run


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
    exclude_seen = run.data.exclude_seen(run.candidates)
    generator = read_folder(run.folder / "index", lambda: open_candidate_generator(run))
    id_vectors = run.model.id_vectors

    def read_vectors() -> dict[str, ItemVectors]:
        vectors = feature_vectors(trained_run, catalog)
        if id_vectors is None:
            return vectors
        return {"id": unit_vectors(id_vectors.float().numpy(), catalog.train_counts > 0), **vectors}

    return TorchScorer(run), catalog, exclude_seen, generator, read_vectors
