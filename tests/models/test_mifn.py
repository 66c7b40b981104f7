"""MIFN against its reference in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch
from hafvt.errors import HafvtError
from hafvt.features.item_features import load_item_features
from hafvt.models.configs import MifnConfig
from hafvt.models.mifn import Mifn
from tests.conftest import as_batch
from tests.reference import mifn as reference

BORDER = 30
HISTORIES = [[3, 41, 8, 30, 31, 3, 9], [45, 31, 30], [9], [7, 12, 7], [33, 2], [41, 7, 33, 11, 44]]

each_history_set = pytest.mark.parametrize(
    "histories", [HISTORIES, HISTORIES[:1], HISTORIES[3:4]], ids=["many", "one", "one domain"]
)


def relations_of(data, kind):
    """Return relations by name: training transitions, two of an item table, or none."""
    if kind == "transitions":
        return load_item_features(data, (), relations=True).relations
    if kind == "none":
        return {}
    random = np.random.default_rng(1)
    links = {
        name: torch.from_numpy(random.integers(0, 50, (200, 2))) for name in ("also_bought", "buy_after")
    }
    return {**links, "transition": torch.tensor([[3, 41]])}  # relations of an item table win over transitions


def build(data, kind="transitions", **changes):
    torch.manual_seed(0)
    small = {
        "width": 5,
        "dropout": 0.0,
        "max_length": 9,
        "num_prefixes": 100,
        "max_nodes": 12,
        "links_per_item": 3,
    }
    config = MifnConfig(**{**small, **changes})
    item_features = replace(load_item_features(data, ()), relations=relations_of(data, kind))
    model = Mifn(item_features, config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    names = {"transitions": ["transition"], "table": ["also_bought", "buy_after"], "none": []}[kind]
    edges = {name: item_features.relations[name].tolist() for name in names} or {"none": []}
    return model, {key: t.double().numpy() for key, t in model.state_dict().items()}, edges


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("transitions", {}),
        ("table", {"hops": 1}),
        ("table", {"max_nodes": 5, "links_per_item": 6}),
        ("none", {}),
    ],
    ids=str,
)
@each_history_set
def test_mifn_scores_and_loss_equal_reference(small, kind, changes, histories):
    model, w, edges = build(small, kind, **changes)
    counts, config = small.train_counts(), model.config
    for domain, part in enumerate(small.domains):
        scores = model.scores(as_batch(histories), domain).detach().numpy()
        for row, history in zip(scores, histories, strict=True):
            graph = reference.graph(history, edges, counts, config)
            p, _ = reference.probabilities(history, domain, w, BORDER, graph, config)
            np.testing.assert_allclose(row, np.log(p), atol=1e-5)
        candidates = torch.tensor([[part.stop - 1, part.start + 2]]).expand(len(histories), 2)
        alone = model.scores(as_batch(histories), domain, candidates).detach().numpy()
        np.testing.assert_allclose(alone, scores[:, [-1, 2]], atol=1e-6)
    expected = reference.loss(histories, edges, counts, w, BORDER, config)
    assert model.loss(as_batch(histories)).item() == pytest.approx(expected, abs=1e-5)


def test_mifn_graphs_equal_reference(small):
    model, _, edges = build(small)
    assert reference.graph(HISTORIES[0], edges, small.train_counts(), model.config)[1].sum() > 20
    for target in (None, 16):  # 9 is followed by 16 in most histories
        targets = None if target is None else torch.full((len(HISTORIES),), target)
        graphs = model.graphs(as_batch(HISTORIES), targets)
        for history, row, matrix in zip(HISTORIES, graphs.nodes, graphs.adjacency, strict=True):
            nodes, adjacency = reference.graph(history, edges, small.train_counts(), model.config, target)
            assert row[row >= 0].tolist() == nodes
            assert matrix[:, : len(nodes), : len(nodes)].tolist() == adjacency.tolist()
            assert matrix.sum() == adjacency.sum()


def test_mifn_graph_in_training_lacks_link_of_the_same_step(small):
    item_features = replace(
        load_item_features(small, ()),
        relations={"transition": torch.tensor([[3, 4], [3, 5], [3, 5], [8, 3]])},
    )
    model = Mifn(item_features, MifnConfig(width=4, hops=1))
    history = as_batch([[8, 3]])
    nodes = lambda *target: set(model.graphs(history, *target).nodes[0].tolist()) - {-1}  # noqa: E731
    assert nodes() == {3, 8, 4, 5}
    assert nodes(torch.tensor([4])) == {3, 8, 5}  # build by this step alone
    assert nodes(torch.tensor([5])) == {3, 8, 4, 5}  # another history build it, too


def test_mifn_notes_name_the_relations_of_the_graph(small):
    for kind, names in (("transitions", "transition"), ("table", "also_bought, buy_after"), ("none", "none")):
        assert build(small, kind)[0].notes == (f"knowledge graph: {names}",)


def test_mifn_dropout_at_evaluation_changes_scores(small):
    for dropout_at_evaluation in (False, True):
        model, _, _ = build(small, dropout=0.5, dropout_at_evaluation=dropout_at_evaluation)
        model.eval()
        first, second = (model.scores(as_batch(HISTORIES), 0) for _ in range(2))
        assert torch.equal(first, second) != dropout_at_evaluation


def test_mifn_scores_with_padding_stay_equal(small):
    model, _, _ = build(small)
    for domain in range(2):
        alone = [model.scores(as_batch([history]), domain) for history in HISTORIES]
        scores = model.scores(as_batch(HISTORIES, pad=2, width=9), domain)
        torch.testing.assert_close(scores, torch.cat(alone))


def test_mifn_with_empty_histories_is_finite(small):
    model, _, _ = build(small)
    empty = Batch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
    for domain in range(2):
        assert torch.isfinite(model.scores(empty, domain)).all()
    assert model.loss(as_batch([[4], [40]])).item() == 0
    model.loss(as_batch(HISTORIES)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_mifn_with_three_domains_is_refused(make_small):
    with pytest.raises(HafvtError, match="defined for two domains, not 3"):
        build(make_small(sizes=(10, 10, 10)))
