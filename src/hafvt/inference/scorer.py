"""What ranks items, in numpy: a trained model under torch, or its export under onnxruntime."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Domain, Int64

Float32 = npt.NDArray[np.float32]


class ScoreBreakdown(NamedTuple):
    """Where scores come from; S sequences, M modalities.

    Attributes:
        shares: (C, S, M) of each candidate's score, summing to 1.
        attention: (S, M, T) over the history; each row sums to 1, or to 0 where the sequence has no items.
    """

    shares: Float32
    attention: Float32


class Scorer(Protocol):
    """A model that gives scores to numpy arrays.

    Attributes:
        name: of the model.
        domains: contiguous slices of its catalog.
        max_length: longest history, in items.
        sequences: names of the sequences it tells apart: domains, and "all domains"; empty where it cannot
            explain itself.
        modalities: what items are known by: "id" and names of features; empty likewise.
    """

    name: str
    domains: tuple[Domain, ...]
    max_length: int
    sequences: tuple[str, ...]
    modalities: tuple[str, ...]

    def scores(self, items: Int64, lengths: Int64, domain: int, candidates: Int64 | None = None) -> Float32:
        """Scores candidates as the next item of each history.

        Args:
            items: (B, T) item indices, right-padded; T is at most `max_length`.
            lengths: (B,) real items of each row.
            domain: number of the domain whose items are ranked.
            candidates: (B, C) item indices of that domain; None takes all its items.

        Returns:
            (B, C), higher is better.
        """
        ...

    def explain(self, items: Int64, domain: int, candidates: Int64) -> ScoreBreakdown:
        """Tells where the scores of some items of a domain come from, for one history.

        Args:
            items: (T,) item indices, one at least.
            domain: number of the candidates' domain.
            candidates: (C,) item indices.
        """
        ...


class Shortlist(Protocol):
    """Finds the few items of a large domain that are worth scoring, and scores them as a `Scorer` does.

    Attributes:
        domains: numbers of the domains that it serves.
    """

    domains: frozenset[int]

    def scores(self, items: Int64, lengths: Int64, domain: int, depth: int) -> tuple[Int64, Float32]:
        """Finds and scores candidates for the next item of each history.

        Args:
            items: see `Scorer.scores`, as are lengths and domain.
            lengths: see `Scorer.scores`.
            domain: see `Scorer.scores`.
            depth: how many items each part of the model puts forward.

        Returns:
            The candidates' columns in the domain, (B, C), ascending, -1 where a row has fewer; and their
            scores, (B, C), -inf at these.
        """
        ...
