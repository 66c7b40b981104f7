"""Answers to batches of `/recommend` and `/explain`; the batcher runs them in its thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hafvt.inference.recommendations import Recommendations
from hafvt.inference.rules import NO_RULES, Rules
from hafvt.server.manager import LoadedModel
from hafvt.server.schemas import (
    ExplainResponse,
    ReasonResponse,
    RecommendRequest,
    RecommendResponse,
    ScoredItemResponse,
)

MAX_BATCH, MAX_EXPLAINED_BATCH = 64, 4  # requests; explanations are computed for one history after another


class BatchKey(NamedTuple):
    """What requests must have in common to be answered together; `domain` is None for `/explain`."""

    name: str
    model: LoadedModel
    domain: str | None = None
    exclude_seen: bool | None = None
    include_shares: bool = True
    time: int | None = None
    rules: Rules = NO_RULES
    k: int | None = None  # under rules, as the first items of a longer list may be others


def max_batch_size(key: BatchKey) -> int:
    """Return the largest batch of a key: small for explanations, so that other requests need not wait."""
    return MAX_EXPLAINED_BATCH if key.include_shares else MAX_BATCH


def answer_batch(key: BatchKey, requests: list[Any]) -> Sequence[RecommendResponse | ExplainResponse]:
    """Return the answers to requests of one key, or raise HafvtError if one of them has no answer."""
    recommender = key.model.recommender
    answered_by = {"model": key.name, "version": key.model.version}
    if key.domain is None:
        explanations = (recommender.explain(r.history, r.item, time=key.time) for r in requests)
        return [ExplainResponse.from_explanation(explanation, **answered_by) for explanation in explanations]
    recommendations = recommender.recommend(
        [request.history for request in requests],
        key.domain,
        max(request.k for request in requests),  # each request gets its first k of these
        exclude=[request.exclude for request in requests],
        exclude_seen=key.exclude_seen,
        time=key.time,
        **key.rules._asdict(),
    )
    return [recommend_response(key, *pair) for pair in zip(requests, recommendations, strict=True)]


def recommend_response(
    key: BatchKey, request: RecommendRequest, recommendations: Recommendations
) -> RecommendResponse:
    """Return the answer to a request of `/recommend`, with shares if the key has `include_shares`."""
    scored = recommendations.items[: request.k]
    items = [ScoredItemResponse.from_item(one.item, score=one.score) for one in scored]
    scorer, catalog = key.model.recommender.scorer, key.model.recommender.catalog
    if key.include_shares and items and recommendations.ranked_by == "model" and scorer.can_explain:
        history = catalog.indices(request.history)[0][-scorer.max_length :]
        candidates = catalog.indices(item.item_id for item in items)[0]
        domain = catalog.domain_index(request.domain)
        shares, attention = scorer.explain(history, domain, candidates, key.time)
        weights = np.einsum("csm,smt->ct", shares, attention)  # of each item of the history
        for item, item_shares, item_weights in zip(items, shares.tolist(), weights, strict=True):
            item.shares = {
                sequence: dict(zip(scorer.modalities, row, strict=True))
                for sequence, row in zip(scorer.sequence_names, item_shares, strict=True)
            }
            slot = int(item_weights.argmax())
            reason = catalog.item(history[slot])
            share = float(item_weights[slot])
            item.reason = ReasonResponse(item_id=reason.item_id, title=reason.title, share=share)
    rank = {} if request.rank_of is None else {"rank": rank_of_item(key, request)}
    return RecommendResponse(
        **rank,
        items=items,
        ranked_by=recommendations.ranked_by,
        model=key.name,
        version=key.model.version,
        unknown_ids=list(recommendations.unknown_ids),
        unknown_excluded_ids=list(recommendations.unknown_excluded_ids),
        unknown_rule_ids=list(recommendations.unknown_rule_ids),
    )


def rank_of_item(key: BatchKey, request: RecommendRequest) -> float | None:
    """Return the rank of `rank_of` among the items that may be listed; None if it may not or is unknown."""
    recommender, catalog = key.model.recommender, key.model.recommender.catalog
    number = catalog.domain_index(request.domain)
    domain, exclude_seen = catalog.domains[number], key.exclude_seen
    history, _ = catalog.indices(request.history)
    excluded, _ = catalog.indices(request.exclude)
    if recommender.exclude_seen[number] if exclude_seen is None else exclude_seen:
        excluded = np.concatenate([history, excluded])
    item = catalog.index_of(request.rank_of or "")
    if item is None or not domain.start <= item < domain.stop or item in excluded:
        return None
    (scores,) = recommender.scores([history], number, key.time)
    score = scores[item - domain.start]
    others = np.delete(scores, excluded[(excluded >= domain.start) & (excluded < domain.stop)] - domain.start)
    return float(1 + (others > score).sum() + ((others == score).sum() - 1) / 2)
