"""Answers to batches of `/recommend` and `/explain`; the batcher runs them in its thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hafvt.inference.recommendations import Recommendations
from hafvt.inference.rules import NO_RULES, Rules
from hafvt.server.manager import LoadedModel
from hafvt.server.schemas import ExplainResponse, RecommendRequest, RecommendResponse, ScoredItemResponse

MAX_BATCH, MAX_EXPLAINED_BATCH = 64, 4  # requests; explanations are computed for one history after another


class BatchKey(NamedTuple):
    """What requests must have in common to be answered together; `domain` is None for `/explain`."""

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
    if key.domain is None:
        explanations = (recommender.explain(r.history, r.item, time=key.time) for r in requests)
        return [ExplainResponse.from_explanation(explanation) for explanation in explanations]
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
        shares, _ = scorer.explain(history, domain, candidates, key.time)  # (C, S, M)
        for item, item_shares in zip(items, shares.tolist(), strict=True):
            item.shares = {
                sequence: dict(zip(scorer.modalities, row, strict=True))
                for sequence, row in zip(scorer.sequence_names, item_shares, strict=True)
            }
    return RecommendResponse(
        items=items,
        ranked_by=recommendations.ranked_by,
        unknown_ids=list(recommendations.unknown_ids),
        unknown_excluded_ids=list(recommendations.unknown_excluded_ids),
        unknown_rule_ids=list(recommendations.unknown_rule_ids),
    )
