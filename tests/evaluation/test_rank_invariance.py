"""What may not change a rank: numbers of items and users, padding, other rows of a batch, later items."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from hafvt.data import batches
from hafvt.data.dataset import write_dataset
from hafvt.evaluation.protocols import PROTOCOLS
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.features.item_features import load_item_features
from hafvt.models import build_model, configure, resolve_config
from hafvt.training.run import model_item_features
from tests.conftest import SMALL_PARAMS, write_small

MODEL_PARAMS = {**SMALL_PARAMS, "hafvt ids": {"id_width": 8, "modalities": ("id",)}}


@pytest.fixture(scope="module")
def ranked_data(tmp_path_factory):
    """Returns a dataset whose numbers of items, 31, 21 and 52, are the size of no other table of a model."""
    return write_small(tmp_path_factory.mktemp("ranked") / "data", sizes=(31, 21))


@pytest.fixture(scope="module", params=MODEL_PARAMS)
def random_model(request, ranked_data):
    """Returns a model with weights so large that no two scores are within rounding of each other."""
    name = request.param.split()[0]
    config = configure(name, "default", MODEL_PARAMS[request.param])
    item_features = model_item_features(ranked_data, name, config)
    model = build_model(name, item_features, resolve_config(config, item_features)).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def relabel(data, folder, items, users):
    """Writes the same histories with other numbers of items and users.

    Returns:
        The dataset, and the former position of each interaction.
    """
    order = np.argsort(users)  # the former user of each new one
    lengths = np.diff(data.offsets)[order]
    offsets = np.concatenate([[0], lengths.cumsum()])
    former = np.concatenate([np.arange(data.offsets[u], data.offsets[u + 1]) for u in order])
    positions = np.empty(len(former), dtype=np.int64)
    positions[former] = np.arange(len(former))
    relabeled = write_dataset(
        folder,
        domains=list(data.domains),
        item_table=data.item_table[np.argsort(items)],
        user_ids=data.user_ids[order],
        items=items[data.items[former]],
        times=data.times[former],
        offsets=offsets,
        train_lengths=data.train_lengths[order],
        valid=np.sort(positions[data.valid]),
        test=np.sort(positions[data.test]),
    )
    return relabeled, former


def relabel_model(model, data, items):
    """Returns a copy of a model over other numbers of the items: every row of an item table moves along."""
    uses_data = model.uses_relations or model.uses_interactions
    if uses_data:  # they contain numbers of items: they are read from the relabeled data
        item_features = load_item_features(data, (), relations=True, interactions=True)
        fresh = type(model)(item_features, model.config).eval()
        for new, former in zip(fresh.parameters(), model.parameters(), strict=True):
            new.data = former.data.clone()
        model = fresh
    model = copy.deepcopy(model)
    size, former = data.domains[-1].stop, np.argsort(items)
    orders = {size: former, **{len(d): former[d.start : d.stop] - d.start for d in data.domains}}
    for tensor in [*model.parameters(), *([] if uses_data else model.buffers())]:
        if tensor.ndim and tensor.shape[0] in orders:
            tensor.data = tensor.data[orders[tensor.shape[0]]]
    return model


def test_rank_targets_with_other_numbers_of_items_and_users_is_equal(ranked_data, random_model, tmp_path):
    random = np.random.default_rng(3)
    items = [domain.start + random.permutation(len(domain)) for domain in ranked_data.domains]
    items = np.concatenate(items).astype(np.int32)
    users = random.permutation(ranked_data.num_users)
    relabeled, former = relabel(ranked_data, tmp_path / "relabeled", items, users)
    rows = np.searchsorted(ranked_data.test, former[relabeled.test])
    model = relabel_model(random_model, relabeled, items)
    for name in ("full", "sampled-unseen"):  # small domains: all unseen items are negatives
        expected = rank_targets([random_model] * 2, ranked_data, "test", PROTOCOLS[name]).half_ties
        ranks = rank_targets([model] * 2, relabeled, "test", PROTOCOLS[name]).half_ties
        np.testing.assert_allclose(ranks.ranks, expected.ranks[rows], atol=1e-6)


def test_rank_targets_with_other_batches_and_padding_is_equal(ranked_data, random_model, monkeypatch):
    expected = rank_targets([random_model] * 2, ranked_data, "test").half_ties.ranks
    monkeypatch.setattr("hafvt.evaluation.target_ranking.MAX_SCORES", 1)  # sixteen to a batch
    small_batches = rank_targets([random_model] * 2, ranked_data, "test").half_ties.ranks
    np.testing.assert_allclose(small_batches, expected, atol=1e-6)
    collate = batches.collate

    def collate_with_padding(items, starts, stops):
        batch = collate(items, starts, stops)
        return batches.Batch(torch.nn.functional.pad(batch.items, (0, 3), value=7), batch.lengths)

    monkeypatch.setattr("hafvt.data.batches.collate", collate_with_padding)
    padded = rank_targets([random_model] * 2, ranked_data, "test").half_ties.ranks
    np.testing.assert_allclose(padded, expected, atol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_rank_targets_with_other_later_items_is_identical(ranked_data, random_model, protocol):
    before = rank_targets([random_model] * 2, ranked_data, "valid", protocol).half_ties
    items = np.array(ranked_data.items)
    for position in ranked_data.test:  # what follows each validation target
        domain = ranked_data.domains[int(ranked_data.domains_of(items[position]))]
        items[position] = domain.start + (items[position] - domain.start + 5) % len(domain)
    changed = replace(ranked_data, items=items)
    after = rank_targets([random_model] * 2, changed, "valid", protocol).half_ties
    assert (after.ranks == before.ranks).all()
