"""HAF-VT and its literal equations against the numpy reference, and properties that no equation shows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch, collate
from hafvt.errors import HafvtError
from hafvt.features.clusters import complete_clusters, renumber_items
from hafvt.features.item_features import (
    ItemClusters,
    ItemFeatures,
    Vectors,
    load_item_features,
    prepare_vectors,
)
from hafvt.models import build_model, configure
from hafvt.models.blocks import SequenceEncoder
from hafvt.models.configs import HafVtConfig, HafVtPaperConfig
from hafvt.models.hafvt import HafVt
from hafvt.models.item_embeddings import saved_clusters
from hafvt.ops.embedding import add_weighted_rows
from tests.reference import hafvt as reference

SMALL = HafVtConfig(id_width=10, dropout=0.0)
CONFIGS = {
    "default": SMALL,
    "unmixed": configure("hafvt", "unmixed").replace(id_width=10, dropout=0.0),
    "ids": SMALL.replace(modalities=("id",)),
    "content": SMALL.replace(modalities=("image", "title"), cold_item_boost=3.0),
    "merged": SMALL.replace(hierarchy=False),
    "odd": SMALL.replace(id_width=9, blocks=3, cluster_sizes=()),
    "own ids": SMALL.replace(id_shrinkage=0.0),
    "paper": HafVtPaperConfig(width=10, dropout=0.0),
    "paper, ids": HafVtPaperConfig(width=10, dropout=0.0, modalities=("id",), lambda1=0.7),
}
OURS = [name for name in CONFIGS if "paper" not in name]


@pytest.fixture(autouse=True)
def few_directions(monkeypatch):
    """Reduces frozen vectors as large catalogs do: they are 12 and 8 wide here."""
    for module in ("item_embeddings", "hafvt"):
        monkeypatch.setattr(f"hafvt.models.{module}.CONTENT_WIDTH", 6)


def build(data, config, seed: int = 0, item_features: ItemFeatures | None = None):
    """Returns a model in evaluation mode whose parameters all differ from zero."""
    torch.manual_seed(seed)
    name = "hafvt-paper" if isinstance(config, HafVtPaperConfig) else "hafvt"
    model = build_model(name, item_features or load_item_features(data), config)
    for key, p in model.named_parameters():
        if key == "repeat_logit":
            torch.nn.init.constant_(p, -0.02)
        elif "ids" not in key:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


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
        links = items.links(name)
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


def without_interactions(item_features: ItemFeatures, *items: int) -> ItemFeatures:
    """Returns the features with one training interaction of every item but these."""
    counts = torch.ones(len(item_features))
    counts[list(items)] = 0
    return replace(item_features, train_counts=counts)


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


@pytest.mark.parametrize("blocks", [1, 3])
def test_sequence_encoder_last_state_equals_the_last_of_all_states(blocks):
    torch.manual_seed(0)
    encoder = SequenceEncoder(12, blocks, 2, 0.3, 9).eval()
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, lengths = torch.randn(4, 9, 12), torch.tensor([9, 1, 5, 8])
    state, attention = encoder.last_state(x, lengths)
    torch.testing.assert_close(state, encoder(x)[torch.arange(4), lengths - 1])
    torch.testing.assert_close(attention.sum(1), torch.ones(4))
    assert attention[1, 1:].abs().max() == 0
    assert encoder.last_state(x, torch.tensor([0, 1, 5, 8]))[1][0].abs().max() == 0


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


def test_loading_weights_takes_their_clusters(small):
    model, opened = build(small, SMALL), build(small, SMALL)
    state, key = model.state_dict(), "items.cluster_rows_title"
    count = len(state["items.clusters.title"])
    state[key] = (state[key] + 1) % count  # as another processor might have found them
    opened.load_state_dict(state)
    links = opened.items.links("title")
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
    links = extended.items.links("title")
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
    for a, b in zip(model.items.links("title"), opened.items.links("title"), strict=True):
        assert torch.equal(a, b)
    wrong = saved | {"title": saved["title"]._replace(cluster_rows=saved["title"].cluster_rows[1:])}
    with pytest.raises(HafvtError, match="do not fit these items"):
        build(small, SMALL, item_features=replace(features, clusters=wrong))
    with pytest.raises(HafvtError, match="no clusters by image"):
        HafVt(features, SMALL)


def test_is_cold_in_a_domain_without_training_is_false(small):
    counts = torch.ones(50)
    counts[30:] = 0
    assert not replace(load_item_features(small), train_counts=counts).is_cold.any()
    assert not replace(load_item_features(small), train_counts=torch.zeros(50)).is_cold.any()


@pytest.mark.parametrize("width", [0, 6])
def test_prepare_vectors_with_other_cold_items_is_equal_for_trained_items(small, width):
    features = without_interactions(load_item_features(small), 5, 44)
    image = features.vectors["image"]
    changed = Vectors(image.rows.clone(), image.present)
    changed.rows[[5, 44]] = torch.nn.functional.normalize(torch.randn(2, 12), dim=1)
    trained = features.is_trained
    before, after = (prepare_vectors(vectors, features, width)[trained] for vectors in (image, changed))
    assert torch.equal(before, after)


def test_prepare_vectors_of_missing_pictures_have_the_mean_similarity(small):
    features = load_item_features(small)
    rows = prepare_vectors(features.vectors["image"], features, 0)
    present = features.vectors["image"].present
    assert (~present).any()
    h = torch.nn.functional.normalize(torch.randn(4, rows.shape[1]), dim=1)
    for domain in features.domains:
        items = torch.arange(domain.start, domain.stop)
        similarity, missing = h @ rows[items].T, ~present[items]
        mean = similarity[:, ~missing].mean(1, keepdim=True)
        torch.testing.assert_close(similarity[:, missing], mean.expand(-1, int(missing.sum())))


def test_prepare_vectors_with_enough_directions_keeps_centered_similarity(small):
    rows = torch.nn.functional.normalize(torch.randn(50, 6), dim=1)
    features = replace(load_item_features(small, ()), train_counts=torch.ones(50))
    rotated = prepare_vectors(Vectors(rows, torch.ones(50, dtype=torch.bool)), features, 6)
    centered = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    torch.testing.assert_close(rotated @ rotated.T, centered @ centered.T, atol=1e-5, rtol=1e-4)


def test_prepare_vectors_does_not_depend_on_the_sign_of_eigenvectors(small, monkeypatch):
    features, eigh = load_item_features(small), torch.linalg.eigh
    before = prepare_vectors(features.vectors["title"], features, 4)

    def flipped(matrix):
        values, vectors = eigh(matrix)
        return values, vectors * (1 - 2 * (torch.arange(vectors.shape[1]) % 2))

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    torch.testing.assert_close(prepare_vectors(features.vectors["title"], features, 4), before)
