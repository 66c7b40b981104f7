"""`TorchScorer`: a trained run as a `Scorer`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hafvt.data.batches import Batch
from hafvt.data.dataset import Dataset, Int64
from hafvt.inference.added_items import with_added_items
from hafvt.inference.candidates import open_candidate_generator
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.scorer import CandidateGenerator, Float32, ScoreBreakdown
from hafvt.training.run import Run, open_run


class TorchScorer:
    """See `Scorer`.

    Args:
        run: a finished run.
        threads: number of threads of torch, in the whole process; 0 does not change it.
    """

    def __init__(self, run: Run, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.models, model = run.models, run.model
        self.name, self.domains, self.max_length = run.name, model.domains, model.max_length
        self.can_explain = model.can_explain
        self.sequence_names = model.sequence_names if model.can_explain else ()
        self.modalities = model.modalities if model.can_explain else ()

    @torch.inference_mode()
    def scores(self, items: Int64, lengths: Int64, domain: int, candidates: Int64 | None = None) -> Float32:
        """See `Scorer.scores`."""
        batch = Batch(torch.from_numpy(items), torch.from_numpy(lengths))
        columns = None if candidates is None else torch.from_numpy(candidates)
        scores: Float32 = self.models[domain].scores(batch, domain, columns).float().numpy()
        return scores

    @torch.inference_mode()
    def explain(self, items: Int64, domain: int, candidates: Int64) -> ScoreBreakdown:
        """See `Scorer.explain`."""
        batch = Batch(torch.from_numpy(items[None]), torch.tensor([len(items)]))
        (shares,), (attention,) = self.models[domain].explain(
            batch, domain, torch.from_numpy(candidates[None])
        )
        return ScoreBreakdown(shares.numpy().astype(np.float32), attention.numpy().astype(np.float32))


def open_trained_run(
    folder: str | Path, data: str | Path | Dataset | None = None, *, threads: int = 0
) -> tuple[TorchScorer, ItemCatalog, CandidateGenerator | None]:
    """Open a run with the items that were added to it and its index: the arguments of `Recommender`.

    Args:
        folder: the folder that `train` wrote.
        data: the dataset, if it has moved since training.
        threads: see `TorchScorer`.

    Raises:
        HafvtError: there is no finished run, or its added items or its index are out of date.
    """
    run, catalog = with_added_items(open_run(folder, data))
    return TorchScorer(run, threads), catalog, open_candidate_generator(run)
