"""Recommendations with an index equal the exact ones; an outdated or damaged index is refused."""

from __future__ import annotations

import builtins
import shutil

import numpy as np
import pytest
from starlette.testclient import TestClient

from hafvt import train
from hafvt.errors import HafvtError
from hafvt.files import read_json, write_json
from hafvt.inference import ann, candidates, top_candidates
from hafvt.inference.added_items import with_added_items
from hafvt.inference.ann import index, sample_histories
from hafvt.inference.candidates import FaissCandidateGenerator
from hafvt.inference.catalog_add import catalog
from hafvt.inference.recommender import Recommender
from hafvt.inference.scorer import pad_histories
from hafvt.inference.torch_scorer import TorchScorer
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from hafvt.training.run import open_run
from tests.conftest import write_small
from tests.served import wait_until


@pytest.fixture(scope="module")
def indexed_run(tmp_path_factory):
    """A run with an index on 600 and 500 items, many of which are cold; tests must not change it."""
    folder = tmp_path_factory.mktemp("indexed")
    data = write_small(folder / "data", users=120, sizes=(600, 500))
    for name in ("image", "title"):
        about = data.folder / "features" / name / "about.json"
        write_json(about, read_json(about) | {"encoder": "precomputed", "settings": {}}, checksum=True)
    params = {"id_width": 8, "use_request_date": True}
    run = train("hafvt", data, folder / "run", params=params, epochs=1, test=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "MIN_ITEMS_TO_BUILD", 100)
        index(run.folder, histories=30)
    return run.folder


@pytest.fixture
def writable_index(indexed_run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(indexed_run, tmp_path / "run")


@pytest.fixture
def index_used(monkeypatch):
    """The domains are large enough for their indexes, and the candidates few."""
    monkeypatch.setattr(top_candidates, "CANDIDATES_PER_BRANCH", 30)
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 100)
    monkeypatch.setattr(candidates, "MIN_ITEMS_TO_USE", 100)


def open_both(folder):
    """Returns the recommender with the index, which probes all its cells, and the exact one."""
    run, item_catalog = with_added_items(open_run(folder))
    approximate = Recommender.open(folder)
    for of_domain in approximate.candidate_generator.indexes.values():
        for of_modality in of_domain:
            of_modality.nprobe = of_modality.nlist
    return approximate, Recommender(TorchScorer(run), item_catalog, approximate.exclude_seen)


def item_ids(results):
    return [[one.item.item_id for one in result.items] for result in results]


@pytest.mark.parametrize("temperature", [0.1, 0.01])  # with the second, exponentials can overflow
def test_generate_candidate_scores_equal_those_of_model(indexed_run, index_used, temperature):
    approximate, exact = open_both(indexed_run)
    for model in {*approximate.candidate_generator.models, *exact.scorer.models}:
        model.config = model.config.replace(temperature=temperature)
    histories = [np.array([3, 700, 41]), np.array([900]), np.array([5, 6, 7, 8])]
    for domain in (0, 1):
        columns, scores = approximate.candidate_generator.generate(*pad_histories(histories), domain, 7)
        all_scores = exact.scores(histories, domain)
        assert columns.shape[1] < 100
        for row in range(3):
            is_candidate = columns[row] >= 0
            assert len(np.unique(columns[row][is_candidate])) == is_candidate.sum()
            assert np.all(np.diff(columns[row]) >= 0)
            expected = all_scores[row][columns[row][is_candidate]]
            assert scores[row][is_candidate] == pytest.approx(expected, abs=1e-4)
            assert np.all(scores[row][~is_candidate] == -np.inf)


def test_recommend_with_index_returns_exact_items(indexed_run, index_used):
    approximate, exact = open_both(indexed_run)
    histories = [[], ["?"], *sample_histories(open_run(indexed_run).data, 100)]
    for domain in ("d0", "d1"):
        results = approximate.recommend(histories, domain, 5)
        expected = exact.recommend(histories, domain, 5)
        assert item_ids(results) == item_ids(expected)
        assert [one.ranked_by for one in results] == [one.ranked_by for one in expected]
        assert results[3].items[0].score == pytest.approx(expected[3].items[0].score, abs=1e-5)


def test_recommend_with_index_replaces_excluded_candidates(indexed_run, index_used):
    approximate, exact = open_both(indexed_run)
    histories = sample_histories(open_run(indexed_run).data, 8)
    best = item_ids(exact.recommend(histories, "d0", 20))
    for options in ({"exclude": best}, {"exclude_seen": False}):
        expected = exact.recommend(histories, "d0", 5, **options)
        assert item_ids(approximate.recommend(histories, "d0", 5, **options)) == item_ids(expected)


def test_recommend_too_few_candidates_scores_all_items(indexed_run, index_used, monkeypatch):
    approximate, exact = open_both(indexed_run)
    monkeypatch.setattr(
        approximate.candidate_generator, "search", lambda queries, domain, num: np.array([[-1, 4, 9]])
    )
    two = approximate.recommend([["i3"]], "d0", 2)
    assert set(item_ids(two)[0]) == {"i4", "i9"}
    assert item_ids(approximate.recommend([["i3"]], "d0", 5)) == item_ids(exact.recommend([["i3"]], "d0", 5))


def test_index_reports_recall_and_serves_large_domains_only(writable_index, monkeypatch, index_used):
    run = writable_index
    summary = index(run, histories=20)
    assert summary.num_histories == 20
    assert min(summary.recall.values()) >= 0.99
    assert "d0: recall@10 " in str(summary)
    assert "of 15 cells" in str(summary)
    monkeypatch.setattr(candidates, "MIN_ITEMS_TO_USE", 1000)
    assert Recommender.open(run).candidate_generator is None
    monkeypatch.setattr(candidates, "MIN_ITEMS_TO_USE", 600)
    assert Recommender.open(run).candidate_generator.domains == {0}
    shutil.rmtree(run / "index")
    assert Recommender.open(run).candidate_generator is None
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 550)
    assert set(index(run, histories=2).recall) == {"d0"}
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 650)
    with pytest.raises(HafvtError, match=r"no domain of .* has 650 items: scoring all items is as fast"):
        index(run)


def test_index_low_recall_is_reported(writable_index, monkeypatch, index_used):
    few = np.arange(12)[None]
    monkeypatch.setattr(FaissCandidateGenerator, "search", lambda self, queries, domain, num: few)
    assert "LOW" in str(index(writable_index, histories=1))


def test_open_damaged_or_older_index_raises(writable_index, index_used):
    run = writable_index
    file = run / "index" / "domain1-modality2.faiss"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(HafvtError, match=r"domain1-modality2.faiss is damaged \(.*\): build it again"):
        Recommender.open(run)
    file.write_bytes(content)
    write_json(run / "index" / "about.json", {"format": 1})
    with pytest.raises(
        HafvtError, match=r"format 1, but this version of hafvt reads format 3: build it again"
    ):
        Recommender.open(run)


def test_open_index_of_changed_items_or_weights_raises(writable_index, tmp_path, index_used):
    run, new = writable_index, tmp_path / "new.csv"
    new.write_text("item_id,domain,title,image\nnew,d0,,\n")
    vectors = {name: tmp_path / f"{name}.npz" for name in ("image", "title")}
    for name, width in (("image", 12), ("title", 8)):
        np.savez(vectors[name], ids=np.array(["new"]), embeddings=np.ones((1, width), np.float32))
    catalog("add", run, new, precomputed=vectors)
    with pytest.raises(
        HafvtError, match="changed since the index was built: build it again with hafvt index"
    ):
        Recommender.open(run)
    index(run, histories=5)
    approximate, exact = open_both(run)
    results, expected = (one.recommend([["i3", "new"]], "d0", 5) for one in (approximate, exact))
    assert item_ids(results) == item_ids(expected)
    about = run / "index" / "about.json"
    content = read_json(about)
    other = {**content["model"]["files"], "model.safetensors": "another hash"}
    write_json(about, content | {"model": {**content["model"], "files": other}}, checksum=True)
    with pytest.raises(HafvtError, match="changed since"):
        Recommender.open(run)


def test_index_of_model_without_branches_raises(small, tmp_path):
    run = train("popularity", small, tmp_path / "popularity", epochs=1, test=False)
    with pytest.raises(HafvtError, match="popularity has no index: it scores all items; only hafvt has one"):
        index(run.folder)


def test_index_and_open_without_faiss_raise(indexed_run, index_used, monkeypatch):
    real_import = builtins.__import__

    def import_without_faiss(name, *rest):
        if name == "faiss":
            raise ModuleNotFoundError(name=name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", import_without_faiss)
    for function in (index, Recommender.open):
        with pytest.raises(HafvtError, match=r"pip install 'hafvt\[index\]'"):
            function(indexed_run)


def test_server_uses_the_index(indexed_run, index_used):
    approximate, _ = open_both(indexed_run)
    (expected,) = approximate.recommend([["i3", "i700"]], "d1", 5)
    with TestClient(create_app(ModelSource(indexed_run))) as client:
        wait_until(lambda: client.get("/ready").status_code == 200)
        body = {"history": ["i3", "i700"], "domain": "d1", "k": 5}
        items = client.post("/recommend", json=body).json()["items"]
    assert len(items) == 5
    assert items[0]["score"] == pytest.approx(expected.items[0].score, abs=1e-5)


def test_recommend_under_rules_with_index_loses_no_item(indexed_run, index_used):
    approximate, exact = open_both(indexed_run)
    for of_domain in approximate.candidate_generator.indexes.values():
        for of_modality in of_domain:
            of_modality.nprobe = 1  # a search that misses many items
    items = exact.catalog.table["item_id"].to_list()
    rules = {"allow": items[::7], "where": "item_id like '%3%'"}
    histories = [items[3:9], items[500:504]]
    one, other = (r.recommend(histories, "d0", 20, exclude_seen=False, **rules) for r in (approximate, exact))
    assert item_ids(one) == item_ids(other)
    expected = [i for i in items[:600:7] if "3" in i]
    assert [len(result.items) for result in one] == [min(20, len(expected))] * 2
