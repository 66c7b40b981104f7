"""`hafvt.fit`: from tables to a recommender in one call, which repeats no finished step."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import hafvt
from hafvt.cli import main
from hafvt.data.dataset import replace_item_table
from hafvt.data.sources.demo import generate_world
from hafvt.errors import HafvtError
from hafvt.experiments import fit as fit_module


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    return generate_world(tmp_path_factory.mktemp("world"), users=60, items_per_shop=30)


@pytest.fixture(scope="module")
def shop(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    hafvt.fit(*world, folder, epochs=1)
    return folder


def test_fit_reports_items_without_vectors(world, tmp_path, capsys):
    hafvt.fit(world[0], pl.read_csv(world[1]), tmp_path, model="popularity", image="none", epochs=1)
    assert "title: 59 of 60 items, 59 dimensions; 1 missing, see" in capsys.readouterr().err


def test_fit_files_writes_dataset_vectors_run_and_report(shop):
    recommender = hafvt.Recommender.open(shop / "run")
    assert recommender.domains == ("garments", "homeware")
    assert hafvt.Dataset.open(shop / "data").feature_names == ["image", "title"]
    assert (shop / "run" / "report.html").exists()
    assert "garments 30, homeware 30" in str(recommender)
    assert "MRR" in repr(recommender)
    assert str(recommender).endswith(f"hafvt serve {shop / 'run'}")


def test_fit_again_repeats_neither_preparation_nor_encoding_nor_training(world, shop, monkeypatch):
    paths = [shop / "data" / "features" / "title" / "rows.npy", shop / "data" / "manifest.json"]
    before = [path.stat().st_mtime_ns for path in paths]
    weights = load_file(shop / "run" / "model.safetensors")
    monkeypatch.setattr(fit_module, "encode", None)
    hafvt.fit(*world, shop, epochs=1)
    assert [path.stat().st_mtime_ns for path in paths] == before
    repeated = load_file(shop / "run" / "model.safetensors")
    assert all(torch.equal(tensor, repeated[name]) for name, tensor in weights.items())
    assert not [path for path in shop.iterdir() if path.name not in ("data", "run")]


def test_fit_stopped_before_training_continues(world, shop, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            hafvt.fit(*world, tmp_path / "shop", epochs=1)
    monkeypatch.setattr(fit_module, "encode", None)
    hafvt.fit(*world, tmp_path / "shop", epochs=1)
    continued, uninterrupted = (
        load_file(folder / "run" / "model.safetensors") for folder in (tmp_path / "shop", shop)
    )
    assert all(torch.equal(tensor, continued[name]) for name, tensor in uninterrupted.items())


def test_fit_and_demo_overwrite_keep_a_run_folder_with_other_files(world, tmp_path):
    log, items = world
    for folder in (tmp_path / "fit" / "run", tmp_path / "demo" / "runs" / "hafvt"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("model: hafvt\n")
        (folder / "thesis.txt").write_text("x")
    with pytest.raises(
        HafvtError, match=r"run holds thesis\.txt, which is not of a run and would be lost: move"
    ):
        hafvt.fit(log, items, tmp_path / "fit", model="popularity", title="none", overwrite=True)
    with pytest.raises(HafvtError, match=r"hafvt holds thesis\.txt, which is not of a run"):
        hafvt.demo(tmp_path / "demo")
    assert [path.name for path in sorted(tmp_path.rglob("*.txt"))] == ["thesis.txt"] * 2
    assert not (tmp_path / "fit" / "data").exists()


def test_fit_other_tables_raises_and_overwrite_replaces(world, tmp_path):
    log, items = pl.read_csv(world[0]), pl.read_csv(world[1]).drop("image")
    out = tmp_path / "shop"
    hafvt.fit(log, items, out, model="popularity", title=None, epochs=1)
    with pytest.raises(HafvtError, match=f"{out} holds the data of other tables or options: choose another"):
        hafvt.fit(log.head(500), items, out, model="popularity", title=None, epochs=1)
    recommender = hafvt.fit(log.head(500), items, out, model="popularity", title="none", overwrite=True)
    assert recommender.scorer.name == "popularity"
    assert len(hafvt.Dataset.open(out / "data").items) == 500


def test_fit_keeps_users_of_one_domain_and_items_without_interactions(tmp_path):
    log = pl.DataFrame({"user_id": [1] * 5 + [2], "item_id": [1, 2, 3, 4, 5, 1], "timestamp": range(6)})
    items = pl.DataFrame({"item_id": range(1, 8), "domain": ["a"] * 5 + ["b"] * 2})
    log = pl.concat([log, pl.DataFrame({"user_id": [3] * 4, "item_id": [6] * 4, "timestamp": range(4)})])
    data = hafvt.Dataset.open(hafvt.fit(log, items, tmp_path, model="popularity").folder.parent / "data")
    assert (data.num_users, data.num_items, len(data.items)) == (3, 7, 10)


def test_fit_pictures_of_web_addresses_are_fetched_first(world, tmp_path):
    items = pl.read_csv(world[1])
    addresses = items.with_columns(image="https://shop.example/" + pl.col("image"))
    fit = partial(hafvt.fit, world[0], addresses, tmp_path / "shop", epochs=1, title=None)
    with pytest.raises(
        HafvtError, match=f"run hafvt fetch pictures {tmp_path}/shop/data --out {tmp_path}/shop/p"
    ):
        fit()
    data = hafvt.Dataset.open(tmp_path / "shop" / "data")
    paths = dict(items.select("item_id", "image").rows())  # as `fetch` writes them
    table = data.item_table.with_columns(
        pl.col("image").alias("image_url"),
        pl.col("item_id").replace_strict(paths, return_dtype=pl.String).alias("image"),
    )
    replace_item_table(data.folder, table, image_root=str(world[1].parent))
    assert fit().scorer.modalities == ("id", "image")
    with pytest.raises(HafvtError, match="data of other tables"):
        hafvt.fit(world[0], addresses.with_columns(title=pl.lit("x")), tmp_path / "shop", epochs=1)


def test_fit_unknown_model_raises_before_any_work(world, tmp_path):
    with pytest.raises(HafvtError, match="no model 'hafvd'"):
        hafvt.fit(*world, tmp_path / "shop", model="hafvd")
    assert not (tmp_path / "shop").exists()


def test_fit_command_prints_results_and_the_next_command(world, tmp_path, capsys):
    options = ["--model", "popularity", "--image", "none", "--title", "none", "--epochs", "1"]
    assert main(["fit", *map(str, world), "--out", str(tmp_path / "shop"), *options]) == 0
    output = capsys.readouterr().out
    assert "overall" in output
    assert output.endswith(f"hafvt serve {tmp_path / 'shop' / 'run'}\n")


def test_functions_take_what_other_functions_return(world, tmp_path, capsys):
    data = hafvt.prepare(*world, tmp_path / "data")
    run = hafvt.train("popularity", data, tmp_path / "run")
    recommender = hafvt.Recommender.open(run)
    assert recommender.folder == run.folder
    expected = hafvt.evaluate(run.folder).results
    assert hafvt.evaluate(run).results == hafvt.evaluate(recommender).results == expected
    for source in (run, recommender):
        hafvt.recommend(source, history=[], domain="garments")
        assert "by popularity" in capsys.readouterr().out
    with pytest.raises(HafvtError, match="--run is 3: choose a text, or a path"):
        hafvt.evaluate(3)
