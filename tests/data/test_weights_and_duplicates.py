"""Weights of interactions and removal of duplicates in `prepare`."""

from __future__ import annotations

import polars as pl
import pytest

from hafvt.data.prepare import prepare
from hafvt.data.table_options import TableOptions
from hafvt.errors import HafvtError, HafvtWarning, InputError
from hafvt.inference.recommender import Recommender
from hafvt.training.run import fingerprint
from hafvt.training.train import train

ROWS = [
    ("u", "a", 1, 2.0),
    ("u", "a", 1, 3.0),
    ("u", "b", 2, 1.0),
    ("u", "a", 3, 0.5),
    ("v", "a", 1, 4.0),
    ("v", "b", 2, 0.0),
    ("v", "c", 5, 1.0),
]


def log(rows=ROWS):
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "qty"], orient="row")


def events(data):
    """Returns user, item, time and weight of all interactions."""
    users = data.users_at(range(len(data.items)))
    weights = [None] * len(data.items) if data.weights is None else data.weights.tolist()
    ids = (data.user_ids.gather(users), data.item_table["item_id"].gather(data.items))
    return sorted(zip(*ids, data.times.tolist(), weights, strict=True))


def test_prepare_weight_keeps_the_column(tmp_path):
    data = prepare(log(), out=tmp_path / "data", weight="qty")
    assert events(data) == sorted(ROWS)
    plain = prepare(log(), out=tmp_path / "plain")
    assert plain.weights is None
    assert fingerprint(plain) != fingerprint(data)
    assert not (tmp_path / "plain" / "weights.npy").exists()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("keep", ROWS), ("drop", ROWS[1:]), ("last", [*ROWS[2:4], *ROWS[4:]])],
)
def test_prepare_duplicates_removes_what_the_rule_says(rule, expected, tmp_path):
    data = prepare(log(), out=tmp_path / "data", weight="qty", duplicates=rule)
    assert events(data) == sorted(expected)
    other = prepare(log(ROWS[::-1]), out=tmp_path / "other", weight="qty", duplicates=rule)
    for name in ("items.npy", "times.npy", "weights.npy"):
        assert (data.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_prepare_log_written_twice_warns_and_drop_mends_it(tmp_path):
    rows = [(f"u{u}", f"i{(u * 7 + n) % 11}", n, 1) for u in range(9) for n in range(5)]
    single = prepare(log(rows), out=tmp_path / "once")
    with pytest.warns(HafvtWarning, match=r"45 of 90 .* written twice.*: use --duplicates drop"):
        prepare(log(rows + rows), out=tmp_path / "twice")
    mended = prepare(log(rows + rows), out=tmp_path / "mended", duplicates="drop")
    assert events(mended) == events(single)
    assert fingerprint(mended) == fingerprint(single)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2", "x", "1"], "row 3, column 'qty', value 'x': not a weight. Give a number from 0 on"),
        (["2", "-1", "1"], "row 3, column 'qty', value '-1': not a weight"),
        (["2", "", "1"], "row 3, column 'qty'.*: not a weight"),
        (["0", "0", "0"], "column 'qty': all weights are 0. Name another column by --weight"),
    ],
)
def test_prepare_wrong_weight_is_refused_with_its_place(values, message, tmp_path):
    lines = ["user_id,item_id,timestamp,qty", *(f"u,i{n},{n},{value}" for n, value in enumerate(values))]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "log.csv", out=tmp_path / "data", weight="qty")
    with pytest.raises(InputError, match="no column 'count' among user_id, item_id, timestamp, qty"):
        prepare(tmp_path / "log.csv", out=tmp_path / "data", weight="count")


def test_prepare_keep_of_ratings_and_weight_of_the_same_column(tmp_path):
    data = prepare(log(), out=tmp_path / "data", table_options=TableOptions(keep="qty >= 1"), weight="qty")
    assert events(data) == sorted(row for row in ROWS if row[3] >= 1)


def test_train_on_weights_keeps_them_in_the_run(tmp_path):
    rows = [(f"u{u}", f"i{(u + n) % 5}", 1_600_000_000 + n, n + u % 3) for u in range(9) for n in range(5)]
    data = prepare(log(rows), out=tmp_path / "data", weight="qty")
    for model in ("popularity", "recent-popularity", "sasrec"):
        params = {"width": 8} if model == "sasrec" else {}
        run = train(model, data, tmp_path / model, params=params, epochs=1)
        expected = [i.score for i in Recommender.open(run).recommend([["i1"]], k=5)[0].items]
        data.folder.rename(tmp_path / "away")
        assert [i.score for i in Recommender.open(run).recommend([["i1"]], k=5)[0].items] == expected
        (tmp_path / "away").rename(data.folder)
    plain = prepare(log(rows), out=tmp_path / "plain")
    with pytest.raises(HafvtError, match="the dataset changed"):
        train("sasrec", plain, tmp_path / "sasrec", params={"width": 8}, epochs=1, resume=True)
