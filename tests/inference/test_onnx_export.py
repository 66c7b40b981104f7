"""An export scores and explains as its run does, without torch, or is not written at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hafvt import export, train
from hafvt.data.batches import target_batches
from hafvt.errors import HafvtError
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.inference.onnx_scorer import OnnxScorer
from hafvt.inference.recommender import Recommender
from hafvt.inference.torch_scorer import TorchScorer
from hafvt.server.manager import LoadedModel, ModelSource
from hafvt.training.run import open_run
from tests.conftest import write_small

pytest.importorskip("onnxscript")
HISTORIES = [["i3", "i41", "i7"], ["i2"], ["i40", "i41"], ["?", *(f"i{n}" for n in range(45))], []]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    # torch takes seconds to trace each block of each graph; sasrec, below, is exported with two.
    params = {"id_width": 8, "modalities": ("id",), "max_length": 20, "blocks": 1, "use_request_date": True}
    return train("hafvt", write_small(folder / "data"), folder / "run", params=params, epochs=2)


@pytest.fixture(scope="module")
def baked(run):
    summary = export(run.folder, out=run.folder.parent / "baked")
    assert summary.difference < 1e-4
    assert f"largest difference from torch {summary.difference:.0e}" in str(summary)
    return summary.folder


def item_ids(results):
    return [[one.item.item_id for one in result.items] for result in results]


@pytest.mark.slow
def test_export_recommends_and_explains_as_run(run, baked):
    of_run, of_export = Recommender.open(run.folder), Recommender.open(baked)
    for domain in ("d0", "d1"):
        expected, results = (one.recommend(HISTORIES, domain, k=10) for one in (of_run, of_export))
        assert item_ids(results) == item_ids(expected)
        assert [one.ranked_by for one in results] == [one.ranked_by for one in expected]
        for result, reference in zip(results, expected, strict=True):
            scores = [one.score for one in reference.items]
            assert [one.score for one in result.items] == pytest.approx(scores, abs=1e-4)
    explanation, exported = of_run.explain(HISTORIES[0], "i9"), of_export.explain(HISTORIES[0], "i9")
    assert exported.shares == pytest.approx(explanation.shares, abs=1e-4)
    assert exported.rank == explanation.rank
    for branch, weights in explanation.attention.items():
        assert exported.attention[branch] == pytest.approx(weights, abs=1e-4)


@pytest.mark.slow
def test_export_ranks_equal_those_of_evaluation(run, baked):
    scorer, data, positions = OnnxScorer(baked), run.data, np.asarray(run.data.test)
    expected = rank_positions(run.model, data, positions, get_protocol("full", "all")).half_ties
    for rows, batch in target_batches(data, positions, 16, scorer.max_length):
        for number, domain in enumerate(data.domains):
            targets = np.asarray(data.items)[positions[rows]].astype(np.int64)
            mine = np.flatnonzero((targets >= domain.start) & (targets < domain.stop))
            if len(mine):
                items, lengths = batch.items.numpy()[mine], batch.lengths.numpy()[mine]
                times = batch.times.numpy()[mine]
                one_by_one = [
                    scorer.scores(items[n : n + 1], lengths[n : n + 1], number, int(time))
                    for n, time in enumerate(times)
                ]
                scores = np.concatenate(one_by_one)
                some = np.take_along_axis(scores, targets[mine, None] - domain.start, axis=1)
                ranks = 1 + (scores > some).sum(1) + ((scores == some).sum(1) - 1) / 2
                assert ranks.tolist() == expected.ranks[rows[mine]].tolist()


@pytest.mark.slow
def test_export_opens_without_torch(run, baked):
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "import hafvt\n"
        f"recommender = hafvt.Recommender.open({str(baked)!r})\n"
        f"results = recommender.recommend({HISTORIES!r}, 'd1', k=10)\n"
        f"rank = recommender.explain({HISTORIES[0]!r}, 'i9').rank\n"
        "print(json.dumps([[[one.item.item_id for one in result.items] for result in results], rank]))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    recommender = Recommender.open(run.folder)
    expected = item_ids(recommender.recommend(HISTORIES, "d1", k=10))
    assert json.loads(process.stdout) == [expected, recommender.explain(HISTORIES[0], "i9").rank]


@pytest.mark.slow
def test_model_source_leaves_one_core_to_the_server(run, baked, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    try:
        LoadedModel.open(ModelSource(run.folder))
        assert torch.get_num_threads() == LoadedModel.open(ModelSource(baked)).recommender.scorer.threads == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        LoadedModel.open(ModelSource(run.folder))
        assert torch.get_num_threads() == LoadedModel.open(ModelSource(baked)).recommender.scorer.threads == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_open_damaged_or_older_export_raises(baked, tmp_path):
    damaged = shutil.copytree(baked, tmp_path / "damaged")
    with (damaged / "weights.bin").open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(HafvtError, match=r"weights.bin is damaged \(.*\): export the run again"):
        Recommender.open(damaged)
    manifest = json.loads((damaged / "export.json").read_text())
    for change, error in (
        ({"format": 1}, "format 1, but this version of hafvt reads format 3: export the run again"),
        ({"sha256": {"../baked/weights.bin": ""}}, "outside of the folder: export the run again"),
    ):
        (damaged / "export.json").write_text(json.dumps(manifest | change))
        with pytest.raises(HafvtError, match=error):
            OnnxScorer(damaged)


@pytest.mark.slow
def test_export_item_tables_can_be_replaced(tmp_path):
    params = {"id_width": 8, "modalities": ("id", "title"), "hierarchy": False}
    data = write_small(tmp_path / "data", sizes=(41,))
    run = train("hafvt", data, tmp_path / "run", params=params, epochs=1)
    folder = export(run.folder, out=tmp_path / "export", item_tables="inputs").folder
    scorer, random = OnnxScorer(folder), np.random.default_rng(0)
    assert set(scorer.item_tables) == {"items.ids.weight", "items.content_title"}
    items, lengths = random.integers(41, size=(4, 8)), np.array([8, 1, 3, 2])
    opened = open_run(run.folder)
    for replaced in (False, True):
        if replaced:
            titles = random.normal(size=(41, 8)).astype(np.float32)
            opened.model.items.content_title.copy_(torch.from_numpy(titles))
            opened.model.eval()  # clears tables computed from the previous titles
            scorer = OnnxScorer(folder, {"items.content_title": titles})
        expected = TorchScorer(opened).scores(items, lengths, 0)
        assert scorer.scores(items, lengths, 0) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(HafvtError, match=r"give float32 \(41, 8\)"):
        OnnxScorer(folder, {"items.content_title": titles[:40]})
    with pytest.raises(
        HafvtError, match=r"no item table 'x' as input: it has items.content_title, items.ids.weight"
    ):
        OnnxScorer(folder, {"x": titles})


@pytest.mark.parametrize("model", ["sasrec", pytest.param("gru4rec", marks=pytest.mark.slow)])
def test_export_of_other_models_recommends_as_run(model, tmp_path):
    data = write_small(tmp_path / "data", sizes=(30,), with_features=False)
    run = train(model, data, tmp_path / "run", params={"width": 8}, epochs=1)
    recommender = Recommender.open(export(run.folder, out=tmp_path / "out").folder)
    expected = Recommender.open(run.folder).recommend(HISTORIES, "d0", k=10)
    assert item_ids(recommender.recommend(HISTORIES, "d0", k=10)) == item_ids(expected)
    with pytest.raises(HafvtError, match="cannot explain its scores"):
        recommender.explain(["i3"], "i4")


def test_export_that_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    data = write_small(tmp_path / "data", with_features=False)
    run = train("popularity", data, tmp_path / "run")
    monkeypatch.setattr("hafvt.inference.onnx_export.difference", lambda one, other: float("nan"))
    with pytest.raises(HafvtError, match="differ from torch by nan, more than 1e-04"):
        export(run.folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}


def test_export_of_untraceable_model_raises(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "hafvt.inference.onnx_export.open_run", lambda run, data: SimpleNamespace(name="mifn")
    )
    with pytest.raises(
        HafvtError, match="mifn cannot be exported: models that can are hafvt, hafvt-paper, gru4rec"
    ):
        export(tmp_path, out=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system lists no memory maps")
def test_open_export_maps_no_file_that_may_be_cut_short(baked, tmp_path):
    export = shutil.copytree(baked, tmp_path / "export")
    recommender = Recommender.open(export)
    before = recommender.recommend(HISTORIES, "d1", k=10)
    assert recommender.explain(HISTORIES[0], "i9").rank
    assert str(export) not in Path("/proc/self/maps").read_text()
    (export / "weights.bin").write_bytes(b"")
    assert recommender.recommend(HISTORIES, "d1", k=10) == before
