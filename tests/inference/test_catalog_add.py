"""Items added to a run are recommended, explained and read in histories; other scores do not change."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from hafvt import encode, prepare, train
from hafvt.cli import main
from hafvt.data.batches import Batch
from hafvt.errors import HafvtError, InputError
from hafvt.features.new_items import encode_new_items
from hafvt.features.table import FeatureTable
from hafvt.files import read_json, write_json
from hafvt.inference.added_items import with_added_items
from hafvt.inference.catalog_add import catalog
from hafvt.inference.recommender import Recommender
from hafvt.training.run import open_run
from tests.features.conftest import write_pictures

KINDS = ["lamp", "chair", "film", "night"]
SMALL = {"id_width": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two shops whose items have pictures and titles, and a table of new items beside it."""
    root = tmp_path_factory.mktemp("shops")
    ids = [f"{shop}{n}" for shop in "ab" for n in range(20)]
    write_pictures(root / "pictures", [f"{one}.jpg" for one in ids])
    table = pl.DataFrame(
        {
            "item_id": ids,
            "domain": [{"a": "attic", "b": "barn"}[one[0]] for one in ids],
            "title": [f"{KINDS[n % 4]} number {n}" for n in range(40)],
            "image": [f"pictures/{one}.jpg" for one in ids],
            "brand": [f"b{n % 3}" for n in range(40)],
            "price": list(range(40)),
        }
    )
    table.write_csv(root / "items.csv")
    random = np.random.default_rng(0)
    log = pl.DataFrame(
        [(f"u{user}", ids[random.integers(40)], time) for user in range(30) for time in range(12)],
        schema=["user_id", "item_id", "timestamp"],
        orient="row",
    )
    data = prepare(log, root / "items.csv", root / "data")
    encode(data, image="classic", title="classic")
    train("hafvt", data, root / "run", params=SMALL, epochs=2, test=False)
    train("popularity", data, root / "popularity", test=False)
    write_pictures(root / "new" / "p", ["1.jpg", "2.jpg"])
    new = {
        "item_id": ["n1", "n2", "n3", "n4"],
        "domain": ["attic", "barn", "attic", "barn"],
        "title": ["lamp number 99", None, "a film of the night", " "],
        "image": ["p/1.jpg", "p/2.jpg", "p/missing.jpg", "../items.csv"],
    }
    pl.DataFrame(new).write_csv(root / "new" / "items.csv")
    return root


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run"


def test_catalog_add_new_items_are_recommended_and_explained(folder: Path, run: Path, capsys) -> None:
    assert main(["catalog", "add", str(run), str(folder / "new" / "items.csv")]) == 0
    output = capsys.readouterr().out
    assert "added 3 items (2 attic, 1 barn): 2 with image, 2 with title; 3 in total" in output
    assert "skipped 'n4': image: leads outside the picture folder; title: no title given" in output
    recommender = Recommender.open(run)
    (result,) = recommender.recommend([["a1", "b2", "n2"]], "attic", k=50, exclude_seen=True)
    assert result.unknown_ids == ()
    listed = {one.item.item_id: one for one in result.items}
    assert len(listed) == 21
    assert {"n1", "n3"} < set(listed)
    assert listed["n1"].item.train_count == 0
    explanation = recommender.explain(["a1", "b2", "n2"], "n1")
    assert explanation.score == pytest.approx(listed["n1"].score, abs=1e-5)
    assert sum(explanation.shares.values()) == pytest.approx(1, abs=1e-5)
    assert all(share == 0 for (_, modality), share in explanation.shares.items() if modality == "id")
    assert [item.item_id for item in explanation.history] == ["a1", "b2", "n2"]
    catalog = recommender.catalog
    (number,), _ = catalog.indices(["n2"])
    assert (catalog.image_folder(number) / catalog.item(number).image).is_file()
    (number,), _ = catalog.indices(["a3"])
    assert (catalog.image_folder(number) / catalog.item(number).image).is_file()


def test_catalog_add_does_not_change_other_scores(folder: Path, run: Path) -> None:
    before = Recommender.open(run)
    catalog("add", run, folder / "new" / "items.csv")
    after = Recommender.open(run)
    histories = [["a1", "b2"], ["b7", "b3", "a4"], ["a9"]]
    for domain in ("attic", "barn"):
        old, new = (one.recommend(histories, domain, k=99, exclude_seen=False) for one in (before, after))
        for was, now in zip(old, new, strict=True):
            unchanged = [one for one in now.items if one.item.item_id[0] != "n"]
            assert [one.item for one in unchanged] == [one.item for one in was.items]
            np.testing.assert_allclose(
                [one.score for one in unchanged], [one.score for one in was.items], rtol=0, atol=1e-5
            )
    assert before.explain(["a1", "b2"], "b3").shares == pytest.approx(
        after.explain(["a1", "b2"], "b3").shares, abs=1e-6
    )


def test_catalog_add_copy_of_item_gets_its_content_score(folder: Path, run: Path, tmp_path: Path) -> None:
    """The copy lacks the id embedding only: branches of pictures and titles score it as the original."""
    twin = pl.read_csv(folder / "items.csv").filter(pl.col("item_id") == "b5")
    twin.with_columns(item_id=pl.lit("n5")).write_csv(folder / "twin.csv")
    catalog("add", run, folder / "twin.csv")
    opened, item_catalog = with_added_items(open_run(run))
    (new, old), _ = item_catalog.indices(["n5", "b5"])
    model, start = opened.model, item_catalog.domains[1].start
    batch = Batch(torch.tensor([[3, 30, 7]]), torch.tensor([3]))
    with torch.inference_mode():
        parts = torch.stack(list(model.branch_scores(batch, 1)), 1)[0].unflatten(0, (2, 3))  # (2, M, C)
    assert model.modalities == ("id", "image", "title")
    recommender = Recommender.open(run)
    for by in ("image", "title", "all"):
        (similar,) = recommender.similar_items(["n5"], k=1, by=by)
        assert (similar.items[0].item.item_id, similar.by) == ("b5", by)
        assert similar.items[0].score == pytest.approx(1, abs=1e-3)
    assert recommender.similar_items(["n5"], by="id")[0].items == ()
    torch.testing.assert_close(parts[:, 1:, new - start], parts[:, 1:, old - start], rtol=5e-3, atol=1e-6)


def test_catalog_add_twice_accumulates_and_replaces_with_overwrite(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    catalog("add", run, folder / "new" / "items.csv")
    with pytest.raises(InputError, match=r"row 2, column 'item_id', value 'n1': .*added before.*--overwrite"):
        catalog("add", run, folder / "new" / "items.csv")
    frame = pl.DataFrame({"item_id": ["n1", "n9"], "domain": "barn", "title": ["lamp", "chair"]})
    summary = catalog("add", run, frame, overwrite=True)
    assert (summary.total, summary.items) == (4, {"attic": 0, "barn": 2})
    recommender = Recommender.open(run)
    find = recommender.catalog.indices
    assert [recommender.catalog.item(n).domain for n in find(["n1", "n2", "n3", "n9"])[0]] == [
        "barn", "barn", "attic", "barn",
    ]  # fmt: skip
    assert recommender.catalog.item(find(["n1"])[0][0]).title == "lamp"


def test_catalog_add_wrong_items_raises_and_writes_nothing(folder: Path, run: Path) -> None:
    def refused(match: str, items: object, **options: object) -> None:
        with pytest.raises(HafvtError, match=match):
            catalog("add", options.pop("run", run), items, **options)  # type: ignore[arg-type]

    one = {"item_id": "n1", "domain": "barn", "title": "lamp"}
    refused("no such domain. Use attic or barn", pl.DataFrame([{**one, "domain": "cellar"}]))
    refused("the dataset of the run has this item. Remove the row", pl.DataFrame([{**one, "item_id": "a3"}]))
    refused("an earlier row has this item", pl.DataFrame([one, one]))
    refused("no column 'domain'", pl.DataFrame([{"item_id": "x", "title": "lamp"}]))
    refused(
        "none of the 1 items has a usable image or title", pl.DataFrame([{"item_id": "x", "domain": "barn"}])
    )
    refused("made by classic", pl.DataFrame([one]), precomputed={"image": "x.npz"})
    refused("has no 'smell'", pl.DataFrame([one]), precomputed={"smell": "x.npz"})
    refused("popularity reads item ids only", pl.DataFrame([one]), run=folder / "popularity")
    with pytest.raises(HafvtError, match="--action is 'drop': choose add"):
        catalog("drop", run, pl.DataFrame([one]))  # type: ignore[arg-type]
    assert not (run / "added_items").exists()


def test_open_outdated_added_items_raises(folder: Path, run: Path) -> None:
    catalog("add", run, folder / "new" / "items.csv")
    about = run / "added_items" / "about.json"
    content = read_json(about)
    write_json(about, content | {"features": {**content["features"], "image": "0"}}, checksum=True)
    with pytest.raises(HafvtError, match="trained again after these items were added: remove"):
        Recommender.open(run)


@pytest.mark.parametrize("name", ["image", "title"])
def test_encode_new_items_stored_fit_reproduces_vectors_of_dataset(folder: Path, name: str) -> None:
    data = open_run(folder / "run").data
    stored = FeatureTable.open(data.folder / "features" / name)
    encoded = encode_new_items(data, name, data.item_table, data.image_root)
    assert encoded.present.tolist() == stored.present.tolist()
    np.testing.assert_allclose(encoded.rows.astype(float), stored.rows.astype(float), atol=2e-3)


def test_catalog_add_precomputed_vectors_need_a_file(folder: Path, tmp_path: Path) -> None:
    items = pl.read_csv(folder / "items.csv")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", ids=items["item_id"].to_list(), embeddings=random.normal(size=(40, 5)))
    shutil.copytree(folder / "data", tmp_path / "data", ignore=shutil.ignore_patterns("features"))
    data = encode(tmp_path / "data", precomputed={"smell": tmp_path / "own.npz"}) and tmp_path / "data"
    run = train("hafvt", data, tmp_path / "run", params=SMALL, epochs=1, test=False).folder
    new = pl.DataFrame({"item_id": ["n1", "n2"], "domain": "barn"})
    with pytest.raises(HafvtError, match="--precomputed smell=FILE"):
        catalog("add", run, new)
    np.savez(tmp_path / "new.npz", ids=["n2", "?"], embeddings=random.normal(size=(2, 5)))
    summary = catalog("add", run, new, precomputed={"smell": tmp_path / "new.npz"})
    assert summary.skipped == {"n1": "smell: no vector in new.npz"}
    assert Recommender.open(run).explain(["a1"], "n2").item.item_id == "n2"
    np.savez(tmp_path / "wide.npz", ids=["n1"], embeddings=random.normal(size=(1, 6)))
    with pytest.raises(HafvtError, match="6 dimensions, the dataset's 5"):
        catalog("add", run, new[:1], precomputed={"smell": tmp_path / "wide.npz"})


def test_catalog_add_reads_quotes_and_blanks_as_prepare_does(folder: Path, run: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    new.write_text('item_id,domain,title\n"n1 ,attic ,"9" lamp\n')
    with pytest.raises(InputError, match="the run has no such domain"):
        catalog("add", run, new, quoting="none")
    catalog("add", run, new, quoting="none", strip=True)
    with pytest.raises(InputError, match="this item was added before"):
        catalog("add", run, new, quoting="none", strip=True)
    table = Recommender.open(run).catalog.table.filter(pl.col("item_id").str.contains("n1"))
    assert table.select("item_id", "title").rows() == [('"n1', '"9" lamp')]


def test_catalog_add_keeps_attributes_of_the_dataset(folder: Path, run: Path) -> None:
    new = {"item_id": ["n1", "n2"], "domain": ["attic", "barn"], "title": ["lamp", "chair"]}
    catalog("add", run, pl.DataFrame({**new, "price": ["7", None], "other": ["x", "y"]}))
    items = Recommender.open(run).catalog
    known, added = (items.item(items.index_of(item_id)).attributes for item_id in ("a5", "n1"))
    assert known == {"brand": "b2", "price": 5}
    assert added == {"price": 7}
    with pytest.raises(InputError, match=r"column 'price'.*the dataset of the run has Int64 here"):
        catalog("add", run, pl.DataFrame({**new, "price": ["cheap", None]}), overwrite=True)
