"""Cold items, added items and clusters of HAF-VT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch, collate
from hafvt.errors import HafvtError
from hafvt.features.clusters import complete_clusters, renumber_items
from hafvt.features.item_features import (
    ItemClusters,
    Vectors,
    load_item_features,
    prepare_vectors,
)
from hafvt.models.hafvt import HafVt
from hafvt.models.item_embeddings import saved_clusters
from hafvt.ops.embedding import add_weighted_rows
from tests.models.hafvt_models import CONFIGS, SMALL, build, without_interactions

pytestmark = pytest.mark.usefixtures("few_directions")


@pytest.mark.parametrize("name", ["default", "ids", "paper"])
def test_loss_does_not_depend_on_ids_of_cold_items(make_small, name):
    data = make_small(users=7)
    model = build(data, CONFIGS[name]).train()
    batch = collate(data.items, data.offsets[:-1], data.offsets[:-1] + data.train_lengths)
    loss = model.loss(batch)
    loss.backward()
    ids = model.ids if "paper" in name else model.items.ids
    is_cold = model.trained.is_cold
    assert is_cold.any()
    assert ids.weight.grad[is_cold].abs().max() == 0
    with torch.no_grad():
        ids.weight[is_cold] = 3.0
    assert model.loss(batch).item() == loss.item()


@pytest.mark.parametrize("name", ["default", "ids", "paper"])
def test_scores_do_not_depend_on_ids_of_cold_items(small, name):
    model = build(small, CONFIGS[name], item_features=without_interactions(load_item_features(small), 3))
    batch = Batch(torch.tensor([[1, 3]]), torch.tensor([2]))
    before = model.scores(batch, 0).detach()
    with torch.no_grad():
        (model.ids if name == "paper" else model.items.ids).weight[3] += 1
    torch.testing.assert_close(model.scores(batch, 0), before)
    if name == "ids":
        assert before[0, 3] == before.min() <= np.log(np.float32(1e-30))  # no probability at all


def test_cold_item_boost_multiplies_scores_of_cold_items_only(small):
    item_features = without_interactions(load_item_features(small), 4)
    batch = Batch(torch.tensor([[1, 40, 2]]), torch.tensor([3]))
    one, three = (
        build(small, SMALL.replace(cold_item_boost=boost), item_features=item_features).scores(batch, 0)[0]
        for boost in (1.0, 3.0)
    )
    expected = torch.zeros(30)
    expected[4] = np.log(3)
    torch.testing.assert_close((three - one).detach(), expected)


def test_loading_weights_takes_their_clusters(small):
    model, opened = build(small, SMALL), build(small, SMALL)
    state, key = model.state_dict(), "items.cluster_rows_title"
    count = len(state["items.clusters.title"])
    state[key] = (state[key] + 1) % count  # as another processor might have found them
    opened.load_state_dict(state)
    links = opened.items.cluster_links("title")
    assert torch.equal(links.rows, state[key])
    table = torch.zeros(count, 1, requires_grad=True)
    add_weighted_rows(torch.zeros(50, 1), table, links, torch.ones(50, 1)).sum().backward()
    expected = torch.zeros(count).index_add_(0, links.rows.flatten(), links.weights.float().flatten())
    torch.testing.assert_close(table.grad[:, 0], expected)  # along reversed links of the loaded rows
    state[key] = state[key].clone()
    state[key][7, 1] = count
    with pytest.raises(HafvtError, match=f"a link leads to row {count} of {count}: the weights are damaged"):
        opened.load_state_dict(state)


def test_extend_catalog_clusters_new_items_and_keeps_the_others(small):
    extended_features = without_interactions(load_item_features(small), 4)  # item 4 is the added one
    extended_indices = torch.tensor([item for item in range(50) if item != 4])
    domains = (replace(small.domains[0], stop=29), replace(small.domains[1], start=29, stop=49))
    vectors = {
        name: Vectors(v.rows[extended_indices], v.present[extended_indices])
        for name, v in extended_features.vectors.items()
    }
    counts = extended_features.train_counts[extended_indices]
    features = replace(extended_features, domains=domains, train_counts=counts, vectors=vectors)
    model = build(small, SMALL, item_features=features)
    weights = model.state_dict()
    rows = weights["items.cluster_rows_title"]
    rows[[0, 7]] = rows[[7, 0]]
    model.load_state_dict(weights)
    extended = model.extend_catalog(extended_features, extended_indices)
    links = extended.items.cluster_links("title")
    assert torch.equal(links.rows[extended_indices], rows)
    prepared = prepare_vectors(extended_features.vectors["title"], extended_features, 128)
    saved = renumber_items(ItemClusters(rows, 0), extended_indices, 50)
    expected = complete_clusters(
        extended_features.vectors["title"]._replace(rows=prepared),
        extended_features.train_counts,
        saved,
        rows.shape[1],
    )
    assert torch.equal(links.rows, expected.cluster_rows)
    before = model.scores(Batch(torch.tensor([[1, 30, 2]]), torch.tensor([3])), 1)
    after = extended.scores(Batch(torch.tensor([[1, 31, 2]]), torch.tensor([3])), 1)
    torch.testing.assert_close(after, before)


def test_saved_clusters_are_not_computed_again(small, monkeypatch):
    model = build(small, SMALL)
    saved = saved_clusters(model.items.state_dict())
    monkeypatch.setattr("hafvt.features.clusters.cluster_items", None)
    features = load_item_features(small)
    opened = build(small, SMALL, item_features=replace(features, clusters=saved))
    for a, b in zip(model.items.cluster_links("title"), opened.items.cluster_links("title"), strict=True):
        assert torch.equal(a, b)
    wrong = saved | {"title": saved["title"]._replace(cluster_rows=saved["title"].cluster_rows[1:])}
    with pytest.raises(HafvtError, match="do not fit these items"):
        build(small, SMALL, item_features=replace(features, clusters=wrong))
    with pytest.raises(HafvtError, match="no clusters by image"):
        HafVt(features, SMALL)
