"""With an index, recommendations are those of the whole catalog; a stale or broken one is refused."""

from __future__ import annotations

import builtins
import shutil

import numpy as np
import pytest
from starlette.testclient import TestClient

from hafvt import train
from hafvt.errors import HafvtError
from hafvt.files import write_json
from hafvt.inference import ann, candidates
from hafvt.inference import recommender as recommender_module
from hafvt.inference.added_items import with_added_items
from hafvt.inference.ann import index, sample_histories
from hafvt.inference.candidates import FaissCandidateGenerator, open_candidate_generator
from hafvt.inference.catalog_add import catalog
from hafvt.inference.recommender import Recommender
from hafvt.inference.scorer import pad_histories
from hafvt.inference.torch_scorer import TorchScorer
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from hafvt.training.run import open_run
from tests.conftest import write_small
from tests.served import wait_until


@pytest.fixture(scope="session")
def indexed_run(tmp_path_factory):
    """A run on 600 and 500 items, many of which training never met, with an index."""
    folder = tmp_path_factory.mktemp("indexed")
    data = write_small(folder / "data", users=120, sizes=(600, 500))
    for name in ("image", "title"):
        write_json(data.folder / "features" / name / "about.json", {"encoder": "precomputed"})
    params = {"id_width": 8, "content_width": 6}
    run = train("hafvt", data, folder / "run", params=params, epochs=1, test=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "MIN_ITEMS_TO_BUILD", 100)
        index(run.folder, histories=30)
    return run.folder


@pytest.fixture
def short(monkeypatch):
    """Few candidates, and every domain large: the index is used."""
    monkeypatch.setattr(recommender_module, "CANDIDATES_PER_BRANCH", 30)
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 100)
    monkeypatch.setattr(candidates, "MIN_ITEMS_TO_USE", 100)


def both(folder):
    """The recommender with the index, looking into all its cells, and the exact one."""
    run, catalog = with_added_items(open_run(folder))
    near = Recommender.open(folder)
    assert isinstance(near.candidate_generator, FaissCandidateGenerator)
    for of_domain in near.candidate_generator.indexes.values():
        for one in of_domain:
            one.nprobe = one.nlist
    return near, Recommender(TorchScorer(run), catalog)


def said(answers):
    return [[one.item.item_id for one in answer.items] for answer in answers]


@pytest.mark.parametrize("renormalized", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 0.01])  # exponentials of the other might overflow
def test_candidates_have_the_scores_of_the_model(indexed_run, short, temperature, renormalized):
    near, exact = both(indexed_run)
    for model in {*near.candidate_generator.models, *exact.scorer.models}:
        model.config = model.config.replace(temperature=temperature, renormalized=renormalized)
    histories = [np.array([3, 700, 41]), np.array([900]), np.array([5, 6, 7, 8])]
    for domain in (0, 1):
        columns, scores = near.candidate_generator.generate(*pad_histories(histories), domain, 7)
        whole = exact.scores(histories, domain)
        assert columns.shape[1] < 100
        for row in range(3):
            there = columns[row] >= 0
            assert len(np.unique(columns[row][there])) == there.sum()
            assert np.all(np.diff(columns[row]) >= 0)
            assert scores[row][there] == pytest.approx(whole[row][columns[row][there]], abs=1e-4)
            assert np.all(scores[row][~there] == -np.inf)


def test_recommendations_are_the_exact_ones(indexed_run, short):
    near, exact = both(indexed_run)
    asked = [[], ["?"], *sample_histories(open_run(indexed_run).data, 100)]
    for domain in ("d0", "d1"):
        answers = near.recommend(asked, domain, 5)
        wanted = exact.recommend(asked, domain, 5)
        assert said(answers) == said(wanted)
        assert [answer.ranked_by for answer in answers] == [answer.ranked_by for answer in wanted]
        assert answers[3].items[0].score == pytest.approx(wanted[3].items[0].score, abs=1e-5)


def test_what_may_not_be_listed_is_made_up_for(indexed_run, short, monkeypatch):
    near, exact = both(indexed_run)
    asked = sample_histories(open_run(indexed_run).data, 8)
    best = said(exact.recommend(asked, "d0", 20))
    for options in ({"exclude": best}, {"exclude_seen": False}):
        wanted = exact.recommend(asked, "d0", 5, **options)
        assert said(near.recommend(asked, "d0", 5, **options)) == said(wanted)
    # Where the candidates are too few for k, all items are ranked.
    monkeypatch.setattr(
        near.candidate_generator, "search", lambda asked, domain, depth: np.array([[-1, 4, 9]])
    )
    nothing = [np.array([], dtype=np.int64)]
    assert set(near._best_candidates([np.array([3])], 0, 2, nothing)[0][0]) == {4, 9}
    assert said(near.recommend(asked[:1], "d0", 5)) == said(exact.recommend(asked[:1], "d0", 5))


def test_it_is_measured_and_used_only_in_large_domains(indexed_run, tmp_path, monkeypatch, short):
    own = shutil.copytree(indexed_run, tmp_path / "own")
    told = index(own, histories=20)
    assert told.num_histories == 20
    assert min(told.recall.values()) >= 0.99
    assert "d0: recall@10 " in str(told)
    assert "of 15 cells" in str(told)
    monkeypatch.setattr(candidates, "MIN_ITEMS_TO_USE", 1000)
    assert Recommender.open(own).candidate_generator is None
    monkeypatch.setattr(candidates, "MIN_ITEMS_TO_USE", 600)
    assert Recommender.open(own).candidate_generator.domains == {0}
    shutil.rmtree(own / "index")
    assert Recommender.open(own).candidate_generator is None
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 550)
    assert set(index(own, histories=2).recall) == {"d0"}
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 650)
    with pytest.raises(HafvtError, match=r"no domain of .* has 650 items: scoring all items is as fast"):
        index(own)


def test_too_low_a_recall_is_told(indexed_run, tmp_path, monkeypatch, short):
    own = shutil.copytree(indexed_run, tmp_path / "own")
    monkeypatch.setattr(
        FaissCandidateGenerator, "search", lambda self, asked, domain, depth: np.arange(12)[None]
    )
    assert "LOW" in str(index(own, histories=1))


def test_a_stale_or_damaged_index_is_refused(indexed_run, tmp_path, short):
    own = shutil.copytree(indexed_run, tmp_path / "own")
    assert open_candidate_generator(open_run(own)) is not None
    file = own / "index" / "domain1-modality2.faiss"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(HafvtError, match=r"domain1-modality2.faiss is missing or damaged: build it again"):
        Recommender.open(own)
    file.write_bytes(whole)
    new = tmp_path / "new.csv"
    new.write_text("item_id,domain,title,image\nnew,d0,,\n")
    vectors = {name: tmp_path / f"{name}.npz" for name in ("image", "title")}
    for name, width in (("image", 12), ("title", 8)):
        np.savez(vectors[name], ids=np.array(["new"]), embeddings=np.ones((1, width), np.float32))
    catalog("add", own, new, precomputed=vectors)
    with pytest.raises(
        HafvtError, match="changed since the index was built: build it again with hafvt index"
    ):
        Recommender.open(own)
    index(own, histories=5)
    near, exact = both(own)
    assert said(near.recommend([["i3", "new"]], "d0", 5)) == said(exact.recommend([["i3", "new"]], "d0", 5))
    weights = own / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(HafvtError, match="changed since"):
        Recommender.open(own)


def test_other_models_and_a_missing_faiss(small, tmp_path, indexed_run, short, monkeypatch):
    other = train("popularity", small, tmp_path / "popularity", epochs=1, test=False)
    with pytest.raises(HafvtError, match="popularity has no index: it scores all items; only hafvt has one"):
        index(other.folder)
    real = builtins.__import__

    def without(name, *rest):
        if name == "faiss":
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(HafvtError, match=r"pip install 'hafvt\[index\]'"):
        index(indexed_run)
    with pytest.raises(HafvtError, match=r"pip install 'hafvt\[index\]'"):
        Recommender.open(indexed_run)


def test_the_server_answers_with_it(indexed_run, short):
    near, _ = both(indexed_run)
    (wanted,) = near.recommend([["i3", "i700"]], "d1", 5)
    with TestClient(create_app(ModelSource(indexed_run))) as client:
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.app.state.models.current.recommender.candidate_generator.domains == {0, 1}
        asked = {"history": ["i3", "i700"], "domain": "d1", "k": 5}
        answer = client.post("/recommend", json=asked).json()
        assert len(answer["items"]) == 5
        assert answer["items"][0]["score"] == pytest.approx(wanted.items[0].score, abs=1e-5)
