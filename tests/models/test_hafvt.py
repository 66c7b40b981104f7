"""HAF-VT against the equations, and what no equation shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch, collate
from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures, Vectors, load_item_features, prepare_vectors
from hafvt.models.attention import SequenceEncoder
from hafvt.models.configs import HAFVT_PAPER, HAFVT_UNMIXED, HafVtConfig
from hafvt.models.hafvt import HafVt
from hafvt.models.item_tables import saved_similarity
from hafvt.ops.embedding import add_weighted_rows
from tests.reference import hafvt as reference

SMALL = HafVtConfig(id_width=10, content_width=6, dropout=0.0)
FLAT = SMALL.replace(blocks=0, repeats=False)
CONFIGS = {
    "default": SMALL,
    "paper": HAFVT_PAPER.replace(id_width=10, dropout=0.0),
    "apart": FLAT.replace(fused=False, new_items=3.0),
    "ids": FLAT.replace(modalities=("id",), lambda1=0.7),
    "weights": SMALL.replace(content_width=0, weights=(0.2, 0.5, 0.3), positions=False, blocks=0),
    "merged": SMALL.replace(content_width=0, hierarchy=False, repeats=False),
    "deep": SMALL.replace(id_width=9, blocks=2, fused=False),
    "literal mass": SMALL.replace(renormalized=False),
    "content": SMALL.replace(modalities=("image", "title"), positions=False),
    "unmixed": HAFVT_UNMIXED.replace(id_width=10, content_width=6, dropout=0.0),
    "unmixed, by attention": FLAT.replace(mixed=False),
}


def build(data, config: HafVtConfig, seed: int = 0) -> HafVt:
    torch.manual_seed(seed)
    model = HafVt(load_item_features(data), config)
    for name, p in model.named_parameters():
        if name == "come_back":
            torch.nn.init.constant_(p, -0.02)
        elif "ids" not in name:  # positions and mix start at 0, which would hide them from the test
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def arrays(model: HafVt):
    """The model's weights as the reference wants them."""
    f64 = lambda t: t.detach().double().numpy()  # noqa: E731
    flat = [{k: f64(v) for k, v in layer.state_dict().items()} for layer in model.heads or model.layers]
    count = len(model.modalities)
    layers = [flat[n : n + count] for n in range(0, len(flat), count)]
    absent = len(model.domains) + 1 - len(layers)
    items = model.items
    encoders = [{k: f64(v) for k, v in encoder.state_dict().items()} for encoder in model.encoders]
    width, blocks = model.config.id_width, model.config.blocks
    return {
        "domains": [(d.start, d.stop) for d in model.domains],
        "tables": [(f64(items.table(m)), f64(items.compared(m))) for m in range(count)],
        "layers": [None] * absent + layers,
        "encoders": (f64(items.entering()), [None] * absent + encoders, blocks, 1 + (width % 2 == 0))
        if encoders
        else None,
        "again": model.log_again()[0].exp().item() if model.config.repeats else 1.0,
        "weights": [None] * absent + list(f64(model.log_weights().exp())),
        "tau": model.config.temperature,
        "lambda1": model.config.lambda1,
        "lambda2": model.config.lambda2,
    }


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sizes", [(30, 20), (9, 7, 11), (25,)])
def test_loss_and_scores_are_the_equations(make_small, name, sizes):
    data = make_small(users=7, sizes=sizes)
    model = build(data, CONFIGS[name])
    numbers = arrays(model)
    histories = [list(data.items[a:b]) for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)]
    histories.append([0, 1, 2, 0])  # one domain alone
    flat = np.concatenate(histories).astype(np.int32)
    stops = np.cumsum([len(h) for h in histories])
    batch = collate(flat, stops - [len(h) for h in histories], stops)
    expected = reference.loss(histories, **numbers, met=~model.items.unmet.numpy())
    assert model.loss(batch).item() == pytest.approx(expected, abs=2e-5)
    seen = {
        "met": ~model.items.unmet.numpy(),
        "content": [name != "id" or model.items.fused for name in model.modalities],
        "new_items": model.config.new_items,
        "renormalized": model.config.renormalized,
    }
    assert not seen["met"].all()  # else nothing of what is special about them would be tested
    floor = 1e-30  # what has no probability at all
    for domain in range(len(sizes)):
        rows = [reference.scores(history, domain, **numbers, **seen) for history in histories]
        rows = np.log(np.maximum(rows, floor))
        found = model.scores(batch, domain).detach().numpy()
        np.testing.assert_allclose(found, rows, atol=1e-5)
    one = Batch(batch.items[-1:, :4], batch.lengths[-1:])  # batch of one, no padding
    expected = np.log(np.maximum(reference.scores(histories[-1], 0, **numbers, **seen), floor))
    np.testing.assert_allclose(model.scores(one, 0).detach().numpy()[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_candidates_score_as_in_the_whole(small, name):
    model = build(small, CONFIGS[name])
    batch = collate(small.items, small.offsets[:5], small.offsets[1:6])
    candidates = torch.randint(30, 50, (5, 8))
    whole = model.scores(batch, 1)
    torch.testing.assert_close(model.scores(batch, 1, candidates), whole.gather(1, candidates - 30))


def test_fused_ids_are_ids_and_projected_content(small):
    model = build(small, CONFIGS["default"])
    items = model.items
    counts = load_item_features(small).train_counts[:, None]
    ids, left = items.ids.weight * counts / (counts + 20), 20 / (counts + 20)
    left[items.unmet] = (left * counts).sum() / counts.sum()
    with torch.no_grad():
        for vectors in items.groups.values():
            vectors.normal_()
    expected = ids
    for name in ("image", "title"):
        expected = expected + getattr(items, f"frozen_{name}") @ items.project[name].weight.T
        over = items.links(f"near_{name}")
        assert over.rows.shape == (50, 10)
        assert not items.unmet[over.rows].any()
        expected = expected + left * (ids[over.rows] * over.weights[..., None]).sum(1)
        over, has = items.links(f"group_{name}"), load_item_features(small).vectors[name].present
        assert over.rows.shape == (50, 3)
        assert torch.equal(over.weights, has[:, None].expand(50, 3).float())
        expected = expected + left * has[:, None] * items.groups[name][over.rows].sum(1)
    torch.testing.assert_close(items.table(0), expected)
    added = [items.adds(name, torch.arange(50)) for name in ("image", "title")]
    torch.testing.assert_close(items.own() + sum(added), expected)
    with torch.inference_mode():
        assert items.table(0) is items.table(0)  # made once
        before = items.table(0)
    model.train()
    with torch.no_grad():
        items.ids.weight += 1
    with torch.inference_mode():
        assert not torch.equal(model.eval().items.table(0), before)


def test_items_that_are_never_met_get_no_gradient_and_push_nobody(make_small):
    small = make_small(users=7)
    for name in ("apart", "ids"):
        model = build(small, CONFIGS[name]).train()
        train = collate(small.items, small.offsets[:-1], small.offsets[:-1] + small.train_lengths)
        model.loss(train).backward()
        items = model.items
        assert items.unmet.any()
        assert items.ids.weight.grad[items.unmet].abs().max() == 0
        before = model.loss(train).item()
        with torch.no_grad():
            items.ids.weight[items.unmet] = 3.0
        assert model.loss(train).item() == before


def test_shares_sum_to_one_and_follow_the_lambdas(small):
    model = build(small, CONFIGS["default"])
    batch = collate(small.items, small.offsets[:5], small.offsets[1:6])
    shares = model.shares(batch, 0, torch.randint(0, 30, (5, 4)))
    assert shares.shape == (5, 4, 3, 3)
    torch.testing.assert_close(shares.sum((2, 3)), torch.ones(5, 4))
    alone = build(small, CONFIGS["default"].replace(lambda1=0.0, lambda2=0.0)).shares(
        batch, 0, torch.zeros(5, 1, dtype=torch.int64)
    )
    assert alone[:, :, 1:].abs().max() == 0


def test_the_merged_sequence_weighs_as_much_in_a_small_domain(make_small):
    data = make_small(sizes=(40, 9, 5))
    batch = Batch(torch.tensor([[1, 41, 50, 2]]), torch.tensor([4]))
    for name in ("ids", "content", "default"):
        model = build(data, CONFIGS[name].replace(lambda2=3.0))
        literal = build(data, model.config.replace(renormalized=False))
        left = []
        for domain in range(3):
            met = ~model.items.unmet[model.candidates(domain)]
            merged, before = (
                torch.stack(list(m.branches(batch, domain)))[-len(m.modalities) :, 0, met].detach()
                for m in (model, literal)
            )
            left.append(before.sum().item())
            if name == "ids":  # else what the history has is lowered after the sum
                assert merged.sum().item() == pytest.approx(3.0, rel=1e-4)
            ratio = merged / before  # the order of a branch's items stays
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)
        if name == "ids":
            assert sum(left) == pytest.approx(3.0, rel=1e-4)
            assert left[2] < left[0]


def test_an_unmet_items_share_is_its_contents(small):
    catalog = never_met(load_item_features(small), 4)
    torch.manual_seed(0)
    model = HafVt(catalog, CONFIGS["default"]).eval()
    with torch.no_grad():
        model.items.project["image"].weight.zero_()  # then pictures add nothing to the ids' vectors
        model.items.weights_near_image.zero_()
    batch, candidates = Batch(torch.tensor([[1, 40, 2]]), torch.tensor([3])), torch.tensor([[4, 5]])
    parts = torch.stack(list(model.branches(batch, 0, candidates)), 2)[0].unflatten(1, (3, 3))  # (C, S, M)
    parts = (parts / parts.sum((1, 2), keepdim=True)).detach()
    shares = model.shares(batch, 0, candidates)[0].detach()
    torch.testing.assert_close(shares[1], parts[1])
    assert shares[0, :, 0].abs().max() == 0
    torch.testing.assert_close(shares[0, :, 1], parts[0, :, 1])
    torch.testing.assert_close(shares[0, :, 2], parts[0, :, 0] + parts[0, :, 2])


def test_a_sequence_without_items_adds_nothing(small):
    model = build(small, CONFIGS["default"])
    own = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    parts = torch.stack(list(model.branches(own, 0)), 1).unflatten(1, (3, 3))
    assert parts[0, 1].abs().max() == 0  # no item of the other domain
    empty = Batch(torch.tensor([[0]]), torch.tensor([0]))
    assert len(model.scores(empty, 0).unique()) == 1


def test_attention_is_that_of_the_last_state_and_lies_on_the_merged_history(small):
    model = build(small, CONFIGS["apart"])
    batch = Batch(torch.tensor([[1, 40, 2, 3, 41, 0], [45, 46, 0, 0, 0, 0]]), torch.tensor([5, 2]))
    found = model.attention(batch)
    assert found.shape == (2, 3, 3, 6)
    torch.testing.assert_close(found[0].sum(2), torch.ones(3, 3))
    assert found[0, 0, :, [1, 4, 5]].abs().max() == 0  # items of the other domain
    assert found[1, 0].abs().max() == 0  # nothing of this domain
    weights = found[0, 2, 0, :5] @ model.items.ids(batch.items[0, :5])  # the merged ids' branch by hand
    layer = model.layers[6]
    value = layer.qkv.weight[20:], layer.qkv.bias[20:]
    shifted = found[0, 2, 0, :5] @ layer.positions[:5]
    by_hand = (weights + shifted) @ value[0].T + value[1] + layer.own(model.items.ids(batch.items[0, 4]))
    torch.testing.assert_close(layer(model.items.ids(batch.items[:1, :5]))[0, -1], by_hand)


def never_met(catalog: ItemFeatures, *items: int) -> ItemFeatures:
    """The catalog, had training met all items but these."""
    counts = torch.ones(len(catalog))
    counts[list(items)] = 0
    return replace(catalog, train_counts=counts)


def test_an_unmet_item_lends_its_ids_share_to_its_content(small):
    catalog = load_item_features(small)
    whole = {  # of all items: the mean that stands for an absent picture is one of those that were met
        name: Vectors(torch.where(has[:, None], rows, rows[has][0]), torch.ones(50, dtype=torch.bool))
        for name, (rows, has) in catalog.vectors.items()
    }
    catalog = replace(catalog, train_counts=torch.ones(50), vectors=whole)
    torch.manual_seed(0)
    whole = HafVt(catalog, CONFIGS["apart"].replace(content_width=0)).eval()
    torch.nn.init.normal_(whole.mix)
    some = HafVt(never_met(catalog, 4, 37), whole.config).eval()
    some.load_state_dict(whole.state_dict())
    batch = Batch(torch.tensor([[1, 40, 2]]), torch.tensor([3]))
    before, after = (
        torch.stack(list(m.branches(batch, 1)), 1)[0].unflatten(0, (3, 3)) for m in (whole, some)
    )
    assert after[:, 0, 7].abs().max() == 0
    gone = before[1, 0, 7] / whole.log_weights()[1, 0].exp()  # its probability by the id in its own domain
    torch.testing.assert_close(after[1, 0, :7], before[1, 0, :7] / (1 - gone))
    lift = whole.config.new_items / (1 - whole.log_weights().exp()[:, 0])
    expected = before[1, 2] / (1 - before[1, 2, 7] / whole.log_weights()[1, 2].exp())
    torch.testing.assert_close(after[1, 2, :7], expected[:7], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(after[1, 2, 7], lift[1] * expected[7], rtol=1e-4, atol=1e-8)
    shares = some.shares(batch, 1, torch.tensor([[37, 36]]))[0]
    torch.testing.assert_close(shares.sum((1, 2)), torch.ones(2))
    torch.testing.assert_close(shares[0], after[:, :, 7] / after[:, :, 7].sum())


def test_the_id_of_an_unmet_item_says_nothing_in_a_history_either(small):
    catalog = never_met(load_item_features(small), 3)
    ids = HafVt(catalog, CONFIGS["ids"]).eval()
    before = ids.scores(Batch(torch.tensor([[1, 3]]), torch.tensor([2])), 0).detach()
    assert before[0, 3] == before.min() == np.log(np.float32(1e-30))  # no probability at all
    with torch.no_grad():
        ids.items.ids.weight[3] += 1
    torch.testing.assert_close(ids.scores(Batch(torch.tensor([[1, 3]]), torch.tensor([2])), 0), before)


def test_a_domain_that_training_never_met_keeps_its_ids(small):
    counts = torch.ones(50)
    counts[30:] = 0
    assert not replace(load_item_features(small), train_counts=counts).is_cold.any()
    assert not replace(load_item_features(small), train_counts=torch.zeros(50)).is_cold.any()


def test_frozen_vectors_are_prepared_by_those_of_items_that_training_met(small):
    catalog = never_met(load_item_features(small), 5, 44)
    image = catalog.vectors["image"]
    changed = Vectors(image.rows.clone(), image.present)
    changed.rows[[5, 44]] = torch.nn.functional.normalize(torch.randn(2, 12), dim=1)
    here = torch.tensor([n not in (5, 44) for n in range(50)])
    for width in (0, 6):
        one, other = (prepare_vectors(vectors, catalog, width)[here] for vectors in (image, changed))
        assert torch.equal(one, other)


def test_padding_and_batch_mates_change_nothing(small):
    model = build(small, CONFIGS["default"])
    alone = collate(small.items, small.offsets[:1], small.offsets[1:2])
    accumulation_dtype = Batch(torch.nn.functional.pad(alone.items, (0, 9), value=17), alone.lengths)
    torch.testing.assert_close(model.scores(accumulation_dtype, 0), model.scores(alone, 0))
    both = collate(small.items, small.offsets[:9], small.offsets[1:10])
    torch.testing.assert_close(model.scores(both, 0)[:1], model.scores(alone, 0))
    torch.testing.assert_close(model.loss(accumulation_dtype), model.loss(alone))


def test_what_a_history_has_counts_less_and_the_others_more(small):
    model = build(small, CONFIGS["default"])
    batch = Batch(torch.tensor([[1, 40, 2, 1]]), torch.tensor([4]))
    with torch.no_grad():
        model.come_back.fill_(1.0)  # as often as any other
        as_ever = model.eval().scores(batch, 0)[0]
        model.come_back.fill_(-1.0)
        never = model.eval().scores(batch, 0)[0]
    others = torch.tensor([number not in (1, 2) for number in range(30)]) & ~model.items.unmet[:30]
    assert (never[~others] < as_ever[~others] - 20)[:2].all()
    assert (never[others] > as_ever[others]).all()
    one, two = CONFIGS["default"], CONFIGS["default"].replace(repeats=False)
    torch.manual_seed(0)
    with_it = HafVt(load_item_features(small), one).eval()
    without = HafVt(load_item_features(small), two).eval()
    without.load_state_dict({k: v for k, v in with_it.state_dict().items() if k != "come_back"})
    with torch.no_grad():
        with_it.come_back.fill_(1.0)
    torch.testing.assert_close(with_it.scores(batch, 0), without.scores(batch, 0))
    torch.testing.assert_close(with_it.loss(batch), without.loss(batch))


def test_how_often_people_come_back_is_learned(small):
    model = build(small, CONFIGS["default"].replace(repeats=True)).train()
    optimizer = torch.optim.Adam([model.come_back], lr=0.01)

    def learned(items: list[list[int]]) -> float:
        batch = Batch(torch.tensor(items), torch.tensor([len(row) for row in items]))
        with torch.no_grad():
            model.come_back.zero_()
        for _ in range(60):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
        return model.log_again()[0].exp().item()

    assert learned([[1, 2, 3, 5, 6, 7]]) < 0.01
    assert learned([[1, 2, 1, 2, 1, 2]]) > 0.9


def test_the_future_does_not_reach_a_state(small):
    items = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 9, 8]])
    for name in ("default", "weights", "deep"):
        model = build(small, CONFIGS[name])
        if model.encoders:
            states = model.encoders[-1](torch.nn.functional.embedding(items, model.items.entering()))
        else:
            states = model.layers[-3](model.items.history(0, items))  # of the ids of the merged sequence
        before, after = states
        torch.testing.assert_close(before[:3], after[:3])  # not equal: a row's place may change its last bit
        assert (before[3:] - after[3:]).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_last_state_of_an_encoder_is_the_last_of_all_states(blocks):
    torch.manual_seed(0)
    encoder = SequenceEncoder(12, blocks, 9, 9, 0.3).eval()
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, lengths = torch.randn(4, 9, 12), torch.tensor([9, 1, 5, 8])
    every = encoder(x)[torch.arange(4), lengths - 1]
    torch.testing.assert_close(encoder.last_state(x, lengths), every)
    weights = encoder.weights(x, lengths)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert weights[1, 1:].abs().max() == 0
    assert encoder.weights(x, torch.tensor([0, 1, 5, 8]))[0].abs().max() == 0


def test_branches_that_share_an_encoder_share_its_attention(small):
    model = build(small, CONFIGS["default"])
    batch = Batch(torch.tensor([[1, 40, 2, 3, 41, 0], [45, 46, 0, 0, 0, 0]]), torch.tensor([5, 2]))
    found = model.attention(batch)
    torch.testing.assert_close(found[0].sum(2), torch.ones(3, 3))
    assert found[0, 0, :, [1, 4, 5]].abs().max() == 0  # items of the other domain
    assert found[1, 0].abs().max() == 0
    assert torch.equal(found[:, :, 0], found[:, :, 2])
    assert not torch.equal(found[0, 2], found[0, 1])


def test_a_missing_picture_is_neither_favored_nor_hurt(small):
    catalog = load_item_features(small)
    rows = prepare_vectors(catalog.vectors["image"], catalog, 0)
    present = catalog.vectors["image"].present
    assert (~present).any()
    h = torch.nn.functional.normalize(torch.randn(4, rows.shape[1]), dim=1)
    for domain in catalog.domains:
        here = torch.arange(domain.start, domain.stop)
        similar = h @ rows[here].T
        missing = ~present[here]
        mean = similar[:, ~missing].mean(1, keepdim=True)
        torch.testing.assert_close(similar[:, missing], mean.expand(-1, int(missing.sum())))


def test_rotation_keeps_centred_similarity_when_wide_enough():
    random = torch.randn(50, 6)
    rows = torch.nn.functional.normalize(random, dim=1)
    catalog = ItemFeatures((reference_domain(50),), {}, torch.zeros(50))
    rotated = prepare_vectors(Vectors(rows, torch.ones(50, dtype=torch.bool)), catalog, 6)
    centerd = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    torch.testing.assert_close(rotated @ rotated.T, centerd @ centerd.T, atol=1e-5, rtol=1e-4)


def test_which_way_directions_point_is_not_left_to_the_processor(small, monkeypatch):
    catalog, eigh = load_item_features(small), torch.linalg.eigh
    before = prepare_vectors(catalog.vectors["title"], catalog, 4)

    def other_way(matrix):
        values, vectors = eigh(matrix)
        return values, vectors * (1 - 2 * (torch.arange(vectors.shape[1]) % 2))

    monkeypatch.setattr(torch.linalg, "eigh", other_way)
    torch.testing.assert_close(prepare_vectors(catalog.vectors["title"], catalog, 4), before)


def reference_domain(size: int):
    from hafvt.data.dataset import Domain

    return Domain("all", 0, size)


def test_unencoded_modalities_are_refused(make_small):
    data = make_small(with_features=False)
    with pytest.raises(HafvtError, match="image"):
        HafVt(load_item_features(data), HafVtConfig(modalities=("id", "image")))
    with pytest.raises(HafvtError, match="2 weights"):
        HafVt(load_item_features(data), HafVtConfig(modalities=("id",), weights=(0.5, 0.5)))


def test_unmixed_content_has_its_say_in_the_ids_alone(make_small):
    data = make_small(users=7, sizes=(30, 20))
    mixed, unmixed = build(data, SMALL), build(data, SMALL.replace(mixed=False))
    assert unmixed.modalities == ("id",)
    assert unmixed.items.content == ("image", "title")
    unmixed.items.load_state_dict(mixed.items.state_dict())  # nothing less is learned of items
    torch.testing.assert_close(unmixed.items.table(0), mixed.items.table(0))
    batch = collate(data.items, data.offsets[:5], data.offsets[1:6])
    assert unmixed.shares(batch, 0, torch.arange(9).expand(5, 9)).shape == (5, 9, 3, 1)
    for changes in ({"fused": False}, {"modalities": ("image", "title")}):
        with pytest.raises(HafvtError, match="mixed false leaves content without a say"):
            HafVt(load_item_features(data), SMALL.replace(mixed=False, **changes))


def test_the_paper_configuration_is_what_the_paper_says():
    assert (HAFVT_PAPER.id_width, HAFVT_PAPER.content_width, HAFVT_PAPER.dropout) == (256, 0, 0.3)
    assert (HAFVT_PAPER.temperature, HAFVT_PAPER.weights) == (1.0, "equal")
    assert not HAFVT_PAPER.renormalized
    assert (HAFVT_PAPER.blocks, HAFVT_PAPER.repeats) == (0, False)
    assert not HAFVT_PAPER.residual
    assert not HAFVT_PAPER.positions
    assert not HAFVT_PAPER.distances


@pytest.mark.parametrize("kind", ["near", "group"])
def test_links_are_those_of_the_weights(small, kind):
    made, opened = build(small, CONFIGS["default"]), build(small, CONFIGS["default"])
    state, key = made.state_dict(), f"items.rows_{kind}_title"
    rows = len(made.items.groups["title"]) if kind == "group" else 50
    state[key] = (state[key] + 1) % rows  # as another processor might have made them
    opened.load_state_dict(state)
    over = opened.items.links(f"{kind}_title")
    assert torch.equal(over.rows, state[key])
    table = torch.zeros(rows, 1, requires_grad=True)
    scale = torch.ones(50, 1)
    add_weighted_rows(
        torch.zeros(50, 1), table, over, scale
    ).sum().backward()  # along links back, of the new rows
    expected = torch.zeros(rows).index_add_(0, over.rows.flatten(), over.weights.flatten())
    torch.testing.assert_close(table.grad[:, 0], expected)
    if kind == "group":
        opened.items.entering().sum().backward()
        left = opened.items.left * over.weights
        expected = torch.zeros(rows).index_add_(0, over.rows.flatten(), left.flatten())
        torch.testing.assert_close(opened.items.groups["title"].grad[:, 0], expected)
    state[key] = state[key].clone()
    state[key][7, 1] = rows
    with pytest.raises(HafvtError, match=f"a link leads to row {rows} of {rows}: the weights are damaged"):
        opened.load_state_dict(state)


def fewer_and_more(small):
    """Returns a catalog without item 4, one with it, never met, and the numbers in it of the others."""
    catalog = never_met(load_item_features(small), 4)  # it stands for an item that is added
    numbers = torch.arange(len(catalog))
    numbers = numbers[numbers != 4]
    domains = (replace(small.domains[0], stop=29), replace(small.domains[1], start=29, stop=49))
    vectors = {name: type(v)(v.rows[numbers], v.present[numbers]) for name, v in catalog.vectors.items()}
    fewer = replace(catalog, domains=domains, train_counts=catalog.train_counts[numbers], vectors=vectors)
    return fewer, catalog, numbers


def test_items_that_come_later_are_linked_and_the_others_stay(small):
    fewer, more, numbers = fewer_and_more(small)
    fresh = HafVt(more, CONFIGS["default"]).items
    old = HafVt(fewer, CONFIGS["default"]).eval()
    changed = old.state_dict()
    for kind in ("group", "near"):
        key = f"items.rows_{kind}_title"
        changed[key] = old.items.links(f"{kind}_title").rows.flip(0)
    old.load_state_dict(changed)
    with_added_items = old.extend_catalog(more, numbers).items
    in_groups = with_added_items.links("group_title").rows
    assert torch.equal(in_groups[numbers], changed["items.rows_group_title"])
    assert 0 <= in_groups[4].min() <= in_groups[4].max() < len(old.items.groups["title"])
    assert in_groups.shape == (50, 3)
    near = with_added_items.links("near_title")
    assert torch.equal(near.rows[numbers], numbers[changed["items.rows_near_title"]])
    assert torch.equal(near.rows[4], fresh.links("near_title").rows[4])
    assert torch.equal(near.weights, fresh.links("near_title").weights)


def test_links_that_are_known_are_not_sought(small, monkeypatch):
    made = build(small, CONFIGS["default"])
    kept = saved_similarity(made.items.state_dict())
    monkeypatch.setattr("hafvt.features.similarity.nearest_neighbors", None)
    monkeypatch.setattr("hafvt.features.similarity.cluster_items", None)
    again = HafVt(replace(load_item_features(small), similar_items=kept), made.config)
    for name in ("near_title", "group_image"):
        assert all(
            torch.equal(a, b) for a, b in zip(made.items.links(name), again.items.links(name), strict=True)
        )
    title = kept["title"]
    for wrong in (
        title._replace(neighbors=title.neighbors[1:]),
        title._replace(neighbors=title.neighbors.float()),
        title._replace(neighbor_weights=title.neighbor_weights[:, 1:]),
        title._replace(clusters=title.clusters[:, :0]),
        title._replace(clusters=title.clusters[:, 0]),
    ):
        with pytest.raises(HafvtError, match="do not fit these items"):
            HafVt(replace(load_item_features(small), similar_items=kept | {"title": wrong}), made.config)
