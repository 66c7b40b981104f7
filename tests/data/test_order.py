from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hafvt.data.order import TimeTies, count_ties, sort_histories, user_offsets

Row = tuple[int, int, float]
ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from([-1.5, 0.0, 0.25, 7.0])), max_size=40
)


def arrays(rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, items, times = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return users.astype(np.int32), items.astype(np.int32), times


def histories(rows: list[Row], ties: str = "random", seed: int = 0) -> list[Row]:
    users, items, times = arrays(rows)
    order = sort_histories(users, items, times, tie_order=ties, random=np.random.default_rng(seed))  # type: ignore[arg-type]
    return [rows[n] for n in order]


@given(rows=ROWS, seed=st.integers(0, 3), data=st.data())
def test_sort_histories_random_ties_do_not_depend_on_row_order(
    rows: list[Row], seed: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(rows))
    sorted_rows = histories(rows, seed=seed)
    assert histories(shuffled, seed=seed) == sorted_rows
    assert sorted(sorted_rows) == sorted(rows)
    keys = [(user, time) for user, _, time in sorted_rows]
    assert keys == sorted(keys)


@given(rows=ROWS)
def test_sort_histories_input_ties_keep_row_order(rows: list[Row]) -> None:
    assert histories(rows, "input") == sorted(rows, key=lambda row: (row[0], row[2]))


def test_sort_histories_random_ties_are_uniform() -> None:
    rows: list[Row] = [(user, item, 5.0) for user in range(3000) for item in range(3)]
    items = np.array([item for _, item, _ in histories(rows)]).reshape(-1, 3)
    orders, counts = np.unique(items @ [9, 3, 1], return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 400  # 500 each are expected
    assert histories(rows, seed=1) != histories(rows, seed=0)


@given(rows=ROWS)
def test_count_ties_equals_plain_count(rows: list[Row]) -> None:
    rows = histories(rows)
    pairs = [(a, b) for a, b in pairwise(rows) if a[0] == b[0]]
    expected = TimeTies(len(pairs), sum(a[2] == b[2] for a, b in pairs), len(rows) - len(set(rows)))
    assert count_ties(*arrays(rows)) == expected


def test_user_offsets_user_without_interactions_is_empty() -> None:
    assert user_offsets(np.array([0, 0, 2], dtype=np.int32), 4).tolist() == [0, 2, 2, 3, 3]
