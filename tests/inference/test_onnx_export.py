"""An export says what its run says, without torch, or is not written at all."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hafvt import export, train
from hafvt.data.batches import target_batches
from hafvt.errors import HafvtError
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.inference.onnx_scorer import OnnxScorer
from hafvt.inference.recommender import Recommender
from hafvt.inference.torch_scorer import TorchScorer
from hafvt.server.manager import ModelSource
from hafvt.training.run import open_run
from tests.conftest import write_small

pytest.importorskip("onnxscript")
HISTORIES = [["i3", "i41", "i7"], ["i2"], ["i40", "i41"], ["?", *(f"i{n}" for n in range(45))], []]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    # torch takes seconds to trace each block of each graph; sasrec, below, is exported with two.
    params = {"id_width": 8, "modalities": ("id",), "max_length": 20, "blocks": 1}
    return train("hafvt", write_small(folder / "data"), folder / "run", params=params, epochs=2)


@pytest.fixture(scope="module")
def baked(run):
    made = export(run.folder, out=run.folder.parent / "baked")
    assert made.difference < 1e-4
    assert f"largest difference from torch {made.difference:.0e}" in str(made)
    return made.folder


def recommended(recommender, domain):
    return [
        ([one.item.item_id for one in answer.items], [one.score for one in answer.items], answer.ranked_by)
        for answer in recommender.recommend(HISTORIES, domain, k=10)
    ]


def test_the_run_and_its_export_recommend_the_same(run, baked):
    one, other = Recommender.open(run.folder), Recommender.open(baked)
    for domain in ("d0", "d1"):
        for (ids, scores, by), (same, near, likewise) in zip(
            recommended(one, domain), recommended(other, domain), strict=True
        ):
            assert (ids, by) == (same, likewise)
            assert scores == pytest.approx(near, abs=1e-4)
    told, again = one.explain(HISTORIES[0], "i9"), other.explain(HISTORIES[0], "i9")
    assert again.shares == pytest.approx(told.shares, abs=1e-4)
    assert again.rank == told.rank
    for pair, weights in told.attention.items():
        assert again.attention[pair] == pytest.approx(weights, abs=1e-4)


def test_its_ranks_are_those_of_evaluate(run, baked):
    scorer, data, positions = OnnxScorer(baked), run.data, np.asarray(run.data.test)
    expected = rank_positions(run.model, data, positions).half_ties
    for rows, batch in target_batches(data, positions, 16, scorer.max_length):
        for number, domain in enumerate(data.domains):
            targets = np.asarray(data.items)[positions[rows]].astype(np.int64)
            mine = np.flatnonzero((targets >= domain.start) & (targets < domain.stop))
            if len(mine):
                items, lengths = batch.items.numpy()[mine], batch.lengths.numpy()[mine]
                scores = scorer.scores(items, lengths, number)
                some = scorer.scores(items, lengths, number, targets[mine, None])
                ranks = 1 + (scores > some).sum(1) + ((scores == some).sum(1) - 1) / 2
                assert ranks.tolist() == expected.ranks[rows[mine]].tolist()


def test_no_torch_is_needed(run, baked):
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "import hafvt\n"
        f"recommender = hafvt.Recommender.open({str(baked)!r})\n"
        f"answers = recommender.recommend({HISTORIES!r}, 'd1', k=10)\n"
        f"told = recommender.explain({HISTORIES[0]!r}, 'i9')\n"
        "print(json.dumps([[[one.item.item_id for one in answer.items] for answer in answers], told.rank]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids, rank = json.loads(done.stdout)
    here = Recommender.open(run.folder)
    assert ids == [ids for ids, _, _ in recommended(here, "d1")]
    assert rank == here.explain(HISTORIES[0], "i9").rank


def test_a_server_leaves_a_core_to_those_who_ask(run, baked, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    try:
        ModelSource(run.folder).open_recommender()
        assert torch.get_num_threads() == ModelSource(baked).open_recommender().scorer.threads == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        ModelSource(run.folder).open_recommender()
        assert torch.get_num_threads() == ModelSource(baked).open_recommender().scorer.threads == 2
    finally:
        torch.set_num_threads(before)


def test_damage_is_told(baked, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in baked.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    with (damaged / "weights.bin").open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(HafvtError, match=r"weights.bin is missing or damaged: export the run again"):
        Recommender.open(damaged)
    about = json.loads((damaged / "export.json").read_text())
    for change, error in (
        ({"format": 99}, "format 99"),
        ({"sha256": {"../baked/weights.bin": ""}}, "damaged"),
    ):
        (damaged / "export.json").write_text(json.dumps(about | change))
        with pytest.raises(HafvtError, match=error):
            OnnxScorer(damaged)


def test_another_catalog_can_be_given(tmp_path):
    params = {"id_width": 8, "content_width": 6, "modalities": ("id", "title"), "hierarchy": False}
    data = write_small(tmp_path / "data", sizes=(41,))
    run = train("hafvt", data, tmp_path / "run", params=params, epochs=1)
    folder = export(run.folder, out=tmp_path / "given", item_tables="inputs").folder
    given, random = OnnxScorer(folder), np.random.default_rng(0)
    assert set(given.item_tables) == {"items.ids.weight", "items.frozen_title"}
    items, lengths = random.integers(41, size=(4, 6)), np.array([6, 1, 3, 2])
    opened = open_run(run.folder)
    for other in (False, True):
        if other:
            titles = random.normal(size=(41, 6)).astype(np.float32)
            opened.model.items.frozen_title.copy_(torch.from_numpy(titles))
            opened.model.eval()  # it forgets what it made of the former ones
            given = OnnxScorer(folder, {"items.frozen_title": titles})
        expected = TorchScorer(opened).scores(items, lengths, 0)
        assert given.scores(items, lengths, 0) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(HafvtError, match=r"give float32 \(41, 6\)"):
        OnnxScorer(folder, {"items.frozen_title": titles[:40]})
    with pytest.raises(
        HafvtError, match=r"no item table 'x' as input: it has items.frozen_title, items.ids.weight"
    ):
        OnnxScorer(folder, {"x": titles})


@pytest.mark.parametrize("model", ["sasrec", "gru4rec"])
def test_other_models_are_exported(model, tmp_path):
    data = write_small(tmp_path / "data", sizes=(30,), with_features=False)
    run = train(model, data, tmp_path / "run", params={"width": 8}, epochs=1)
    recommender = Recommender.open(export(run.folder, out=tmp_path / "out").folder)
    assert recommended(recommender, "d0")[0][0] == recommended(Recommender.open(run.folder), "d0")[0][0]
    with pytest.raises(HafvtError, match="cannot explain its scores"):
        recommender.explain(["i3"], "i4")


def test_what_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    data = write_small(tmp_path / "data", with_features=False)
    run = train("popularity", data, tmp_path / "run")
    monkeypatch.setattr("hafvt.inference.onnx_export.difference", lambda one, other: float("nan"))
    with pytest.raises(HafvtError, match="differ from torch by nan, more than 1e-04"):
        export(run.folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}


def test_models_that_cannot_be_traced_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "hafvt.inference.onnx_export.open_run", lambda run, data: SimpleNamespace(name="mifn")
    )
    with pytest.raises(HafvtError, match="mifn cannot be exported: models that can are hafvt, gru4rec"):
        export(tmp_path, out=tmp_path / "out")
