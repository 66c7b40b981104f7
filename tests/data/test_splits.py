from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hafvt.data.splits import Split, leave_one_out, split_by_time
from hafvt.errors import HafvtError

HISTORIES = st.lists(st.lists(st.integers(0, 30), max_size=8).map(sorted), min_size=1, max_size=12)
SHARES = st.floats(0.05, 0.45)


def flat(histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *(len(h) for h in histories)])
    return offsets, np.array([time for h in histories for time in h], dtype=np.int64)


def trained_on(split: Split, offsets: np.ndarray) -> set[int]:
    spans = zip(offsets[:-1], split.train_lengths, strict=True)
    return {position for start, length in spans for position in range(start, start + length)}


def test_leave_one_out_short_histories_have_no_targets() -> None:
    split = leave_one_out(np.array([0, 4, 6, 6, 9, 10]))
    assert split.train_lengths.tolist() == [2, 2, 0, 1, 1]
    assert split.valid.tolist() == [2, 7]
    assert split.test.tolist() == [3, 8]


@given(histories=HISTORIES)
def test_leave_one_out_uses_each_interaction_once(histories: list[list[int]]) -> None:
    offsets, times = flat(histories)
    split = leave_one_out(offsets)
    parts = [trained_on(split, offsets), set(split.valid.tolist()), set(split.test.tolist())]
    assert sum(map(len, parts)) == len(times)
    assert set.union(*parts) == set(range(len(times)))
    assert not set(offsets[:-1].tolist()) & (parts[1] | parts[2])  # a target has a history


def test_split_by_time_cuts_at_times_of_interactions() -> None:
    offsets, times = flat([[1, 2, 3, 4, 9], [5, 6, 10], [8, 9], [7]])
    split = split_by_time(offsets, times, valid_share=0.2, test_share=0.2)
    # The cuts are numbers 7 and 9, from 0, of 1 2 3 4 5 6 7 8 9 9 10.
    assert split.train_lengths.tolist() == [4, 2, 0, 1]
    assert split.valid.tolist() == []  # 8 has no history
    assert split.test.tolist() == [4, 7, 9]


@given(histories=HISTORIES, valid_share=SHARES, test_share=SHARES)
def test_split_by_time_training_precedes_validation_and_test(
    histories: list[list[int]], valid_share: float, test_share: float
) -> None:
    offsets, times = flat(histories)
    assume(len(times))
    try:
        split = split_by_time(offsets, times, valid_share=valid_share, test_share=test_share)
    except HafvtError:
        rank_targets = sorted(times)  # only where the smallest time reaches up to the first cut
        assert (
            rank_targets[
                min(int(np.ceil((1 - valid_share - test_share) * len(times) - 1e-9)), len(times) - 1)
            ]
            == rank_targets[0]
        )
        return
    trained, valid, test = trained_on(split, offsets), split.valid.tolist(), split.test.tolist()
    assert trained
    later = sorted(set(range(len(times))) - trained)
    assert max(times[list(trained)]) < min(times[later])
    if valid and test:
        assert max(times[valid]) < min(times[test])
    firsts = set(offsets[:-1].tolist())
    assert not firsts & {*valid, *test}
    missing = set(later) - {*valid, *test}
    assert missing <= firsts  # only what has no history is no target
    assert np.sum(times >= min(times[later])) >= (valid_share + test_share) * len(times) - 1


def test_split_by_time_large_times_are_exact() -> None:
    start = 1_700_000_000_000_000_000
    offsets, times = np.array([0, 10]), start + np.arange(10)
    split = split_by_time(offsets, times, valid_share=0.1, test_share=0.1)
    assert (split.train_lengths.tolist(), split.valid.tolist(), split.test.tolist()) == ([8], [8], [9])


def test_split_by_time_without_training_interactions_is_refused() -> None:
    with pytest.raises(HafvtError, match="nothing to train on"):
        split_by_time(np.array([0, 4]), np.array([5, 5, 5, 5]), valid_share=0.1, test_share=0.1)
