"""Recommendations with an index equal the exact ones; an outdated or damaged index is refused."""

from __future__ import annotations

import builtins
import shutil
from dataclasses import replace

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from starlette.testclient import TestClient

from hafvt import train
from hafvt.errors import HafvtError, HafvtWarning
from hafvt.files import read_json, write_json
from hafvt.inference import ann, candidates, index_files, top_candidates
from hafvt.inference.added_items import with_added_items
from hafvt.inference.ann import draw_sample, index
from hafvt.inference.candidates import Sample, log_partition
from hafvt.inference.catalog_add import catalog
from hafvt.inference.histories import user_history
from hafvt.inference.onnx_export import QueryGraph, export, trace
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
        patch.setattr(ann, "NUM_PER_BRANCH", (30,))
        index(run.folder, histories=30)
    return run.folder


@pytest.fixture
def writable_index(indexed_run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(indexed_run, tmp_path / "run")


@pytest.fixture
def index_used(monkeypatch):
    """The domains are large enough for their indexes, and the candidates few."""
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 100)
    monkeypatch.setattr(ann, "NUM_PER_BRANCH", (30,))
    monkeypatch.setattr(index_files, "MIN_ITEMS_TO_USE", 100)


def open_both(folder):
    """Returns the recommender with the index, which probes all its cells, and the exact one."""
    run, item_catalog = with_added_items(open_run(folder))
    approximate = Recommender.open(folder)
    for of_domain in approximate.candidate_generator.indexes.values():
        for of_modality in of_domain.searchers:
            of_modality.nprobe = of_modality.nlist
    exact = Recommender(
        TorchScorer(run), item_catalog, approximate.exclude_seen, None, approximate.read_vectors
    )
    return approximate, exact


def sample_histories(data, count):
    return [user_history(data, user) for user in range(count)]


def item_ids(results):
    return [[one.item.item_id for one in result.items] for result in results]


@pytest.mark.parametrize("temperature", [0.1, 0.01])  # with the second, exponentials can overflow
def test_generate_candidate_scores_equal_those_of_model(indexed_run, index_used, temperature):
    approximate, exact = open_both(indexed_run)
    for model in {*approximate.scorer.models, *exact.scorer.models}:
        model.config = model.config.replace(temperature=temperature)
    histories = [np.array([3, 700, 41]), np.array([900]), np.array([5, 6, 7, 8])]
    for domain in (0, 1):
        results = approximate.candidate_generator.generate(*pad_histories(histories), domain, 7)
        all_scores = exact.scores(histories, domain)
        for row, (columns, scores) in enumerate(results):
            assert 7 <= len(columns) < 100
            assert np.all(np.diff(columns) > 0)
            assert scores == pytest.approx(all_scores[row][columns], abs=1e-4)  # the sample is all items


def test_generate_with_a_sample_estimates_scores(indexed_run, index_used, monkeypatch, tmp_path):
    run = shutil.copytree(indexed_run, tmp_path / "run")
    monkeypatch.setattr(ann, "SAMPLE_SIZE", 60)
    monkeypatch.setattr(index_files, "PROMISED_RECALL", 0.5)
    summary = index(run, histories=30)
    assert all(1e-4 < report.largest_error < 0.5 for report in summary.domains.values())
    assert all(
        15 <= size < 120 for report in summary.domains.values() for size in report.sample_size.values()
    )
    approximate, exact = open_both(run)
    histories = [np.array([3, 700, 41]), np.array([900])]
    for row, (columns, scores) in enumerate(
        approximate.candidate_generator.generate(*pad_histories(histories), 0, 7)
    ):
        errors = scores - exact.scores(histories, 0)[row][columns]
        assert 1e-4 < np.abs(errors).max() < 0.5


def test_log_partition_mean_over_samples_is_exact():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(400, 6)).astype(np.float32)
    h = random.normal(size=(1, 2, 6)).astype(np.float32)
    is_cold = np.arange(400) % 7 == 0
    columns, rows = (
        np.concatenate([np.argsort(-h[0, b] @ vectors.T)[:20] for b in (0, 1)]),
        np.repeat([0, 1], 20),
    )
    logits = np.einsum("nd,nd->n", h[0][rows], vectors[columns])[None]
    strata = np.split(np.arange(400), 8)
    totals = []
    for seed in range(300):
        drawn = [random.permutation(part[~is_cold[part]]) for part in strata]
        sample = np.concatenate([part[:5] for part in drawn])
        weights = np.repeat([len(part) / 5 for part in drawn], 5).astype(np.float32)
        order = np.argsort(sample)
        one = Sample(sample[order], weights[order], vectors[sample[order]], 10.0 if seed else 1e6)
        totals.append(np.exp(log_partition(h, one, logits, rows, columns, is_cold)[0]))
    expected = np.exp(h[0] @ vectors[~is_cold].T).sum(1)
    assert np.mean(totals, axis=0) == pytest.approx(expected, rel=0.02)
    assert np.std(totals, axis=0).max() > 0.01 * expected.min()


def test_draw_sample_weights_sum_to_the_items_of_each_stratum():
    strata = [
        np.arange(10),
        np.arange(10, 90),
        np.array([90]),
        np.array([], dtype=np.int64),
        np.arange(91, 95),
    ]
    is_counted = np.arange(95) < 91
    items, weights = draw_sample(strata, is_counted, 20)
    assert np.all(np.diff(items) > 0)
    for stratum in strata:
        assert weights[np.isin(items, stratum)].sum() == pytest.approx(is_counted[stratum].sum())
    repeated, _ = draw_sample(strata, is_counted, 20)
    assert repeated.tolist() == items.tolist()


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
    monkeypatch.setattr(candidates, "search", lambda index, branches, num, allowed: np.array([[-1, 4, 9]]))
    two = approximate.recommend([["i3"]], "d0", 2)
    assert set(item_ids(two)[0]) == {"i4", "i9"}
    assert item_ids(approximate.recommend([["i3"]], "d0", 5)) == item_ids(exact.recommend([["i3"]], "d0", 5))


def test_index_reports_recall_and_serves_large_domains_only(writable_index, monkeypatch, index_used):
    run = writable_index
    summary = index(run, histories=20)
    assert {report.num_histories for report in summary.domains.values()} == {20}
    assert min(summary.recall.values()) >= 0.99
    assert "d0: recall@10 " in str(summary)
    assert "on 20 validation histories, scores within" in str(summary)
    assert "of 15 cells" in str(summary)
    monkeypatch.setattr(index_files, "MIN_ITEMS_TO_USE", 1000)
    assert Recommender.open(run).candidate_generator is None
    monkeypatch.setattr(index_files, "MIN_ITEMS_TO_USE", 600)
    assert Recommender.open(run).candidate_generator.domains == {0}
    shutil.rmtree(run / "index")
    assert Recommender.open(run).candidate_generator is None
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 550)
    assert set(index(run, histories=2).recall) == {"d0"}
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 650)
    with pytest.raises(HafvtError, match=r"no domain of .* has 650 items: scoring all items is as fast"):
        index(run)


def test_index_low_recall_is_reported_and_scores_all_items(writable_index, monkeypatch, index_used):
    def find_few(index, branches, num, allowed):
        return np.repeat(np.arange(12)[None], len(branches[0].h), axis=0)

    with monkeypatch.context() as patch:
        patch.setattr(candidates, "search", find_few)
        summary = index(writable_index, histories=5)
    assert "LOW, below 99%: all items of d0 are scored" in str(summary)
    with pytest.warns(HafvtWarning, match=r"recall@10 in d0 is .*, below 99%, so all items are scored"):
        assert Recommender.open(writable_index).candidate_generator is None


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
        HafvtError, match=r"format 1, but this version of hafvt reads format 4: build it again"
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
    with pytest.raises(HafvtError, match=r"popularity has no index: .* only hafvt and sasrec"):
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


RULES = (
    {"where": "item_id like '%3%'"},
    {"max_per": {"title": 1}},
    {"max_per": {"title": 1}, "where": "item_id not like '%7%'"},
    {"pin": {"2": "i5", "9": "i8", "30": "i11"}},
    {"pin": {"1": "i5"}, "exclude": [["i5"], []]},
)


@pytest.mark.parametrize("allowed", [0, 4_000])  # by search, and by scoring all allowed items
@pytest.mark.parametrize("rules", RULES)
def test_recommend_under_rules_with_index_returns_exact_items(
    indexed_run, index_used, monkeypatch, rules, allowed
):
    monkeypatch.setattr(top_candidates, "MAX_ALLOWED", allowed)
    approximate, exact = open_both(indexed_run)
    generator = approximate.candidate_generator
    generator.indexes = {n: replace(one, num_per_branch=6) for n, one in generator.indexes.items()}
    items = exact.catalog.table["item_id"].to_list()
    histories = [items[3:9], items[500:504]]
    monkeypatch.setattr(approximate, "scores", None)  # no exact pass
    expected = exact.recommend(histories, "d0", 3, exclude_seen=False, **rules)
    results = approximate.recommend(histories, "d0", 3, exclude_seen=False, **rules)
    assert item_ids(results) == item_ids(expected)
    for one, other in zip(results, expected, strict=True):
        assert [i.score for i in one.items] == pytest.approx([i.score for i in other.items], abs=1e-4)


def test_recommend_few_allowed_items_returns_all(indexed_run, index_used, monkeypatch):
    approximate, exact = open_both(indexed_run)
    monkeypatch.setattr(approximate, "scores", None)  # no exact pass
    items = exact.catalog.table["item_id"].to_list()
    rules = {"allow": items[:600:90]}
    results = approximate.recommend([items[3:9], ["?"]][:1], "d0", 20, exclude_seen=False, **rules)
    assert item_ids(results) == item_ids(exact.recommend([items[3:9]], "d0", 20, exclude_seen=False, **rules))
    assert len(results[0].items) == 7


def test_recommend_with_index_re_ranks_all_items(indexed_run, index_used):
    approximate, exact = open_both(indexed_run)
    rules = {"diversity": 0.5}
    results = (one.recommend([["i3", "i4"]], "d0", 5, **rules) for one in (approximate, exact))
    assert len({str(item_ids(result)) for result in results}) == 1


@pytest.mark.parametrize(
    ("name", "params"), [("sasrec", {"width": 8}), ("hafvt", {"id_width": 8, "modality_branches": False})]
)
def test_index_of_one_branch_returns_exact_items(indexed_run, tmp_path, index_used, name, params):
    run = train(name, open_run(indexed_run).data, tmp_path / "run", params=params, epochs=1, test=False)
    summary = index(run.folder, histories=20)
    if name == "sasrec":
        assert all(report.largest_error < 1e-5 for report in summary.domains.values())
    approximate, exact = open_both(run.folder)
    histories = [["i3", "i700"], ["i5"]]
    for domain in ("d0", "d1"):
        results, expected = (one.recommend(histories, domain, 5) for one in (approximate, exact))
        assert item_ids(results) == item_ids(expected)
        assert results[0].items[0].score == pytest.approx(expected[0].items[0].score, abs=1e-4)


def test_export_with_index_needs_no_exact_pass(indexed_run, index_used, tmp_path, monkeypatch):
    data, params = open_run(indexed_run).data, {"width": 8}
    run = train("sasrec", data, tmp_path / "run", params=params, epochs=1, test=False)
    index(run.folder, histories=5)
    export(run.folder, out=tmp_path / "export")
    exported, (_, exact) = Recommender.open(tmp_path / "export"), open_both(run.folder)
    assert exported.candidate_generator.domains == {0, 1}
    for of_domain in exported.candidate_generator.indexes.values():
        for searcher in of_domain.searchers:
            searcher.nprobe = searcher.nlist
    histories = sample_histories(data, 20)
    expected = exact.recommend(histories, "d1", 5)
    with monkeypatch.context() as patch:
        patch.setattr(exported, "scores", None)  # no exact pass
        assert item_ids(exported.recommend(histories, "d1", 5)) == item_ids(expected)
    assert "_score_sessions" not in vars(exported.scorer)
    rules = {"calibrate": {"title": 0.2}}  # all items are scored
    results = (one.recommend(histories, "d1", 5, **rules) for one in (exported, exact))
    assert len({str(item_ids(result)) for result in results}) == 1


def test_query_graph_returns_the_branches_of_the_model(indexed_run, tmp_path):
    scorer = TorchScorer(open_run(indexed_run))
    graph = trace(QueryGraph(scorer.models[1], 1))
    onnx_ir.save(graph, tmp_path / "queries.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "queries.onnx")
    items, lengths = pad_histories([np.array([3, 700, 41]), np.array([4])])
    branches = scorer.branches(items, lengths, 1, 1_700_000_000)
    times = np.full(2, 1_700_000_000)
    log_weights, subtracted, *h = session.run(None, {"items": items, "lengths": lengths, "times": times})
    assert pytest.approx(np.array([branch.log_weights for branch in branches]), abs=1e-4) == log_weights.T
    assert pytest.approx(np.array([one.log_subtracted_mass for one in branches]), abs=1e-4) == subtracted.T
    for actual, branch in zip(h, branches, strict=True):
        assert actual == pytest.approx(branch.h, abs=1e-4)
