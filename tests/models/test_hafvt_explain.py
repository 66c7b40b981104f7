"""Explanations of HAF-VT."""

from __future__ import annotations

import pytest
import torch

from hafvt.data.batches import Batch, collate
from hafvt.features.item_features import (
    load_item_features,
)
from tests.models.hafvt_models import CONFIGS, SMALL, build, without_interactions

pytestmark = pytest.mark.usefixtures("few_directions")


@pytest.mark.parametrize("name", CONFIGS)
def test_explain_shares_sum_to_one_and_attention_lies_on_the_sequence(small, name):
    model = build(small, CONFIGS[name])
    batch = Batch(torch.tensor([[1, 40, 2, 3, 41, 0], [45, 46, 0, 0, 0, 0]]), torch.tensor([5, 2]))
    shares, attention = model.explain(batch, 0, torch.randint(0, 30, (2, 4)))
    count = len(model.sequence_names), len(model.modalities)
    assert shares.shape == (2, 4, *count)
    torch.testing.assert_close(shares.sum((2, 3)), torch.ones(2, 4))
    assert attention.shape == (2, *count, 6)
    torch.testing.assert_close(attention[0].sum(2), torch.ones(count))
    if count[0] > 1:
        assert attention[0, 0, :, [1, 4, 5]].abs().max() == 0  # items of the other domain
        assert attention[1, 0].abs().max() == 0  # no item of this domain
        assert shares[1, :, 0].abs().max() == 0  # an empty sequence adds nothing


def test_explain_attention_of_the_paper_gives_the_last_state(small):
    model = build(small, CONFIGS["paper"])
    items = torch.tensor([[1, 40, 2, 3, 41]])
    _, attention = model.explain(Batch(items, torch.tensor([5])), 0, torch.tensor([[0]]))
    layer, x = model.layers[2][0], model.embeddings()[0][items[0]]  # ids of the merged sequence
    expected = (attention[0, 2, 0] @ x) @ layer.qkv.weight[20:].T + layer.qkv.bias[20:]
    torch.testing.assert_close(layer(x[None])[0][0, -1], expected)


def test_explain_with_lambda2_zero_gives_no_share_to_the_merged_sequence(small):
    model = build(small, SMALL.replace(lambda2=0.0))
    batch = collate(small.items, small.offsets[:5], small.offsets[1:6])
    shares, _ = model.explain(batch, 0, torch.zeros(5, 1, dtype=torch.int64))
    assert shares[:, :, 1:].abs().max() == 0


def test_explain_of_a_cold_item_assigns_the_id_share_to_content(small):
    item_features = without_interactions(load_item_features(small), 4)
    model = build(small, SMALL, item_features=item_features)
    with torch.no_grad():
        model.items.projections["image"].weight.zero_()  # images add nothing to input embeddings
        model.items.cluster_weights_image.zero_()
    batch, candidates = Batch(torch.tensor([[1, 40, 2]]), torch.tensor([3])), torch.tensor([[4, 5]])
    parts = torch.stack(list(model.branch_scores(batch, 0, candidates)), 2)[0].unflatten(
        1, (2, 3)
    )  # (C, 2, M)
    parts = (parts / parts.sum((1, 2), keepdim=True)).detach()
    shares = model.explain(batch, 0, candidates).shares[0, :, [0, 2]].detach()
    torch.testing.assert_close(shares[1], parts[1])
    assert shares[0, :, 0].abs().max() == 0
    torch.testing.assert_close(shares[0, :, 1], parts[0, :, 1])
    torch.testing.assert_close(shares[0, :, 2], parts[0, :, 0] + parts[0, :, 2])
