"""HAF-VT and its literal equations against the numpy reference, and properties that no equation shows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch, collate
from hafvt.errors import HafvtError
from hafvt.features.item_features import (
    load_item_features,
)
from hafvt.models import configure, resolve_config
from hafvt.models.blocks import PreNormBlock
from hafvt.models.configs import HafVtPaperConfig
from hafvt.models.sequence_encoder import SequenceEncoder
from tests.models.hafvt_models import CONFIGS, SMALL, build
from tests.reference import hafvt as reference

pytestmark = pytest.mark.usefixtures("few_directions")


def to_numpy(tensor):
    return tensor.detach().double().numpy()


def reference_weights(model) -> reference.Weights:
    """Returns the numbers of a model for the reference."""
    is_paper = isinstance(model.config, HafVtPaperConfig)
    count, number = len(model.domains), len(model.modalities)
    is_id = [name == "id" for name in model.modalities]
    if is_paper:
        tables = model.embeddings()
        layers = [[{k: to_numpy(v) for k, v in x.state_dict().items()} for x in row] for row in model.layers]
        inputs = [to_numpy(table) for table in tables]

        def state(s, items):
            rows = zip(inputs, layers[s], strict=True)
            return [reference.attention(table[items], layer)[-1] for table, layer in rows]

        weights = dict.fromkeys(range(count + 1), np.full(number, 1 / number))
        shared = {"temperature": 1.0, "lambda1": model.config.lambda1, "discount_factor": 1.0}
        shared |= {"renormalized": False, "cold_boost": [0.0 if unit else 1.0 for unit in is_id]}
        sequences = list(range(count + 1))
        normalize = partial(torch.nn.functional.normalize, dim=1)
        embeddings = [normalize(t) if unit else t for t, unit in zip(tables, is_id, strict=True)]
    else:
        sequences = list(range(count + 1)) if model.config.hierarchy else [count]
        row = {s: n for n, s in enumerate(sequences)}
        encoders = [{k: to_numpy(v) for k, v in x.state_dict().items()} for x in model.encoders]
        heads = [
            [{k: to_numpy(v) for k, v in x.state_dict().items()} for x in part]
            for part in model.output_projections
        ]
        inputs, config = to_numpy(model.items.input_embeddings()), model.config

        def state(s, items):
            attention_heads = 2 if config.id_width % 2 == 0 else 1
            h = reference.encoder(inputs[items], encoders[row[s]], config.blocks, attention_heads)[-1]
            return [h @ head["weight"].T + head["bias"] if head else h for head in heads[row[s]]]

        of_rows = to_numpy(model.log_modality_weights().exp())
        weights = {s: of_rows[n] for s, n in row.items()}
        shared = {"temperature": config.temperature, "lambda1": 0.0, "renormalized": True}
        shared |= {"discount_factor": model.log_seen_shares()[0].exp().item()}
        shared |= {"cold_boost": [config.cold_item_boost if model.content_modalities else 0.0] * number}
        embeddings = model.items.scoring_vectors()
    return reference.Weights(
        domains=[(d.start, d.stop) for d in model.domains],
        embeddings=[to_numpy(table) for table in embeddings],
        is_cold=model.trained.is_cold.numpy(),
        state=state,
        sequences=sequences,
        modality_weights=weights,
        lambda2=model.config.lambda2,
        **shared,
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sizes", [(30, 20), (9, 7, 11), (25,)])
def test_loss_and_scores_match_the_equations(make_small, name, sizes):
    data = make_small(users=7, sizes=sizes)
    model = build(data, CONFIGS[name])
    weights = reference_weights(model)
    assert weights.is_cold.any()
    histories = [list(data.items[a:b]) for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)]
    histories.append([0, 1, 2, 0])  # one domain alone, with a repeat
    stops = np.cumsum([len(h) for h in histories])
    batch = collate(np.concatenate(histories).astype(np.int32), stops - [len(h) for h in histories], stops)
    assert model.loss(batch).item() == pytest.approx(reference.loss(histories, weights), abs=2e-5)
    for domain, (start, stop) in enumerate(weights.domains):
        rows = np.stack([reference.scores(history, domain, weights) for history in histories])
        seen = [np.isin(np.arange(start, stop), history) for history in histories]
        floor = np.where(seen, 1e-30 * weights.discount_factor, 1e-30)
        scores = to_numpy(model.scores(batch, domain))
        np.testing.assert_allclose(scores, np.log(np.maximum(rows, floor)), atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_of_candidates_equal_scores_of_all_items(small, name):
    model = build(small, CONFIGS[name])
    batch = collate(small.items, small.offsets[:5], small.offsets[1:6])
    candidates = torch.randint(30, 50, (5, 8))
    scores = model.scores(batch, 1)
    torch.testing.assert_close(model.scores(batch, 1, candidates), scores.gather(1, candidates - 30))


def test_input_embeddings_add_ids_content_and_clusters(small):
    items = build(small, SMALL).items
    for table in items.clusters.values():
        torch.nn.init.normal_(table)
    counts = load_item_features(small).train_counts[:, None]
    ids, shared = items.ids.weight * counts / (counts + 20), 20 / (counts + 20)
    shared[items.trained.is_cold] = (shared * counts).sum() / counts.sum()
    expected = ids
    for name in ("image", "title"):
        links = items.cluster_links(name)
        assert links.rows.shape == (50, 3)
        assert 0 < int((links.weights == 0).sum()) < 3 * 25  # items without this content
        expected = expected + items.content_vectors(name) @ items.projections[name].weight.T
        expected = expected + shared * (items.clusters[name][links.rows] * links.weights[..., None]).sum(1)
    torch.testing.assert_close(items.input_embeddings(), expected)
    content = sum(
        items.content_embeddings(name, torch.arange(50), items.content_vectors(name))
        for name in ("image", "title")
    )
    torch.testing.assert_close(ids + content, expected)


def test_input_embeddings_in_inference_are_computed_once_until_training(small):
    model = build(small, SMALL)
    with torch.inference_mode():
        before = model.items.input_embeddings()
        assert model.items.input_embeddings() is before
    model.train()
    with torch.no_grad():
        model.items.ids.weight += 1
    with torch.inference_mode():
        assert not torch.equal(model.eval().items.input_embeddings(), before)


def test_merged_sequence_has_the_same_weight_in_a_small_domain(make_small):
    data = make_small(sizes=(40, 9, 5))
    batch = Batch(torch.tensor([[1, 41, 50, 2]]), torch.tensor([4]))
    model = build(data, SMALL)
    with torch.no_grad():
        model.repeat_logit.fill_(1.0)  # no repeat discount
    for domain in range(3):
        trained = ~model.trained.is_cold[model.domains[domain].start : model.domains[domain].stop]
        merged = torch.stack(list(model.branch_scores(batch, domain)))[-3:, 0, trained]
        assert merged.sum().item() == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_of_an_empty_history_are_equal(small, name):
    model = build(small, CONFIGS[name])
    assert len(model.scores(Batch(torch.tensor([[0]]), torch.tensor([0])), 0).unique()) == 1


@pytest.mark.parametrize("name", ["default", "paper"])
def test_scores_and_loss_ignore_padding_and_other_histories(small, name):
    model = build(small, CONFIGS[name])
    alone = collate(small.items, small.offsets[:1], small.offsets[1:2])
    padded = Batch(torch.nn.functional.pad(alone.items, (0, 9), value=17), alone.lengths)
    torch.testing.assert_close(model.scores(padded, 0), model.scores(alone, 0))
    batch = collate(small.items, small.offsets[:9], small.offsets[1:10])
    torch.testing.assert_close(model.scores(batch, 0)[:1], model.scores(alone, 0))
    torch.testing.assert_close(model.loss(padded), model.loss(alone))


def test_repeat_logit_lowers_seen_items_and_raises_others(small):
    model = build(small, SMALL)
    batch = Batch(torch.tensor([[1, 40, 2, 1]]), torch.tensor([4]))
    with torch.no_grad():
        model.repeat_logit.fill_(1.0)
        neutral = model.eval().scores(batch, 0)[0]
        model.repeat_logit.fill_(-1.0)
        penalized = model.eval().scores(batch, 0)[0]
    others = torch.tensor([item not in (1, 2) for item in range(30)]) & ~model.trained.is_cold[:30]
    assert (penalized[~others] < neutral[~others] - 20)[:2].all()
    assert (penalized[others] > neutral[others]).all()


@pytest.mark.parametrize(("items", "low", "high"), [([1, 2, 3, 5, 6, 7], 0, 0.01), ([1, 2] * 3, 0.9, 1)])
def test_repeat_logit_learns_how_often_items_repeat(small, items, low, high):
    model = build(small, SMALL).train()
    optimizer = torch.optim.Adam([model.repeat_logit], lr=0.01)
    batch = Batch(torch.tensor([items]), torch.tensor([6]))
    with torch.no_grad():
        model.repeat_logit.zero_()
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    assert low <= model.log_seen_shares()[0].exp().item() <= high


@pytest.mark.parametrize("name", ["default", "odd", "paper"])
def test_states_do_not_depend_on_later_items(small, name):
    items = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 9, 8]])
    model = build(small, CONFIGS[name])
    if name == "paper":
        before, after = model.layers[-1][0](model.embeddings()[0][items])[0]
    else:
        before, after = model.encoders[-1](model.items.input_embeddings()[items])
    torch.testing.assert_close(before[:3], after[:3])
    assert (before[3:] - after[3:]).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_sequence_encoder_last_state_equals_the_last_of_all_states(blocks, gated):
    torch.manual_seed(0)
    encoder = SequenceEncoder(12, blocks, 2, 0.3, 9, gated=gated).eval()
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, lengths = torch.randn(4, 9, 12), torch.tensor([9, 1, 5, 8])
    state, attention = encoder.last_state(x, lengths)
    torch.testing.assert_close(state, encoder(x)[torch.arange(4), lengths - 1])
    torch.testing.assert_close(attention.sum(1), torch.ones(4))
    assert attention[1, 1:].abs().max() == 0
    assert encoder.last_state(x, torch.tensor([0, 1, 5, 8]))[1][0].abs().max() == 0


def test_gated_block_equals_its_formula():
    torch.manual_seed(0)
    block = PreNormBlock(12, 2, 0.3, gated=True).eval()
    x = torch.randn(3, 1, 12)  # attention to a single item is its value
    normed = block.norm1(x)
    value = block.qkv(normed).chunk(3, dim=2)[2]
    x1 = x + block.project(torch.nn.functional.silu(block.attention_gate(normed)) * value)
    z = block.norm2(x1)
    expected = x1 + block.outer(torch.nn.functional.silu(block.inner(z)) * block.inner_gate(z))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("num_interactions", "gated"), [(99_999, False), (100_000, True)])
def test_gates_depend_on_the_number_of_training_interactions(small, num_interactions, gated):
    features = load_item_features(small)
    counts = torch.zeros_like(features.train_counts)
    counts[0] = num_interactions
    features = replace(features, train_counts=counts)
    assert resolve_config(configure("hafvt"), features).gated is gated
    assert resolve_config(configure("hafvt", params={"gated": not gated}), features).gated is not gated


def test_modalities_without_features_are_refused(make_small):
    data = make_small(with_features=False)
    for config in (SMALL, CONFIGS["paper"]):
        with pytest.raises(HafvtError, match="no features image"):
            build(data, config.replace(modalities=("id", "image")))


def test_unmixed_learns_the_same_of_items_and_needs_ids(make_small):
    data = make_small(users=7, sizes=(30, 20))
    mixed, unmixed = build(data, SMALL), build(data, CONFIGS["unmixed"])
    assert (unmixed.modalities, unmixed.content_modalities) == (("id",), ("image", "title"))
    unmixed.items.load_state_dict(mixed.items.state_dict())
    torch.testing.assert_close(unmixed.items.input_embeddings(), mixed.items.input_embeddings())
    with pytest.raises(HafvtError, match='needs "id"'):
        build(data, CONFIGS["unmixed"].replace(modalities=("image", "title")))


def test_paper_config_has_the_published_values():
    assert (HafVtPaperConfig().width, HafVtPaperConfig().dropout) == (256, 0.3)
