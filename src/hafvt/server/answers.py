"""Answers to batches of `/recommend` and `/explain`; the batcher runs them in its thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hafvt.errors import HafvtError
from hafvt.inference.recommendations import Recommendations
from hafvt.server.manager import LoadedModel
from hafvt.server.schemas import (
    ExplainRequest,
    ExplainResponse,
    RecommendRequest,
    RecommendResponse,
    ScoredItemResponse,
)

MAX_BATCH, MAX_EXPLAINED_BATCH = 64, 4  # requests; explanations are computed for one history after another


class BatchKey(NamedTuple):
    """What requests must have in common to be answered together.

    Attributes:
        model: the model that answered when the request arrived.
        domain: the domain of `/recommend`; None for requests of `/explain`.
        exclude_seen: see `RecommendRequest`.
        include_shares: see `RecommendRequest`.
    """

    model: LoadedModel
    domain: str | None = None
    exclude_seen: bool = True
    include_shares: bool = True


def max_batch_size(key: BatchKey) -> int:
    """Returns the largest batch of a key: small for explanations, so that others need not wait."""
    return MAX_EXPLAINED_BATCH if key.include_shares else MAX_BATCH


def answer_batch(
    key: BatchKey, requests: list[Any]
) -> Sequence[RecommendResponse | ExplainResponse | HafvtError]:
    """Returns the answers to requests of one key; an error for a request that has no answer."""
    if key.domain is None:
        return [_explain(key.model, request) for request in requests]
    return _recommend(key, key.domain, requests)


def _recommend(key: BatchKey, domain: str, requests: Sequence[RecommendRequest]) -> list[RecommendResponse]:
    """Returns the answers to `/recommend`: the first k of the largest k that any of the requests has."""
    recommendations = key.model.recommender.recommend(
        [request.history for request in requests],
        domain,
        max(request.k for request in requests),
        exclude=[request.exclude for request in requests],
        exclude_seen=key.exclude_seen,
    )
    return [
        _recommend_response(key, domain, request, of_request)
        for request, of_request in zip(requests, recommendations, strict=True)
    ]


def _recommend_response(
    key: BatchKey, domain: str, request: RecommendRequest, recommendations: Recommendations
) -> RecommendResponse:
    scored = recommendations.items[: request.k]
    fields: list[dict[str, Any]] = [{"score": one.score} for one in scored]
    if (
        key.include_shares
        and recommendations.ranked_by == "model"
        and key.model.recommender.scorer.can_explain
    ):
        item_ids = [one.item.item_id for one in scored]
        for row, shares in zip(fields, _shares(key.model, request.history, domain, item_ids), strict=True):
            row["shares"] = shares
    return RecommendResponse(
        items=[
            ScoredItemResponse.from_item(one.item, **row) for one, row in zip(scored, fields, strict=True)
        ],
        ranked_by=recommendations.ranked_by,
        unknown_ids=list(recommendations.unknown_ids),
    )


def _shares(
    model: LoadedModel, history: Sequence[str], domain: str, item_ids: Sequence[str]
) -> list[dict[str, dict[str, float]]]:
    """Returns for each item: sequence -> modality -> share of its score."""
    if not item_ids:
        return []
    scorer, catalog = model.recommender.scorer, model.recommender.catalog
    known = catalog.indices(history)[0][-scorer.max_length :]
    shares = scorer.explain(known, catalog.domain_index(domain), catalog.indices(item_ids)[0]).shares
    return [
        {
            sequence: dict(zip(scorer.modalities, row, strict=True))
            for sequence, row in zip(scorer.sequence_names, of_item, strict=True)
        }
        for of_item in np.asarray(shares).tolist()
    ]


def _explain(model: LoadedModel, request: ExplainRequest) -> ExplainResponse | HafvtError:
    """Returns the answer to `/explain`."""
    try:
        explanation = model.recommender.explain(request.history, request.item)
    except HafvtError as error:
        return error
    return ExplainResponse.from_explanation(explanation)
