"""A trained model as a `Scorer`."""

from __future__ import annotations

import numpy as np
import torch

from hafvt.data.batches import Batch
from hafvt.data.dataset import Int64
from hafvt.inference.scorer import Float32, ScoreBreakdown
from hafvt.models.hafvt import HafVt
from hafvt.training.run import Run


class TorchScorer:
    """See `Scorer`.

    Args:
        run: a finished one.
        threads: so many in the whole process, as torch has it; 0 leaves them as they are.
    """

    def __init__(self, run: Run, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.models = run.models
        self.name, self.domains, self.max_length = run.name, run.data.domains, run.model.max_length
        self.sequences: tuple[str, ...] = ()
        self.modalities: tuple[str, ...] = ()
        if isinstance(run.model, HafVt):
            self.domains = run.model.domains  # with items that were added
            names = (*(domain.name for domain in self.domains), "all domains")
            self.sequences = tuple(names[number] for number in run.model.used)
            self.modalities = run.model.modalities

    @torch.inference_mode()
    def scores(self, items: Int64, lengths: Int64, domain: int, candidates: Int64 | None = None) -> Float32:
        """See `Scorer.scores`."""
        batch = Batch(torch.from_numpy(items), torch.from_numpy(lengths))
        among = None if candidates is None else torch.from_numpy(candidates)
        found: Float32 = self.models[domain].scores(batch, domain, among).float().numpy()
        return found

    @torch.inference_mode()
    def explain(self, items: Int64, domain: int, candidates: Int64) -> ScoreBreakdown:
        """See `Scorer.explain`."""
        model = self.models[domain]
        assert isinstance(model, HafVt)
        batch = Batch(torch.from_numpy(items[None]), torch.tensor([len(items)]))
        shares = model.shares(batch, domain, torch.from_numpy(candidates[None]))[0]
        return ScoreBreakdown(
            shares.numpy().astype(np.float32), model.attention(batch)[0].numpy().astype(np.float32)
        )
