"""Rules of a request: which items may be recommended, and at which places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

from hafvt.data.conditions import check_item_condition
from hafvt.data.ids import id_text, id_texts
from hafvt.errors import HafvtError

MAX_PLACE = 1_000_000


class Rules(NamedTuple):
    """Rules that hold for each history of a request; made by `make_rules`.

    Attributes:
        where: condition in SQL over columns of the items table that recommended items meet; None for all.
        allow: ids of the only items that are recommended; None for all.
        max_per: by column of the items table, the largest number of recommended items with equal values.
        pin: pairs of a place, 1 for the first, and the id of the item that is recommended there.
        diversity: weight of the diversity of the list, from 0 to 1.
        calibrate: by column of the items table, the weight of equal shares of values in list and history.
    """

    where: str | None = None
    allow: tuple[str, ...] | None = None
    max_per: tuple[tuple[str, int], ...] = ()
    pin: tuple[tuple[int, str], ...] = ()
    diversity: float = 0.0
    calibrate: tuple[tuple[str, float], ...] = ()

    def merged_with(self, other: Rules) -> Rules:
        """Return rules under which both hold; of two pinned items at a place or two weights, the other's.

        Raises:
            HafvtError: the weights sum to more than 1.
        """
        where = self.where or other.where
        if self.where is not None and other.where is not None:
            where = f"({self.where}) and ({other.where})"
        allow = self.allow if other.allow is None else other.allow
        if self.allow is not None and other.allow is not None:
            known = set(other.allow)
            allow = tuple(item_id for item_id in self.allow if item_id in known)
        caps = dict(self.max_per)
        for name, count in other.max_per:
            caps[name] = min(count, caps.get(name, count))
        pins = {place: item_id for place, item_id in self.pin if item_id not in dict(other.pin).values()}
        return Rules(
            where=where,
            allow=allow,
            max_per=tuple(sorted(caps.items())),
            pin=tuple(sorted((pins | dict(other.pin)).items())),
            **_weights(other.diversity or self.diversity, dict(self.calibrate) | dict(other.calibrate)),
        )


NO_RULES = Rules()


class RuleOptions(TypedDict, total=False):
    """Rules of a request; items are left out before the best k are taken.

    Attributes:
        where: condition in SQL over columns of the items table that recommended items meet, such as
            "category in ('tea') and price < 20"; an unknown value meets none but "is null".
        allow: ids of the only items to recommend.
        max_per: by column of the items table, the largest number of recommended items with equal values, such
            as {"brand": 2}; items without a value have no limit.
        pin: by place, 1 for the first, ids of items that are recommended there, even if other rules or
            `exclude_seen` leave them out; or a list of ids for the first places.
        diversity: weight from 0 to 1 of choosing items that differ in picture and title from those above.
        calibrate: by column of the items table, the weight from 0 to 1 of lists with the shares of values
            that the history has in the domain, such as {"category": 0.3}.
    """

    where: str | None
    allow: Iterable[str | int] | None
    max_per: Mapping[str, int] | Iterable[tuple[str, int]] | None
    pin: Mapping[int, str | int] | Iterable[Any] | None
    diversity: float
    calibrate: Mapping[str, float] | Iterable[tuple[str, float]] | None


def make_rules(
    *,
    where: str | None = None,
    allow: Iterable[str | int] | None = None,
    max_per: Mapping[str, int] | Iterable[tuple[str, int]] | None = None,
    pin: Mapping[int, str | int] | Iterable[Any] | None = None,
    diversity: float = 0.0,
    calibrate: Mapping[str, float] | Iterable[tuple[str, float]] | None = None,
) -> Rules:
    """Return checked rules; the arguments are those of `RuleOptions`.

    Raises:
        HafvtError: a rule is none, whatever the items are.
    """
    if where is not None:
        if not isinstance(where, str):
            raise HafvtError(f'where is {str(where)[:80]!r}: write a condition such as "price < 20"')
        check_item_condition(where)
    pins = [] if pin is None else _pairs(_with_places(pin), "pin", '{1: "id"}')
    places = [(_number(place, "pin", int, 1, MAX_PLACE), id_text(item_id)) for place, item_id in pins]
    for values in zip(*places, strict=True):
        if repeated := [value for value in values if values.count(value) > 1]:
            raise HafvtError(f"pin has {str(repeated[0])[:80]!r} twice: pin each item to its own place")
    caps = [] if max_per is None else _pairs(max_per, "max_per", '{"brand": 2}')
    return Rules(
        where,
        None if allow is None else tuple(dict.fromkeys(id_texts(allow, "allow"))),
        tuple(sorted((str(name), _number(count, "max_per", int, 1, MAX_PLACE)) for name, count in caps)),
        tuple(sorted(places)),
        **_weights(diversity, [] if calibrate is None else _pairs(calibrate, "calibrate", '{"brand": 0.3}')),
    )


def _weights(diversity: Any, calibrate: Any) -> dict[str, Any]:
    """Return checked weights of diversity and of calibrated columns.

    Raises:
        HafvtError: one is not from 0 to 1, or their sum is above 1.
    """
    diversity = _number(diversity, "diversity", float, 0, 1)
    pairs = dict(calibrate).items()
    weights = {str(name): _number(weight, "calibrate", float, 0, 1) for name, weight in pairs}
    if (total := diversity + sum(weights.values())) > 1 + 1e-9:
        raise HafvtError(f"the weights of diversity and calibrate sum to {total:g}: give at most 1")
    return {"diversity": diversity, "calibrate": tuple(sorted(pair for pair in weights.items() if pair[1]))}


def _with_places(pin: Any) -> Any:
    """Return pinned items by place; those of a list are at the first places."""
    if isinstance(pin, list) and not any(isinstance(one, tuple) for one in pin):
        return dict(enumerate(pin, start=1))
    return pin


def _pairs(values: Any, name: str, example: str) -> list[tuple[Any, Any]]:
    """Return the pairs of a mapping or a list of pairs."""
    try:
        return [(key, value) for key, value in (values.items() if isinstance(values, Mapping) else values)]
    except (TypeError, ValueError):
        raise HafvtError(f"{name} is {str(values)[:80]!r}: write it as {example}") from None


def _number(value: Any, name: str, convert: Callable[[Any], Any], low: float, high: float) -> Any:
    """Return a value as a number from `low` to `high`."""
    try:
        number = convert(value)
        if isinstance(value, bool) or number != (value if not isinstance(value, str) else number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not low <= number <= high:
        kind = "a whole number" if convert is int else "a number"
        raise HafvtError(f"{name} has {str(value)[:80]!r}: give {kind} from {low:g} to {high:,}")
    return number
