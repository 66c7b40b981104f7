"""`hafvt explain`: why an item has its score for a history."""

from __future__ import annotations

from pathlib import Path

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.inference.histories import history_of
from hafvt.inference.recommender import Explanation, Recommender


def explain(
    run: str | Path,
    item: str,
    *,
    history: list[str] | None = None,
    user: str | None = None,
    data: str | Path | Dataset | None = None,
) -> Explanation:
    """Tells why an item has its score: shares of sequences and modalities, and what was attended to.

    The score of HAF-VT is a sum over sequences (the history in each domain, and all of it) and what items are
    known by (id, picture, title), so its shares are exact. Other models cannot tell.

    Example: hafvt explain runs/hafvt --user 5988 --item 1198

    Args:
        run: the folder of a finished run or of an export.
        item: the id of any item of the catalog.
        history: ids of items of any domains, oldest first; an item that the history has is explained too.
        user: in place of a history, a user of the dataset, with all that it knows of them.
        data: the dataset, where it has moved since training.

    Raises:
        HafvtError: the model cannot explain itself, or user, item or all of the history is unknown.
    """
    if (history is None) == (user is None):
        raise HafvtError("whose recommendation? give either --history ID ID ... or --user USER")
    recommender = Recommender.open(run, data)
    if user is not None:
        history = history_of(run, user, data)
    return recommender.explain(history or [], item)
