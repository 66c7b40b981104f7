"""Trainings that start from the weights of a run on an earlier dataset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from hafvt.data.dataset import Dataset, write_dataset
from hafvt.errors import HafvtError
from hafvt.features.table import FeatureTable, write_table
from hafvt.models import MODELS
from hafvt.training.run import open_run
from hafvt.training.train import train
from tests.conftest import SMALL_PARAMS, write_small

PARAMS = SMALL_PARAMS | {"hafvt-paper": {"width": 8}, "hafvt": {"id_width": 8, "use_request_date": True}}
TRAINED = [name for name, entry in MODELS.items() if entry.has_weights]


def write_larger(folder, small, sizes=(33, 22), names=("d0", "d1"), domains=None):
    """Returns a dataset with the items of a small one in another order, between new ones, and more users."""
    larger = write_small(folder, users=50, sizes=sizes, seed=1, with_features=False)
    table, order = larger.item_table, []
    old = dict(zip(small.item_table["item_id"], small.item_table["domain"], strict=True))
    for number, domain in enumerate(larger.domains):
        ids = [item for item, of in old.items() if number < len(names) and of == names[number]][::-1]
        order += [f"new{number}-{n}" for n in range(len(domain) - len(ids))] + ids
    domain_names = domains or [domain.name for domain in larger.domains]
    items = table.with_columns(
        pl.Series("item_id", order),
        pl.Series("domain", np.repeat(domain_names, [len(d) for d in larger.domains])),
    )
    data = write_dataset(
        folder,
        domains=[replace(d, name=name) for d, name in zip(larger.domains, domain_names, strict=True)],
        item_table=items,
        user_ids=larger.user_ids,
        items=larger.items,
        times=larger.times + 10_000_000,
        offsets=larger.offsets,
        train_lengths=larger.train_lengths,
        valid=larger.valid,
        test=larger.test,
        overwrite=True,
    )
    random = np.random.default_rng(5)
    for name in ("image", "title"):
        table = FeatureTable.open(small.folder / "features" / name)
        rows = random.normal(size=(data.num_items, table.rows.shape[1]))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        present = np.ones(data.num_items, dtype=bool)
        for row, item in enumerate(order):
            if item in old:
                number = list(old).index(item)
                rows[row], present[row] = table.rows[number], table.present[number]
        write_table(folder / "features" / name, rows.astype(np.float16), present, {"encoder": "test"})
    return data


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("old") / "data")


@pytest.fixture(scope="module")
def larger(tmp_path_factory, old):
    return write_larger(tmp_path_factory.mktemp("larger") / "data", old)


def start(model, old, data, tmp_path, **options):
    """Returns a run on an old dataset, and the same model before its first step from it on another."""
    run = train(model, old, tmp_path / "old", params=PARAMS[model], epochs=2, batch_size=8, test=False)
    options = {"epochs": 1, "learning_rate": 1e-12, "test": False} | options
    return run, train(model, data, tmp_path / "new", init_from=run, **options)


@pytest.mark.parametrize("model", TRAINED)
def test_init_from_keeps_what_was_learned_of_items_and_all_else(model, old, larger, tmp_path):
    run, new = start(model, old, larger, tmp_path)
    old_ids, new_ids = old.item_table["item_id"].to_list(), larger.item_table["item_id"].to_list()
    before, after = run.model.state_dict(), new.model.state_dict()
    assert new.config == run.config
    for name, tensor in after.items():
        of_data = name.endswith((".knots", "time_offset.vectors")) or name == "popularity"
        if of_data or name not in before:  # bases are saved by trainings that inherit them
            continue
        if tensor.shape == before[name].shape:
            assert torch.allclose(tensor.float(), before[name].float(), atol=1e-6), name
            continue
        part = next(d for d in larger.domains if len(d) == len(tensor)) if len(tensor) < 55 else None
        start_row = part.start if part else 0
        old_start = next(d.start for d in old.domains if d.name == part.name) if part else 0
        for row, item in enumerate(new_ids[start_row : start_row + len(tensor)]):
            if item in old_ids:
                expected = before[name][old_ids.index(item) - old_start]
                assert torch.allclose(tensor[row].float(), expected.float(), atol=1e-6), (name, item)


@pytest.mark.parametrize("model", ["hafvt", "hafvt-paper", "sasrec", "gru4rec", "srgnn", "c2dsr"])
def test_init_from_takes_a_new_domain_by_name(model, old, tmp_path):
    data = write_larger(
        tmp_path / "data", old, (15, 33, 22), names=(None, "d0", "d1"), domains=["added", "d0", "d1"]
    )
    run, new = start(model, old, data, tmp_path)
    before, after = run.model.state_dict(), new.model.state_dict()
    moved = {"hafvt": "encoders.{}.last_block.outer.weight", "c2dsr": "own.{}.blocks.0.norm1.weight"}
    if model in moved:
        for number in range(2):
            name, old_name = moved[model].format(number + 1), moved[model].format(number)
            if old_name in before:
                assert torch.allclose(after[name], before[old_name], atol=1e-6)
    (result,) = new.model.scores(*_batch(data)).shape[:1]
    assert result == 1


def _batch(data):
    """Returns arguments of `Model.scores`."""
    from hafvt.data.batches import history_batch

    return history_batch(data, np.asarray(data.test[:1]), 10), 0


def test_init_from_a_hafvt_scores_shared_items_as_before(old, larger, tmp_path):
    run, new = start("hafvt", old, larger, tmp_path, ema_decay=0.0)
    for name in ("image", "title"):
        before, after = run.model.items.content_vectors(name), new.model.items.content_vectors(name)
        new_ids = larger.item_table["item_id"].to_list()
        table = FeatureTable.open(old.folder / "features" / name)
        for row, item in enumerate(old.item_table["item_id"]):
            if item in new_ids and table.present[row]:
                assert torch.allclose(before[row], after[new_ids.index(item)], atol=1e-3)
    reopened = open_run(new.folder)
    for name, weight in new.model.state_dict().items():
        assert torch.equal(weight, reopened.model.state_dict()[name])


def test_init_from_on_the_same_dataset_without_steps_keeps_the_validation_mrr(old, tmp_path):
    run, new = start("hafvt", old, old, tmp_path, learning_rate=1e-12)
    assert new.manifest["best"]["valid_mrr"] >= run.manifest["best"]["valid_mrr"] - 1e-9
    assert new.manifest["training"]["init_weights"] == run.manifest["sha256"]


def test_init_from_can_be_resumed_and_continued(old, larger, tmp_path):
    _, new = start("sasrec", old, larger, tmp_path, learning_rate=1e-3)
    options = {"init_from": tmp_path / "old", "learning_rate": 1e-3, "test": False}
    uninterrupted = train("sasrec", larger, tmp_path / "once", epochs=3, patience=0, **options)
    resumed = train("sasrec", larger, new.folder, epochs=3, patience=0, resume=True, **options)
    for name, weight in uninterrupted.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    third = train("sasrec", larger, tmp_path / "third", epochs=1, init_from=resumed, test=False)
    assert third.config == resumed.config


@pytest.mark.parametrize("model", ["popularity", "item-knn", "recent-popularity", "seasonal-popularity"])
def test_init_from_a_model_without_weights_is_refused(model, old, tmp_path):
    run = train(model, old, tmp_path / "old", test=False)
    with pytest.raises(HafvtError, match=f"{model} has no weights to start from: train it anew"):
        train(model, old, tmp_path / "new", init_from=run)


def test_init_from_another_model_size_or_vectors_is_refused(old, larger, tmp_path):
    run, _ = start("hafvt", old, larger, tmp_path)
    with pytest.raises(HafvtError, match="is a run of hafvt: train hafvt, or name a run of sasrec"):
        train("sasrec", larger, tmp_path / "other", init_from=run)
    with pytest.raises(HafvtError, match=r"has the shape .* leave out --params that change sizes"):
        train("hafvt", larger, tmp_path / "other", init_from=run, params={"id_width": 10})
    with pytest.raises(HafvtError, match="whole item tables: leave out --shard-catalog"):
        train("hafvt", larger, tmp_path / "other", init_from=run, shard_catalog=True)
    table = FeatureTable.open(larger.folder / "features" / "title")
    rows = np.roll(np.array(table.rows), 1, axis=1)
    write_table(tmp_path / "rows", rows, np.array(table.present), {"encoder": "test"})
    other = write_larger(tmp_path / "data", old)
    for file in (tmp_path / "rows").iterdir():
        file.replace(other.folder / "features" / "title" / file.name)
    with pytest.raises(HafvtError, match=r"title vectors of items differ .* encode --like"):
        train("hafvt", Dataset.open(other.folder), tmp_path / "other", init_from=run)


def test_init_from_a_run_of_other_items_is_refused(old, tmp_path):
    data = write_larger(tmp_path / "data", old, names=())
    run = train("sasrec", old, tmp_path / "old", params={"width": 8}, epochs=1, test=False)
    with pytest.raises(HafvtError, match="it has no item of"):
        train("sasrec", data, tmp_path / "new", init_from=run)


def test_train_overwrite_replaces_a_finished_run_and_nothing_else(old, tmp_path):
    options = {"params": {"width": 8}, "epochs": 1}
    run = train("sasrec", old, tmp_path / "run", **options)
    with pytest.raises(HafvtError, match="holds a run already"):
        train("popularity", old, run.folder)
    replaced = train("popularity", old, run.folder, overwrite=True)
    assert (replaced.folder, open_run(run.folder).name) == (run.folder, "popularity")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    (run.folder / "thesis.txt").write_text("a")
    with pytest.raises(HafvtError, match=r"holds thesis.txt, which is not of a finished run"):
        train("sasrec", old, run.folder, overwrite=True, **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("a")
    with pytest.raises(HafvtError, match="exists and is not a finished run"):
        train("sasrec", old, tmp_path / "other", overwrite=True, **options)
    with pytest.raises(HafvtError, match="leave out --resume and torchrun"):
        train("sasrec", old, run.folder, overwrite=True, resume=True, **options)


def test_train_overwrite_keeps_the_old_run_if_the_training_fails(old, tmp_path, monkeypatch):
    def fail(*_):
        raise HafvtError("the disk is full")

    run = train("popularity", old, tmp_path / "run", test=False)
    monkeypatch.setattr("hafvt.training.session.save_run", fail)
    with pytest.raises(HafvtError, match="the disk is full"):
        train("sasrec", old, run.folder, overwrite=True, epochs=1, params={"width": 8})
    assert open_run(run.folder).name == "popularity"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
