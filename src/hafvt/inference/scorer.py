"""`Scorer`: the interface of trained models in numpy, with and without torch."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Domain, Int64

Float32 = npt.NDArray[np.float32]


class ScoreBreakdown(NamedTuple):
    """How each branch (a sequence and a modality) contributes to scores; S sequences, M modalities.

    Attributes:
        shares: (C, S, M) fractions of each candidate's score, summing to 1.
        attention: (S, M, T) weights over the history; each row sums to 1, or to 0 if its sequence is empty.
    """

    shares: Float32
    attention: Float32


class Branch(NamedTuple):
    """One term of the scores of B histories: a softmax over the items of a domain, by dot products.

    Attributes:
        modality: position of the modality whose item vectors are compared.
        h: (B, d) vectors of the histories.
        log_weights: (B,) logs of the weight of the softmax, -inf where it has none.
        log_subtracted_mass: (B,) logs of what to subtract from the softmax's denominator.
    """

    modality: int
    h: Float32
    log_weights: Float32
    log_subtracted_mass: Float32


class BranchScorer(Protocol):
    """The parts of a model's scores, from which an index computes those of few items."""

    def branches(
        self, items: Int64, lengths: Int64, domain: int, time: int | None = None
    ) -> Sequence[Branch]:
        """Return the branches that score the items of a domain; arguments as for `Scorer.scores`."""
        ...

    def item_rows(self, items: Int64, domain: int) -> list[Float32]:
        """Return for each modality the vectors of items of a domain, by item index, (N,) -> (N, d)."""
        ...


class Scorer(Protocol):
    """A trained model with numpy arrays as input and output.

    Attributes:
        name: name of the model.
        domains: contiguous slices of the item indices.
        max_length: the longest history that `scores` reads, in items.
        uses_times: whether the scores depend on the time of the request.
        can_explain: whether `explain` works.
        sequence_names: the sequences of a `ScoreBreakdown`: domains and "all domains"; else empty.
        modalities: the modalities of a `ScoreBreakdown`: "id" and names of features; else empty.
    """

    name: str
    domains: tuple[Domain, ...]
    max_length: int
    uses_times: bool
    can_explain: bool
    sequence_names: tuple[str, ...]
    modalities: tuple[str, ...]

    def scores(self, items: Int64, lengths: Int64, domain: int, time: int | None = None) -> Float32:
        """Return the scores of all C items of a domain as the next item of each history, (B, C).

        Args:
            items: (B, T) item indices, right-padded; T is at most `max_length`.
            lengths: (B,) number of items of each row without padding.
            domain: index of the domain.
            time: of the request, in seconds since 1970; default: now.
        """
        ...

    def explain(
        self, items: Int64, domain: int, candidates: Int64, time: int | None = None
    ) -> ScoreBreakdown:
        """Return how each branch contributes to the scores of candidates, for one history.

        Args:
            items: (T,) item indices, at least one.
            domain: index of the domain of the candidates.
            candidates: (C,) item indices.
            time: see `scores`.
        """
        ...


def request_times(time: int | None, num_histories: int) -> Int64:
    """Return the time of a request, by default now, once for each history, (B,)."""
    return np.full(num_histories, int(clock.time()) if time is None else time, dtype=np.int64)


def pad_histories(histories: Sequence[Int64]) -> tuple[Int64, Int64]:
    """Return histories as right-padded rows, (B, T), and their lengths, (B,)."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    rows = np.zeros((len(histories), int(lengths.max(initial=1))), dtype=np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.concatenate(histories)
    return rows, lengths
