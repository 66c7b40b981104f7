"""Rules of a request give the lists that a plain loop over all items gives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hafvt.errors import HafvtError
from hafvt.inference.rules import make_rules
from tests.inference.random_shop import random_recommender

CONDITIONS = {
    "brand in ('acme', 'orb') and price < 20": lambda i: (
        i["brand"] in ("acme", "orb") and i["price"] is not None and i["price"] < 20
    ),
    "brand in ['acme', 'it''s [odd]']": lambda i: i["brand"] == "acme",
    "array_contains(genres, 'tea')": lambda i: "tea" in i["genres"],
    "brand is null or not (price between 5 and 30)": lambda i: (
        i["brand"] is None or (i["price"] is not None and not 5 <= i["price"] <= 30)
    ),
    "domain = 'd1'": lambda i: i["domain"] == "d1",
    "item_id like 'i1%'": lambda i: i["item_id"].startswith("i1"),
}


def values_of(item, name):
    value = item[name]
    if name == "tags" and value:
        value = value.split("|")
    return [] if value is None else value if isinstance(value, list) else [value]


def ids_of(result):
    return [one.item.item_id for one in result.items]


def listed_by_loop(recommender, history, domain, k, *, exclude, exclude_seen, where, allow, max_per, pin):
    """The list by its definition: item after item, in the order of scores."""
    items = recommender.catalog.table.rows(named=True)
    span = recommender.catalog.domains[domain]
    known = [n for n, item in enumerate(items) if item["item_id"] in history]
    order = {item["item_id"]: n for n, item in enumerate(items)}
    scores = recommender.scores([np.array([order[i] for i in history if i in order], dtype=np.int64)], domain)
    ranked = sorted(range(span.start, span.stop), key=lambda n: (-scores[0][n - span.start], n))
    pins = {
        place: order[i]
        for place, i in pin.items()
        if i in order and span.start <= order[i] < span.stop and i not in exclude and place <= k
    }
    counts = Counter((name, v) for n in pins.values() for name in max_per for v in values_of(items[n], name))
    free = []
    for n in ranked:
        item = items[n]
        if n in pins.values() or item["item_id"] in exclude or (exclude_seen and n in known):
            continue
        if (where and not CONDITIONS[where](item)) or (allow is not None and item["item_id"] not in allow):
            continue
        values = [(name, v) for name in max_per for v in values_of(item, name)]
        if all(counts[value] < max_per[value[0]] for value in values):
            free.append(n)
            counts.update(values)
    listed, place = [], 1
    while len(listed) < k and (place in pins or free):
        listed.append(pins.pop(place) if place in pins else free.pop(0))
        place += 1
    listed += [pins[place] for place in sorted(pins)]
    return [items[n]["item_id"] for n in listed]


@pytest.mark.parametrize("seed", range(60))
def test_recommend_random_rules_equal_a_loop_over_all_items(seed):
    random, recommender = np.random.default_rng([7, seed]), random_recommender(seed)
    for _ in range(5):
        ids = [f"i{n}" for n in random.permutation(52)]  # two of them are unknown
        domain, k = int(random.integers(2)), int(random.choice([1, 3, 10, 60]))
        rules = {
            "exclude_seen": bool(random.integers(2)),
            "where": random.choice([None, *CONDITIONS]) if random.random() < 0.6 else None,
            "allow": ids[: random.integers(40)] if random.random() < 0.4 else None,
            "max_per": {
                name: int(random.integers(1, 4))
                for name in ("brand", "genres", "tags", "price")
                if random.random() < 0.3
            },
            "pin": {
                int(place): ids[-n]
                for n, place in enumerate(random.choice(12, 3, replace=False) + 1, start=1)
                if random.random() < 0.4
            },
        }
        history, exclude = ids[5 : 5 + random.integers(6)], ids[20 : 20 + random.integers(8)]
        (result,) = recommender.recommend([history], f"d{domain}", k, exclude=[exclude], **rules)
        assert ids_of(result) == listed_by_loop(recommender, history, domain, k, exclude=exclude, **rules)


def test_recommend_rules_come_before_k():
    recommender = random_recommender(0)
    (result,) = recommender.recommend([["i3"]], "d0", 4, where="price >= 20")
    assert len(result.items) == 4
    assert all(one.item.attributes["price"] >= 20 for one in result.items)


def test_recommend_pinned_item_has_its_place_even_if_seen_or_filtered():
    recommender = random_recommender(0)
    (result,) = recommender.recommend([["i3"]], "d0", 3, where="price > 1000", pin={2: "i3", 1: "i4"})
    assert ids_of(result) == ["i4", "i3"]
    as_list, excluded = (
        recommender.recommend([["i3"]], "d0", 3, pin=["i4", "i3"], exclude=[exclude])[0]
        for exclude in ([], ["i4"])
    )
    assert ids_of(as_list)[:2] == ["i4", "i3"]
    assert ids_of(excluded)[1] == "i3"
    assert "i4" not in ids_of(excluded)


def test_recommend_unknown_ids_of_rules_are_reported():
    (result,) = random_recommender(0).recommend([["i3"]], "d0", allow=["i1", "x"], pin={3: 99})
    assert result.unknown_rule_ids == ("x", "99")
    assert "2 ids to allow or to pin are unknown: 'x', '99'" in str(result)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"where": "size > 3"}, "where 'size > 3': no column 'size': the items have item_id, domain"),
        ({"where": "brand > 3"}, "compare numbers with numbers"),
        ({"where": "price >"}, "where 'price >': not a condition"),
        ({"where": "price"}, "not true or false for an item"),
        ({"where": "1 = 1"}, "no column in it"),
        ({"where": "price = max(price)"}, "use no functions but abs, array_contains"),
        ({"where": "rpad(brand, 1000000000, 'x') = 'a'"}, "use no functions but"),
        ({"where": "price > (select 1)"}, "use no functions but"),
        ({"where": "brand || brand = 'a'"}, "use no functions but"),
        ({"where": "price \0> 3"}, "a null character"),
        ({"where": 3}, "where is '3': write a condition"),
        ({"allow": "i3"}, "allow is 'i3', not a list of ids"),
        ({"max_per": {"size": 1}}, "no column 'size' in the items table: choose from item_id"),
        ({"max_per": {"brand": 0}}, "max_per has '0': give a whole number from 1"),
        ({"max_per": {"brand": 1.5}}, "max_per has '1.5': give a whole number from 1"),
        ({"max_per": 3}, "max_per is '3': write it as"),
        ({"pin": {0: "i3"}}, "pin has '0': give a whole number from 1"),
        ({"pin": {1: "i3", 2: "i3"}}, "pin has 'i3' twice: pin each item to its own place"),
    ],
)
def test_recommend_wrong_rule_raises(rules, message):
    with pytest.raises(HafvtError) as caught:
        random_recommender(0).recommend([["i3"]], "d0", **rules)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merged_rules_both_hold():
    first = make_rules(where="price < 20", allow=["i1", "i2"], max_per={"brand": 3}, pin={1: "i1", 2: "i2"})
    second = make_rules(
        where="brand = 'acme'", allow=["i2", "i3"], max_per={"brand": 2, "tags": 1}, pin=["i2", "i5"]
    )
    merged = first.merged_with(second)
    assert merged.where == "(price < 20) and (brand = 'acme')"
    assert merged.allow == ("i2",)
    assert merged.max_per == (("brand", 2), ("tags", 1))
    assert merged.pin == ((1, "i2"), (2, "i5"))
    assert first.merged_with(make_rules()) == first == make_rules().merged_with(first)
