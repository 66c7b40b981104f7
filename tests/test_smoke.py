"""The main job on a small world, end to end: what must never break."""

from __future__ import annotations

from pathlib import Path

import hafvt
from hafvt.data.sources.demo import generate_world


def test_prepare_encode_train_evaluate_recommend_explain(tmp_path: Path) -> None:
    interactions, items = generate_world(tmp_path / "world", users=60, items_per_shop=30, seed=0)
    data = hafvt.prepare(interactions, items, tmp_path / "data", min_per_domain=1)
    hafvt.encode(data, image="classic", title="classic")
    for model in ("hafvt", "sasrec", "popularity"):
        run = hafvt.train(model, data, tmp_path / model, epochs=1)
        evaluation = hafvt.evaluate(run.folder)
        assert 0 < evaluation.results["overall"]["MRR"].value < 1
    recommender = hafvt.Recommender.open(tmp_path / "hafvt")
    history = data.item_table["item_id"].to_list()[:3]
    for domain in recommender.domains:
        (answer,) = recommender.recommend([history], domain, k=5)
        assert len(answer.items) == 5
    explanation = recommender.explain(history, answer.items[0].item.item_id)
    assert abs(sum(explanation.shares.values()) - 1) < 1e-4
