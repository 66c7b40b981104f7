"""From a live model to the JSON that the server sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from hafvt.errors import HafvtError
from hafvt.inference.catalog import Item
from hafvt.inference.recommendations import Recommendations
from hafvt.server.manager import LoadedModel
from hafvt.server.schemas import Explain, Recommend

HISTORY = 1000  # items shown of a person's history, the last ones
GLIMPSE = 12  # in a list of people
MANY, FEW = 64, 4  # questions answered together, quick and slow ones


class BatchKey(NamedTuple):
    """What questions must have in common to be answered together.

    Attributes:
        live: the model they began with.
        domain: whose items are recommended; None asks for explanations.
        seen: whether items of the history may be recommended again.
        shares: whether scores are explained, which is done for one history after another.
    """

    live: LoadedModel
    domain: str | None = None
    seen: bool = False
    shares: bool = True


def max_batch_size(key: BatchKey) -> int:
    """Returns how many questions of a key are answered together: few of the slow ones, lest others wait."""
    return FEW if key.shares else MANY


def answer(key: BatchKey, questions: list[Any]) -> list[dict[str, Any] | HafvtError]:
    """Answers questions of one key, those that have no answer with an error: an unknown item, say."""
    if key.domain is None:
        return [explained(key.live, question) for question in questions]
    return list(recommended(key, questions))


def recommended(key: BatchKey, questions: Sequence[Recommend]) -> list[dict[str, Any]]:
    """Answers `/recommend`: the first k of the most that any of the questions asks for are its own."""
    assert key.domain is not None
    answers = key.live.recommender.recommend(
        [question.history for question in questions],
        key.domain,
        max(question.k for question in questions),
        exclude=[question.exclude for question in questions],
        exclude_seen=not key.seen,
    )
    found = []
    for question, whole in zip(questions, answers, strict=True):
        listed = whole.items[: question.k]
        items = [{**item_json(one.item), "score": one.score} for one in listed]
        if key.shares and whole.ranked_by == "model" and listed and key.live.recommender.scorer.can_explain:
            shares = shares_json(key.live, question.history, key.domain, whole, len(listed))
            items = [{**item, "shares": of_item} for item, of_item in zip(items, shares, strict=True)]
        found.append({"items": items, "by": whole.ranked_by, "unknown": list(whole.unknown_ids)})
    return found


def shares_json(
    live: LoadedModel, history: Sequence[str], domain: str, whole: Recommendations, k: int
) -> list[dict[str, dict[str, float]]]:
    """Returns for each of the first k recommended items: sequence -> modality -> share of its score."""
    scorer, catalog = live.recommender.scorer, live.recommender.catalog
    numbers = catalog.indices(history)[0][-scorer.max_length :]
    candidates = catalog.indices(one.item.item_id for one in whole.items[:k])[0]
    told = scorer.explain(numbers, catalog.domain_index(domain), candidates).shares
    return [
        {
            sequence: dict(zip(scorer.modalities, row, strict=True))
            for sequence, row in zip(scorer.sequence_names, of_item, strict=True)
        }
        for of_item in np.asarray(told).tolist()
    ]


def explained(live: LoadedModel, question: Explain) -> dict[str, Any] | HafvtError:
    """Answers `/explain`."""
    try:
        told = live.recommender.explain(question.history, question.item)
    except HafvtError as error:
        return error
    return {
        "item": item_json(told.item),
        "score": told.score,
        "rank": told.rank,
        "history": [item_json(item) for item in told.history],
        "shares": [{"sequence": s, "modality": m, "share": share} for (s, m), share in told.shares.items()],
        "attention": [
            {"sequence": s, "modality": m, "weights": weights} for (s, m), weights in told.attention.items()
        ],
        "unknown": list(told.unknown_ids),
    }


def item_json(item: Item) -> dict[str, Any]:
    """Returns an item as the page reads it."""
    return {
        "item_id": item.item_id,
        "title": item.title,
        "domain": item.domain,
        "picture": f"/pictures/{quote(item.item_id, safe='')}" if item.image else None,
        "train_count": item.train_count,
    }


def model_json(live: LoadedModel) -> dict[str, Any]:
    """Answers `/model`."""
    scorer = live.recommender.scorer
    return {
        "name": scorer.name,
        "domains": [{"name": d.name, "items": len(d)} for d in live.recommender.catalog.domains],
        "sequences": scorer.sequence_names,
        "modalities": scorer.modalities,
        "max_length": scorer.max_length,
        "explains": scorer.can_explain,
        "people": live.people is not None,
    }


def items_json(live: LoadedModel, query: str, domain: str | None, limit: int, offset: int) -> dict[str, Any]:
    """Answers a search.

    Raises:
        HafvtError: there is no such domain.
    """
    numbers = live.search.find(query, domain)
    shown = numbers[offset : offset + limit].tolist()
    return {"items": [item_json(live.recommender.catalog.item(n)) for n in shown], "total": len(numbers)}


def people_json(live: LoadedModel, limit: int, offset: int) -> dict[str, Any]:
    """Answers `/people`, in the dataset's order."""
    if live.people is None:
        return {"people": [], "total": 0}
    users = range(live.people.num_users)[offset : offset + limit]
    people = [
        {"user_id": live.people.user_ids[user], "history": _history(live, user, GLIMPSE)} for user in users
    ]
    return {"people": people, "total": live.people.num_users}


def person_json(live: LoadedModel, user_id: str) -> dict[str, Any] | None:
    """Answers `/people/{id}`; None where there is no such person."""
    if live.people is None:
        return None
    users = (live.people.user_ids == user_id).arg_true()
    if not len(users):
        return None
    return {"user_id": user_id, "history": _history(live, users[0], HISTORY)}


def _history(live: LoadedModel, user: int, most: int) -> list[dict[str, Any]]:
    """Returns the last items of a person that the catalog has, oldest first."""
    assert live.people is not None
    start, stop = live.people.offsets[user], live.people.offsets[user + 1]
    numbers = np.asarray(live.people.items[max(start, stop - most) : stop], dtype=np.int64)
    catalog = live.recommender.catalog
    known, _ = catalog.indices(live.people.item_table["item_id"].gather(numbers))
    return [item_json(catalog.item(number)) for number in known.tolist()]
