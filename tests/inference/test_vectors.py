"""Written vectors give the ranks of the branches and, put together, the scores of the model."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

import hafvt
from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender

HISTORIES = {"u1": ["i3", "i41", "i8"], "u2": ["i4", "i12"], "u3": ["nothing"]}
TIME = 1_700_000_000


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """A file of histories; the second has no item of d1, and the third no known one."""
    path = tmp_path_factory.mktemp("histories") / "histories.jsonl"
    lines = [json.dumps({"user_id": user, "history": ids}) for user, ids in HISTORIES.items()]
    path.write_text("\n".join(lines))
    return path


def written(run, out, **options):
    files = hafvt.vectors(run, out=out, **options)
    return files, pl.read_parquet(files.items), files.histories and pl.read_parquet(files.histories)


def test_vectors_of_hafvt_put_together_are_the_scores(served_run, histories, tmp_path):
    options = {"histories": histories, "time": TIME}
    files, items, rows = written(served_run, tmp_path / "items.parquet", **options)
    assert (files.num_items, files.num_histories) == (50, 3)
    assert files.histories == tmp_path / "items-histories.parquet"
    assert items.columns == ["item_id", "domain", "id", "image", "title"]
    assert set(zip(rows["user_id"], rows["domain"], rows["sequence"], strict=True)) == {
        *(("u1", domain, sequence) for domain in ("d0", "d1") for sequence in (domain, "all domains")),
        *(("u2", "d0", sequence) for sequence in ("d0", "all domains")),
        ("u2", "d1", "all domains"),
    }
    recommender = Recommender.open(served_run)
    trained = recommender.catalog.train_counts > 0
    for user, number in (("u1", 0), ("u1", 1), ("u2", 0), ("u2", 1)):
        domain, total = recommender.catalog.domains[number], 0.0
        own = rows.filter((pl.col("user_id") == user) & (pl.col("domain") == domain.name))
        of_domain = items.filter(pl.col("domain") == domain.name)
        for row in own.iter_rows(named=True):
            products = of_domain[row["modality"]].to_numpy() @ np.array(row["vector"], dtype=np.float32)
            total += np.exp(products.astype(np.float64) + row["log_weight"])
        indices = recommender.catalog.indices(HISTORIES[user])[0]
        scores = recommender.scores([indices], number, TIME)[0]
        is_compared = trained[domain.start : domain.stop].copy()
        is_compared[[i - domain.start for i in indices if domain.start <= i < domain.stop]] = False
        np.testing.assert_allclose(np.log(total)[is_compared], scores[is_compared], atol=1e-4)


def test_vectors_of_sasrec_have_the_scores_as_dot_products(sasrec_run, histories, tmp_path):
    options = {"histories": histories, "domain": "d1"}
    _, items, rows = written(sasrec_run, tmp_path / "items.parquet", **options)
    recommender = Recommender.open(sasrec_run)
    assert set(items["domain"]) == {"d1"}
    assert rows["user_id"].to_list() == ["u1", "u2"]
    for user, vector in rows.select("user_id", "vector").iter_rows():
        scores = recommender.scores([recommender.catalog.indices(HISTORIES[user])[0]], 1)[0]
        np.testing.assert_allclose(items["id"].to_numpy() @ np.array(vector), scores, atol=1e-5)


def test_vectors_without_histories_writes_items_alone(sasrec_run, tmp_path):
    files, items, _ = written(sasrec_run, tmp_path / "items.parquet")
    assert files.histories is None
    assert not (tmp_path / "items-histories.parquet").exists()
    norms = np.linalg.norm(items["image"].to_numpy(), axis=1)
    assert ((abs(norms - 1) < 1e-5) | (norms == 0)).all()
    assert str(files).startswith("wrote vectors of 50 items by id (8 numbers), image (")


def test_vectors_that_a_model_lacks_raises(make_small, histories, tmp_path):
    data = make_small(with_features=False)
    run = hafvt.train("popularity", data, tmp_path / "run", test=False)
    with pytest.raises(HafvtError, match="popularity has no vectors of items: use hafvt or sasrec"):
        hafvt.vectors(run, out=tmp_path / "items.parquet")
    with pytest.raises(HafvtError, match="popularity has no vectors of histories"):
        hafvt.vectors(run, out=tmp_path / "items.parquet", histories=histories)
    with pytest.raises(HafvtError, match=r"--out .*items.csv: name a file .parquet"):
        hafvt.vectors(run, out=tmp_path / "items.csv")
    assert list(tmp_path.glob("items*")) == []
