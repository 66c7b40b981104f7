from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hafvt.data.filters import is_active_in_all_domains, is_recent, k_core

DOMAINS = np.array([0, 0, 0, 1, 1, 1], dtype=np.int32)  # of six items
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60)


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    users, items = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    return users, items


def plain_core(pairs: list[tuple[int, int]], min_per_domain: int, min_per_item: int) -> list[tuple[int, int]]:
    """The same by dropping one user or item after the other."""
    while True:
        by_user = Counter((user, DOMAINS[item]) for user, item in pairs)
        by_item = Counter(item for _, item in pairs)
        bad_user = next((u for u, _ in pairs if min(by_user[u, 0], by_user[u, 1]) < min_per_domain), None)
        bad_item = next((i for i in by_item if by_item[i] < min_per_item), None)
        if bad_user is None and bad_item is None:
            return pairs
        pairs = [(u, i) for u, i in pairs if u != bad_user and i != bad_item]


@given(pairs=PAIRS, min_per_domain=st.integers(0, 3), min_per_item=st.integers(0, 4))
def test_k_core_equals_removal_one_by_one(
    pairs: list[tuple[int, int]], min_per_domain: int, min_per_item: int
) -> None:
    users, items = arrays(pairs)
    core = k_core(users, items, DOMAINS, min_per_domain=min_per_domain, min_per_item=min_per_item)
    expected = plain_core(pairs, min_per_domain, min_per_item)
    assert list(zip(users[core.interactions], items[core.interactions], strict=True)) == expected
    used_items = {item for _, item in expected}
    assert set(np.flatnonzero(core.items)) == (used_items if min_per_item else set(range(6)))


def test_k_core_removed_item_removes_its_user() -> None:
    # Item 2 occurs once. Without it user 1 has no domain 0, and without user 1 item 4 occurs once.
    users, items = arrays([(0, 0), (0, 0), (0, 3), (0, 3), (0, 4), (1, 2), (1, 4)])
    core = k_core(users, items, DOMAINS, min_per_domain=1, min_per_item=2)
    assert core.interactions.tolist() == [True] * 4 + [False] * 3
    assert core.items.tolist() == [True, False, False, True, False, False]


def test_is_active_in_all_domains_needs_the_minimum_in_each() -> None:
    users, items = arrays([(0, 0), (0, 3), (1, 0), (1, 1), (3, 4)])
    assert is_active_in_all_domains(users, DOMAINS[items], 2, 1).tolist() == [True, False, False, False]
    assert is_active_in_all_domains(users, DOMAINS[items], 2, 0).all()
    assert is_active_in_all_domains(users[:0], items[:0], 2, 1).tolist() == []


@given(lengths=st.lists(st.integers(0, 6), max_size=8), last=st.integers(1, 5))
def test_is_recent_selects_the_last_of_each_user(lengths: list[int], last: int) -> None:
    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    expected = [n - position <= last for n in lengths for position in range(n)]
    assert is_recent(users, last).tolist() == expected
