"""Rank the targets of a dataset by the scores of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hafvt.data.batches import target_batches
from hafvt.data.dataset import Bool, Dataset, Domain, Int32, Int64
from hafvt.evaluation.list_metrics import LIST_LENGTH
from hafvt.evaluation.negatives import load_negatives
from hafvt.evaluation.protocols import FULL, Protocol, TieRule
from hafvt.evaluation.ranks import Float64, Ranks, concat_ranks
from hafvt.models.base import Model
from hafvt.ops import ranking
from hafvt.ops.collectives import all_reduce_sum_, barrier, is_distributed
from hafvt.ops.top_k import top_k_columns
from hafvt.processes import num_processes, process_index
from hafvt.progress import Advance

MAX_SCORES = 4_000_000  # bounds the memory of a batch: its histories x its candidates
SAMPLED_BATCH_SIZE = 128


class TargetRanks(NamedTuple):
    """The ranks of the same targets by two tie rules.

    Attributes:
        half_ties: a tie counts half.
        by_protocol: by the protocol's own tie rule; the same object where that rule is half ties.
    """

    half_ties: Ranks
    by_protocol: Ranks


def rank_targets(
    models: Sequence[Model],
    data: Dataset,
    split: Literal["valid", "test"],
    protocol: Protocol = FULL,
    *,
    with_lists: bool = False,
    max_users: int | None = None,
    device: torch.device | None = None,
    advance: Advance | None = None,
) -> TargetRanks:
    """Rank the targets of a split.

    Args:
        models: the model of each domain, by which the domain's targets are ranked; often one model repeated.
        data: holds the targets.
        split: which targets.
        protocol: the candidates and the tie rule.
        with_lists: see `rank_positions`.
        max_users: rank the targets of this many users, see `sample_user_rows`; None for all users.
        device: where the models are, by default the CPU.
        advance: called with the number of targets that were ranked since the last call.
    """
    positions = np.asarray(data.valid if split == "valid" else data.test)
    negatives = None
    if protocol.draw_negatives is not None:
        if process_index() == 0:
            load_negatives(data, split, protocol.name, protocol.draw_negatives)  # draws and stores them
        barrier()
        negatives = load_negatives(data, split, protocol.name, protocol.draw_negatives)
    target_rows = np.arange(len(positions))
    if max_users is not None:
        target_rows = sample_user_rows(data.users_at(positions), max_users)
    parts = [(models[0], target_rows)]
    if any(model is not models[0] for model in models):
        domains = data.domains_of(np.asarray(data.items)[positions[target_rows]])
        parts = [(model, target_rows[domains == number]) for number, model in enumerate(models)]
    part_ranks = [
        rank_positions(
            model,
            data,
            positions[rows],
            protocol,
            None if negatives is None else negatives[rows],
            with_lists=with_lists,
            device=device,
            advance=advance,
        )
        for model, rows in parts
    ]
    half_ties = concat_ranks([part.half_ties for part in part_ranks])
    if protocol.ties_count_half:
        return TargetRanks(half_ties, half_ties)
    return TargetRanks(half_ties, concat_ranks([part.by_protocol for part in part_ranks]))


def sample_user_rows(users: Int64, count: int) -> Int64:
    """Return the rows of `count` of the users, (n,), or of all if there are fewer; always the same users."""
    distinct = np.unique(users)
    sample = np.random.default_rng(0).permutation(distinct)[:count]
    return np.flatnonzero(np.isin(users, sample))


def rank_positions(
    model: Model,
    data: Dataset,
    positions: Int64,
    protocol: Protocol = FULL,
    negatives: Int32 | None = None,
    *,
    with_lists: bool = False,
    device: torch.device | None = None,
    advance: Advance | None = None,
) -> TargetRanks:
    """Rank the targets at some positions of `data.items` by one model; see `rank_targets`.

    Several processes share the batches. A batch and so its ranks do not depend on their number.

    Args:
        model: scores the candidates.
        data: holds the targets.
        positions: (n,) of the targets.
        protocol: the tie rule, and whether items of the whole history are candidates. If not, a target
            that the history contains cannot be recommended: it counts as missed, with an infinite rank.
        negatives: (n, N) item indices that each target is ranked among, -1 where there are fewer than N; None
            for all items of the target's domain.
        with_lists: whether to collect the recommended lists and, if there are repeats, the ranks by the other
            rule for items of the history; without `negatives` only.
        device: where the model is, by default the CPU.
        advance: called with the number of targets that were ranked since the last call.
    """
    device = device or torch.device("cpu")
    positions, items = np.asarray(positions), np.asarray(data.items)
    domains = data.domains_of(items[positions])
    half_ties, by_protocol = np.zeros(len(positions)), np.zeros(len(positions))
    num_candidates, is_repeat = np.zeros(len(positions), np.int64), data.is_repeat[positions]
    exclude_seen, batch_number = protocol.exclude_seen(data), 0
    report_progress = advance or (lambda n: None)
    with_lists = with_lists and negatives is None
    with_other_rule = with_lists and bool(data.is_repeat[np.concatenate([data.valid, data.test])].any())
    lists = np.zeros((len(positions), LIST_LENGTH), np.int64)  # of item numbers plus 1
    other_ranks, other_candidates = np.zeros(len(positions)), np.zeros(len(positions), np.int64)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for number, domain in enumerate(data.domains):
            domain_rows = np.flatnonzero(domains == number)
            batch_size = SAMPLED_BATCH_SIZE
            if negatives is None:
                batch_size = min(max(MAX_SCORES // max(len(domain), 1), 16), 1024)
            batches = target_batches(data, positions[domain_rows], batch_size, model.max_length)
            for batch_rows, batch in batches:
                rows, batch_number = domain_rows[batch_rows], batch_number + 1
                if is_distributed() and batch_number % num_processes() != process_index():
                    report_progress(len(rows))
                    continue
                candidates: Tensor | None = None
                ignore: Tensor | None = None
                target = torch.from_numpy(items[positions[rows]].astype(np.int64) - domain.start)
                if negatives is None:
                    num_candidates[rows] = len(domain)
                    if exclude_seen[number]:
                        seen = seen_columns(data, positions[rows], domain)  # (B, most)
                        num_candidates[rows] -= (seen >= 0).sum(1).numpy()
                        ignore = seen.to(device)
                else:
                    num_candidates[rows] = 1 + (negatives[rows] >= 0).sum(1)
                    target = torch.zeros(len(rows), dtype=torch.int64)
                    candidates, ignore = sampled_candidates(items[positions[rows]], negatives[rows], device)
                target = target.to(device)
                scores = model.scores(batch.to(device), number, candidates)  # (B, C)
                is_missed = is_repeat[rows] & exclude_seen[number]
                half_ties[rows] = ranks_or_missed(ranking.ranks, scores, target, ignore, is_missed)
                if not protocol.ties_count_half:
                    by_protocol[rows] = ranks_or_missed(protocol.tie_rule, scores, target, ignore, is_missed)
                if with_lists:
                    lists[rows] = 1 + recommended_lists(scores, ignore, domain)
                if with_other_rule:
                    seen = seen_columns(data, positions[rows], domain)
                    other_candidates[rows] = len(domain)
                    if not exclude_seen[number]:
                        other_candidates[rows] -= (seen >= 0).sum(1).numpy()
                    ignore = None if exclude_seen[number] else seen.to(device)
                    is_missed = is_repeat[rows] & ~np.bool_(exclude_seen[number])
                    other_ranks[rows] = ranks_or_missed(ranking.ranks, scores, target, ignore, is_missed)
                del scores  # so that the next batch has its memory: fresh pages take as long as the product
                report_progress(len(rows))
    model.train(was_training)
    for column in (half_ties, by_protocol, num_candidates, lists, other_ranks, other_candidates):
        all_reduce_sum_(torch.from_numpy(column), long_timeout=True)  # zeros in the rows of other processes
    ranks = Ranks(positions, data.users_at(positions), domains, half_ties, num_candidates, is_repeat)
    if with_lists:
        ranks = replace(ranks, lists=lists - 1)
    if with_other_rule:
        ranks = replace(ranks, other_ranks=other_ranks, other_candidates=other_candidates)
    return TargetRanks(ranks, ranks if protocol.ties_count_half else replace(ranks, ranks=by_protocol))


def ranks_or_missed(
    tie_rule: TieRule, scores: Tensor, target: Tensor, ignore: Tensor | None, is_missed: Bool
) -> Float64:
    """Return the ranks of targets by a rule for ties, (B,), infinite where the target is missed, (B,) bool.

    Other arguments are those of `hafvt.ops.ranking.ranks`.
    """
    return np.where(is_missed, np.inf, tie_rule(scores, target, ignore).cpu().numpy())


def recommended_lists(scores: Tensor, ignore: Tensor | None, domain: Domain) -> Int64:
    """Return the items that are recommended by the scores (B, C) of a domain, best first, (B, LIST_LENGTH).

    `ignore`, (B, S), are columns that are not recommended, padded with -1; so are shorter lists.
    """
    lists = np.full((len(scores), LIST_LENGTH), -1)
    ignored = np.full((len(scores), 0), -1) if ignore is None else ignore.cpu().numpy()
    for row, (row_scores, columns) in enumerate(zip(scores.float().cpu().numpy(), ignored, strict=True)):
        top = top_k_columns(row_scores, LIST_LENGTH, columns[columns >= 0])
        lists[row, : len(top)] = domain.start + top
    return lists


def sampled_candidates(targets: Int32, negatives: Int32, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return targets (B,) and negatives (B, N; -1 for padding) as candidates, and which of these to ignore.

    Returns:
        (B, 1 + N) item indices, the target in column 0 and in the place of padding, and (B, 1 + N) the
        columns of padding, -1 elsewhere.
    """
    items = torch.from_numpy(np.column_stack([targets, negatives]).astype(np.int64)).to(device)
    is_padding = items < 0
    columns = torch.arange(items.shape[1], device=device).where(is_padding, -1)
    return torch.where(is_padding, items[:, :1], items), columns


def seen_columns(data: Dataset, positions: Int64, domain: Domain) -> Tensor:
    """Return the distinct columns of a domain's items before each target, padded with -1, (n, most)."""
    starts = np.asarray(data.offsets)[data.users_at(positions)]
    lengths = positions - starts
    rows = np.repeat(np.arange(len(positions)), lengths)  # of all items of all histories
    history = np.arange(len(rows)) + np.repeat(positions - lengths.cumsum(), lengths)
    columns = np.asarray(data.items)[history] - domain.start
    is_first = (columns >= 0) & (columns < len(domain)) & ~data.is_repeat[history]
    counts = np.bincount(rows[is_first], minlength=len(positions))
    padded = np.full((len(positions), counts.max(initial=0)), -1, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = columns[is_first]
    return torch.from_numpy(padded)
