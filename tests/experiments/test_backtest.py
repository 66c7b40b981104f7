"""Back-tests against plain loops: nothing of the future is known, and a stop costs no training."""

from __future__ import annotations

import json
import shlex
import shutil
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from hafvt.cli import main
from hafvt.data.cut_times import TimeScale
from hafvt.data.dataset import Dataset
from hafvt.data.leakage import measure_leakage
from hafvt.data.prepare import prepare
from hafvt.data.windows import known_part, plan_windows, write_window
from hafvt.errors import HafvtError, HafvtWarning
from hafvt.experiments import backtest as backtest_module
from hafvt.experiments.backtest import backtest
from hafvt.experiments.training_pool import TrainingPool
from hafvt.features.table import FeatureTable, write_table
from hafvt.training.train import train
from tests.data.test_cut_times import DAY, START, parts_of, split_by_hand, year_of_days

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "back_test.md"
OPTIONS = {"from_": "2024-03-01", "every": "10d", "windows": 2, "budget": "small", "jobs": 1}


@pytest.fixture
def trainings(monkeypatch):
    """Runs trainings in this process, and lists their folders."""
    folders = []

    def start(pool, model, options, params, log):
        folders.append(Path(options["out"]))
        train(model, params=params, resume=True, **options)

    monkeypatch.setattr(TrainingPool, "start", start)
    monkeypatch.setattr(TrainingPool, "wait", lambda *_: None)
    return folders


def shop(seed: int = 0) -> pl.DataFrame:
    """Returns a log of 100 days in which a new item appears every four days: 25 of the 30 of `items`."""
    random = np.random.default_rng(seed)
    days = np.sort(random.integers(0, 100 * DAY, 900)) / DAY
    rows = [(f"u{random.integers(0, 40)}", f"i{random.integers(0, 1 + day // 4):02}", day) for day in days]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "day"], orient="row")
    return log.select("user_id", "item_id", timestamp=(pl.col("day") * DAY + START).cast(pl.Int64))


def items() -> pl.DataFrame:
    return pl.DataFrame({"item_id": [f"i{n:02}" for n in range(30)], "domain": "all"})


def window_data(out: Path, date: str) -> Dataset:
    return Dataset.open(out / "windows" / date / "data")


def popularity_ranks(
    log: pl.DataFrame, valid_from: int, test_from: int, until: int
) -> dict[str, list[float]]:
    """Returns by user the ranks of a count of training interactions, ties at half, by plain loops."""
    known = log.filter(pl.col("timestamp") < until).sort("timestamp")
    train = known.filter(pl.col("timestamp") < valid_from)["item_id"].to_list()
    never = set(items()["item_id"]) - set(log["item_id"])
    catalog, seen, ranks = sorted(set(known["item_id"]) | never), {}, {}
    for user, item, time in known.iter_rows():
        history = seen.setdefault(user, [])
        if time >= test_from and history:
            candidates = [other for other in catalog if other not in history and other != item]
            own, others = train.count(item), [train.count(other) for other in candidates]
            rank = 1 + sum(count > own for count in others) + sum(count == own for count in others) / 2
            ranks.setdefault(user, []).append(np.inf if item in history else rank)
        history.append(item)
    return ranks


def test_backtest_equals_splits_made_by_hand(tmp_path, trainings):
    log, out = shop(), tmp_path / "out"
    data = prepare(log, items(), tmp_path / "data")
    result = backtest(data, ["popularity"], out=out, candidates="unseen", **OPTIONS)
    content = json.loads((out / "backtest.json").read_text())
    for number, date in enumerate(["2024-03-01", "2024-03-11"]):
        valid_from, test_from, until = (START + (50 + 10 * (number + n)) * DAY for n in range(3))
        window, known = window_data(out, date), log.filter(pl.col("timestamp") < until)
        assert parts_of(window) == split_by_hand(known, valid_from, test_from)
        # The same as `prepare --split-at` of the log that is known at the end of the window.
        catalog = items().filter(
            pl.col("item_id").is_in([*known["item_id"], *(f"i{n}" for n in range(25, 30))])
        )
        split_at = [str(valid_from), str(test_from)]
        by_hand = prepare(known, catalog, tmp_path / f"hand{number}", split_at=split_at)
        assert parts_of(window) == parts_of(by_hand)
        assert set(window.item_table["item_id"]) == set(by_hand.item_table["item_id"])
        assert set(window.user_ids) == set(by_hand.user_ids)
        assert measure_leakage(window).leaking_targets == 0
        (folder,) = (out / "windows" / date / "comparison" / "runs" / "popularity").glob("*/")
        expected = popularity_ranks(log, valid_from, test_from, until)
        table = pl.read_parquet(folder / "ranks.parquet")
        ranks = {user: sorted(part["rank"].to_list()) for (user,), part in table.group_by("user_id")}
        assert ranks == {user: sorted(values) for user, values in expected.items()}
        mrr = np.mean([1 / rank for values in expected.values() for rank in values])
        assert result.windows[number].mrr(0, "all") == pytest.approx(mrr)
        values = content["windows"][number]
        assert values["models"]["popularity"]["results"][0]["all"]["MRR"]["value"] == pytest.approx(mrr)
        assert f"{100 * mrr:.2f}" in result.text
        assert (values["test_from"], values["train_interactions"]) == (date, len(parts_of(window)["train"]))


def test_backtest_knows_nothing_of_the_future(tmp_path):
    log = shop()
    until = START + 70 * DAY
    other = log.with_columns(
        item_id=pl.when(pl.col("timestamp") < until).then("item_id").otherwise(pl.lit("i00")),
        timestamp=pl.when(pl.col("timestamp") < until).then("timestamp").otherwise(pl.lit(until + 7)),
    )
    parts = []
    for number, one in enumerate([log, other, log.filter(pl.col("timestamp") < until)]):
        data = prepare(one, None, tmp_path / f"data{number}")
        scale = TimeScale.of(data.times)
        (window,) = plan_windows(scale, START + 60 * DAY, "10d", 1)
        written = write_window(
            data, tmp_path / f"window{number}", window, known_part(data, scale, window), {}
        )
        parts.append((parts_of(written), set(written.item_table["item_id"]), set(written.user_ids)))
    assert parts[0] == parts[1] == parts[2]


def test_backtest_repeated_trains_nothing_and_continues_after_a_stop(tmp_path, trainings, monkeypatch):
    data = prepare(shop(), items(), tmp_path / "data")
    models, complete = ["popularity", "item-knn"], tmp_path / "complete"
    expected = backtest(data, models, out=complete, **OPTIONS)
    assert len(trainings) == 4
    assert backtest(data, models, out=complete, **OPTIONS).text == expected.text
    assert len(trainings) == 4
    for stopped in ("write_window", "copy_feature_tables", "run_comparison", "write_comparison"):
        original, calls = getattr(backtest_module, stopped), []

        def stop(*arguments, original=original, calls=calls):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(backtest_module, stopped, stop)
            with pytest.raises(KeyboardInterrupt):
                backtest(data, models, out=tmp_path / stopped, **OPTIONS)
    trainings.clear()
    resumed = backtest(data, models, out=tmp_path / "write_comparison", **OPTIONS)
    assert trainings == []
    assert resumed.text == expected.text.replace(str(complete), str(resumed.folder))
    with pytest.raises(HafvtError, match="of a back-test of another dataset, or with another --every"):
        backtest(data, models, out=complete, **OPTIONS | {"every": "5d"})
    with pytest.raises(HafvtError, match="holds a back-test with another candidates: choose another folder"):
        backtest(data, models, out=complete, candidates="all", **OPTIONS)


def test_backtest_windows_have_the_vectors_of_their_items(tmp_path, trainings):
    data = prepare(shop(), items(), tmp_path / "data")
    rows, present = np.eye(30, 40, dtype=np.float16), np.arange(30) != 3
    rows[3] = 0
    write_table(data.folder / "features" / "title", rows, present, {"encoder": "test", "counts": {}})
    options = OPTIONS | {"windows": 1}
    backtest(data, ["popularity"], out=tmp_path / "out", **options)
    window = window_data(tmp_path / "out", "2024-03-01")
    table = FeatureTable.open(window.folder / "features" / "title")
    assert 0 < len(table.rows) < 30
    for row, item_id in enumerate(window.item_table["item_id"]):
        before = data.item_table["item_id"].index_of(item_id)
        assert np.array_equal(table.rows[row], rows[before])
        assert table.present[row] == present[before]
    shutil.rmtree(data.folder / "features" / "title")
    write_table(data.folder / "features" / "title", rows[::-1].copy(), present[::-1], {"encoder": "test"})
    with pytest.raises(HafvtError, match=r"its features title changed since .* was written: choose another"):
        backtest(data, ["popularity"], out=tmp_path / "out", **options)


def test_backtest_figure_has_a_line_for_each_model(tmp_path, trainings):
    data = prepare(shop(), items(), tmp_path / "data")
    models = ["popularity", "item-knn"]
    result = backtest(data, models, out=tmp_path / "out", **OPTIONS)
    figure = ElementTree.parse(tmp_path / "out" / "backtest.svg").getroot()
    lines = [element for element in figure.iter() if element.tag.endswith("polyline")]
    assert [len(line.get("points").split()) for line in lines] == [2, 2]
    texts = [element.text for element in figure.iter() if element.tag.endswith("text")]
    assert {*models, "2024-03-01", "2024-03-11"} <= set(texts)
    assert "| best at |" in result.text
    assert "![MRR over time](backtest.svg)" in (tmp_path / "out" / "backtest.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from_": "soon"}, "--from soon: give a date such as 2026-12-24"),
        ({"every": "10"}, "--every 10: give the length of a period of these times, such as 30d"),
        ({"every": "0d"}, "--every 0d: give the length"),
        (
            {"from_": "2024-04-09", "windows": None},
            "--from 2024-04-09 --every 10d: the interactions end at 2024",
        ),
        ({"from_": "2024-01-01"}, "from 2024-01-01 until 2024-01-11 has no training interactions; the inter"),
        (
            {"from_": "2024-04-05"},
            "from 2024-04-15 until 2024-04-25 has no test targets; the interactions are",
        ),
        ({"models": ["popularity", "popularity"]}, "name each model once"),
        ({"models": ["best"]}, "no model 'best'"),
        ({"items": "items.csv"}, "--items: a dataset has its items"),
        ({"protocol": "other"}, "no protocol 'other'"),
    ],
)
def test_backtest_with_wrong_settings_names_them_and_creates_nothing(changes, message, tmp_path):
    data = prepare(year_of_days(), None, tmp_path / "data")
    options = {"models": ["popularity"], **OPTIONS, **changes}
    with pytest.raises(HafvtError, match=message):
        backtest(data, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_backtest_of_a_dataset_with_filters_warns(tmp_path, trainings):
    data = prepare(shop(), items(), tmp_path / "data", last=20)
    with pytest.warns(HafvtWarning, match="was prepared with --last 20, which selects by all interactions"):
        backtest(data, ["popularity"], out=tmp_path / "out", **OPTIONS | {"windows": 1})


def test_plan_windows_follows_the_calendar_and_numbers():
    dates = TimeScale(START, START + 366 * DAY, 1)
    planned = plan_windows(dates, START + 31 * DAY, "1mo", None)
    months = [datetime(2024, month, 1, tzinfo=UTC).timestamp() for month in range(1, 13)]
    assert [window.test_from for window in planned] == months[1:]
    assert [window.valid_from for window in planned] == months[:-1]
    numbers = plan_windows(TimeScale(0, 100, None), 40, "20", None)
    assert [(w.valid_from, w.test_from, w.until) for w in numbers] == [
        (20, 40, 60),
        (40, 60, 80),
        (60, 80, 100),
    ]
    milliseconds = TimeScale(START * 1000, (START + 40 * DAY) * 1000, 1000)
    (window,) = plan_windows(milliseconds, START * 1000 + 5, "12h", 1)
    assert window.until == START * 1000 + 5 + DAY * 500


def test_documented_backtest_of_tables_runs(tmp_path, trainings, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shop().write_csv("interactions.csv")
    items().write_csv("items.csv")
    text = PAGE.read_text(encoding="utf-8")
    (command,) = [
        shlex.split(line)[1:]
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("hafvt backtest interactions.csv")
    ]
    for _ in range(2):
        assert main(command) == 0
    assert len(trainings) == len(set(trainings)) == 6
    printed = capsys.readouterr()
    assert "| mean |" in printed.out
    assert "window 1 of 3: 2024-02-10 until 2024-02-25" in printed.err.replace("\n", " ")
