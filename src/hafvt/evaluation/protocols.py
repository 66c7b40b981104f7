"""Evaluation protocols: the candidates that a target is ranked among, and how tied scores count.

To add a protocol, write a function that draws its negatives and add one line to `PROTOCOLS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hafvt.data.dataset import Dataset, Int32, Int64
from hafvt.data.repeats import CandidateRule
from hafvt.errors import ArgumentError
from hafvt.evaluation.negatives import draw_unseen, draw_with_replacement
from hafvt.ops import ranking

C2DSR_MARGIN = 1e-5  # C2DSR counts a negative as ranked higher only if its score is higher by more than this

TieRule = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(scores (B, C), column of the target (B,), columns to ignore (B, S) or None) -> ranks (B,), 1 is best."""


def rank_with_margin(scores: Tensor, target: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Return 1 + the number of candidates that are scored higher than the target by more than `C2DSR_MARGIN`.

    Under this rule of C2DSR a tie counts in favor of the target: a constant scorer has rank 1 everywhere.

    Args:
        scores: (B, C) one column per candidate.
        target: (B,) column of the target, int64.
        ignore: (B, S) columns that are no candidates, int64, padded with negative numbers.
    """
    column = target[:, None]
    is_higher = scores > scores.gather(1, column) + C2DSR_MARGIN  # (B, C)
    if ignore is not None:
        is_higher = is_higher.scatter(1, torch.where(ignore < 0, column, ignore), False)
    return 1 + is_higher.sum(1)


@dataclass(frozen=True)
class Protocol:
    """How targets are ranked, and how a training that validates by these ranks selects its weights.

    Attributes:
        name: as on the command line and in files.
        description: the candidates and the tie rule, in words that follow "ranked among"; `{sizes}` stands
            for the candidates of each domain.
        draw_negatives: (dataset, positions (n,)) -> (n, N) item indices of the negatives of each target, -1
            where there are fewer than N; None ranks a target among all items of its domain.
        tie_rule: turns scores into ranks; by default a tie counts half.
        checkpoint_per_domain: whether each domain keeps the weights of its own best validation.
        validate_every: epochs between two validations, unless a training chooses another number.
        patience: validations without improvement that end a training, 0 for no early stop, unless a training
            chooses another number.
        in_paper: whether the HAF-VT paper's tables were measured by this protocol.
        candidates: whether items of the history are candidates, if all items of the domain are ranked.
    """

    name: str
    description: str
    draw_negatives: Callable[[Dataset, Int64], Int32] | None = None
    tie_rule: TieRule = ranking.ranks
    checkpoint_per_domain: bool = False
    validate_every: int = 2
    patience: int = 5
    in_paper: bool = False
    candidates: CandidateRule = "auto"

    @property
    def ranks_all_items(self) -> bool:
        """Whether the candidates are all items of the target's domain."""
        return self.draw_negatives is None

    @property
    def ties_count_half(self) -> bool:
        """Whether a candidate with the target's score counts as half ranked higher."""
        return self.tie_rule is ranking.ranks

    def exclude_seen(self, data: Dataset) -> tuple[bool, ...]:
        """Return for each domain whether the items of a history are left out of its candidates."""
        if not self.ranks_all_items:
            return (False,) * len(data.domains)
        return data.exclude_seen(self.candidates)

    def describe(self, data: Dataset) -> str:
        """Return the description with the sizes of a dataset's domains."""
        sizes = [
            f"{len(domain):,} {domain.name}{', without those of the history' if excludes else ''}"
            for domain, excludes in zip(data.domains, self.exclude_seen(data), strict=True)
        ]
        return self.description.format(sizes="; ".join(sizes))


FULL = Protocol("full", "the items of its domain ({sizes}); ties count half")
SAMPLED_UNSEEN = Protocol(
    "sampled-unseen",
    "999 distinct negatives of its domain that the user has not interacted with; ties count half",
    draw_unseen,
)
C2DSR = Protocol(
    "c2dsr",
    f"999 negatives of its domain, drawn with replacement; only negatives whose score is higher by more "
    f"than {C2DSR_MARGIN:g} count as ranked higher",
    draw_with_replacement,
    tie_rule=rank_with_margin,
    checkpoint_per_domain=True,
    validate_every=5,
    patience=0,
    in_paper=True,
)

PROTOCOLS: dict[str, Protocol] = {
    "full": FULL,
    "sampled-unseen": SAMPLED_UNSEEN,
    "c2dsr": C2DSR,
}


def get_protocol(name: str, candidates: CandidateRule = "auto") -> Protocol:
    """Return a protocol by its name.

    Raises:
        HafvtError: there is no such protocol, or `candidates` is given for a protocol that draws its own.
    """
    if name not in PROTOCOLS:
        raise ArgumentError(f"no protocol {name!r}: choose {', '.join(PROTOCOLS)}")
    if candidates != "auto" and not PROTOCOLS[name].ranks_all_items:
        raise ArgumentError(
            f"--candidates {candidates} needs --protocol full, not {name}: leave out one of them"
        )
    return replace(PROTOCOLS[name], candidates=candidates)
