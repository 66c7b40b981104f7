"""`hafvt explain`: how each branch of a model contributes to the score of an item."""

from __future__ import annotations

from pathlib import Path

from hafvt.data.dataset import Dataset
from hafvt.data.table_options import TimeFormat, TimeZone
from hafvt.data.times import TimeLike, parse_request_time
from hafvt.errors import ArgumentError
from hafvt.inference.histories import read_user_history
from hafvt.inference.recommendations import Explanation
from hafvt.inference.recommender import Recommender
from hafvt.settings import Folder, check_arguments


@check_arguments
def explain(
    run: Folder,
    item: str | int,
    *,
    history: list[str] | list[int] | None = None,
    user: str | int | None = None,
    data: str | Path | Dataset | None = None,
    time: TimeLike = None,
    time_format: TimeFormat | None = None,
    time_zone: TimeZone = "UTC",
) -> Explanation:
    """Explain the score of an item by sequences, modalities and attention.

    The score of HAF-VT is a sum over sequences (the history in each domain, and the whole history) and
    modalities (id, picture, title), so the shares are exact. Models without such parts cannot explain.

    Example: hafvt explain runs/hafvt 1198 --user 5988

    Args:
        run: the folder of a finished run or of an export.
        item: id of any item of the catalog, even one of the history.
        history: item ids of any domains, oldest first.
        user: instead of a history, a user of the dataset, with all interactions.
        data: the dataset, if it has moved since training.
        time: of the request, see `hafvt recommend`; default: now. For models that know the date.
        time_format: form of --time, as for recommend.
        time_zone: zone of --time if it names none, as for recommend.

    Raises:
        HafvtError: the model cannot explain scores, or the user, the item or the whole history is unknown.
    """
    request_time = parse_request_time(time, time_format, time_zone)
    recommender = Recommender.open(run, data)
    if history is not None and user is None:
        return recommender.explain(history, item, time=request_time)
    if user is not None and history is None:
        return recommender.explain(read_user_history(run, user, data), item, time=request_time)
    raise ArgumentError("no history: give either --history ID ID ... or --user USER")
