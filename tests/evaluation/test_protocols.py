"""The three protocols: negatives, rules for ties, what may not change a figure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.dataset import write_dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import summarize
from hafvt.evaluation.negatives import NUM_NEGATIVES, load_negatives
from hafvt.evaluation.protocols import PROTOCOLS
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.evaluate import evaluate
from hafvt.features.item_features import load_item_features
from hafvt.models.base import Model
from hafvt.training.train import train


class Scorer(Model):
    """Scores by a rule of user-free numbers: a table over items, or noise."""

    max_length = 50

    def __init__(self, data, table=None):
        super().__init__()
        self.data, self.table = data, table

    def loss(self, batch):
        raise NotImplementedError

    def scores(self, batch, domain, candidates=None):
        part = self.data.domains[domain]
        if candidates is None:
            candidates = torch.arange(part.start, part.stop).expand(len(batch.items), -1)
        return torch.rand(candidates.shape) if self.table is None else self.table[candidates]


def protocol_negatives(data, split, name):
    """Returns the negatives of a protocol."""
    return load_negatives(data, split, name, PROTOCOLS[name].draw_negatives)


@pytest.fixture
def big(make_small):
    """Two domains that have more than 999 items."""
    return make_small(sizes=(1500, 2500), users=1500, with_features=False)


def test_negatives_are_the_protocols(big):
    for split, positions in (("valid", big.valid), ("test", big.test)):
        loose, strict = (
            protocol_negatives(big, split, "c2dsr"),
            protocol_negatives(big, split, "sampled-unseen"),
        )
        assert loose.shape == strict.shape == (len(positions), NUM_NEGATIVES)
        for row, position in enumerate(positions):
            target = big.items[position]
            domain = next(d for d in big.domains if d.start <= target < d.stop)
            for drawn in (loose[row], strict[row]):
                assert (drawn >= domain.start).all()
                assert (drawn < domain.stop).all()
                assert target not in drawn
            start = big.offsets[big.users_at(position)]
            assert len(np.unique(strict[row])) == NUM_NEGATIVES
            assert not np.isin(strict[row], big.items[start:position]).any()
        assert (
            np.array([len(np.unique(row)) for row in loose]) < NUM_NEGATIVES
        ).mean() > 0.9  # with replacement
        counts = np.bincount(loose.ravel(), minlength=4000)
        assert counts[:1500].min() > 0
        assert counts[1500:].min() > 0


def test_negatives_are_drawn_once_and_a_change_of_them_is_seen(big):
    first = np.array(protocol_negatives(big, "test", "c2dsr"))
    path = big.folder / "negatives" / "c2dsr-test.npy"
    written = path.stat().st_mtime_ns
    assert (protocol_negatives(big, "test", "c2dsr") == first).all()
    assert path.stat().st_mtime_ns == written
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(HafvtError, match="is damaged"):
        protocol_negatives(big, "test", "c2dsr")
    path.unlink()
    with pytest.raises(HafvtError, match="is damaged"):
        protocol_negatives(big, "test", "c2dsr")
    path.with_suffix(".json").unlink()
    assert (protocol_negatives(big, "test", "c2dsr") == first).all()


def test_a_small_domain_has_fewer_strict_negatives(small):
    drawn = protocol_negatives(small, "test", "sampled-unseen")
    for row, position in enumerate(small.test):
        target = small.items[position]
        domain = next(d for d in small.domains if d.start <= target < d.stop)
        seen = small.items[small.offsets[small.users_at(position)] : position + 1]
        expected = set(range(domain.start, domain.stop)) - set(seen.tolist())
        assert set(drawn[row][drawn[row] >= 0].tolist()) == expected
        assert (drawn[row] >= 0).sum() == len(expected)
    half, _ = rank_targets([Scorer(small, torch.zeros(50))] * 2, small, "test", PROTOCOLS["sampled-unseen"])
    assert (half.candidates == 1 + (drawn >= 0).sum(1)).all()
    np.testing.assert_allclose(half.ranks, (half.candidates + 1) / 2)


def test_a_constant_scorer_is_perfect_by_c2dsrs_rule_alone(big):
    half, own = rank_targets([Scorer(big, torch.zeros(4000))] * 2, big, "test", PROTOCOLS["c2dsr"])
    assert (own.ranks == 1).all()
    assert (half.ranks == 500.5).all()
    assert summarize(half, ["a", "b"])["overall"]["MRR"].value == pytest.approx(0.002, abs=1e-4)
    strict, same = rank_targets(
        [Scorer(big, torch.zeros(4000))] * 2, big, "test", PROTOCOLS["sampled-unseen"]
    )
    assert (strict.ranks == 500.5).all()
    assert (same.ranks == strict.ranks).all()


def test_a_random_scorer_has_the_known_figures(big):
    torch.manual_seed(0)
    found = {"MRR": [], "NDCG@5": [], "NDCG@10": []}
    for _ in range(12):  # 18,000 targets
        _, own = rank_targets([Scorer(big)] * 2, big, "test", PROTOCOLS["c2dsr"])
        for metric, figure in summarize(own, ["a", "b"], resamples=2)["overall"].items():
            if metric in found:
                found[metric].append(figure.value)
    n = 12 * len(big.test)
    for metric, expected, deviation in (
        ("MRR", 0.00749, 0.0405),
        ("NDCG@5", 0.00295, 0.0482),
        ("NDCG@10", 0.00454, 0.0525),
    ):
        assert np.mean(found[metric]) == pytest.approx(expected, abs=4 * deviation / n**0.5), metric


def test_the_margin_counts_for_the_target_only_within_it(small):
    table = torch.linspace(0, 1, 50).double()
    half, own = rank_targets([Scorer(small, table)] * 2, small, "test", PROTOCOLS["c2dsr"])
    drawn = protocol_negatives(small, "test", "c2dsr")
    target = small.items[small.test][:, None]
    np.testing.assert_array_equal(own.ranks, 1 + (drawn > target).sum(1))
    np.testing.assert_array_equal(half.ranks, own.ranks)  # no two items score alike
    _, close = rank_targets([Scorer(small, table * 1e-5)] * 2, small, "test", PROTOCOLS["c2dsr"])
    assert (close.ranks == 1).all()


@pytest.mark.parametrize("protocol", ["full", "c2dsr", "sampled-unseen"])
def test_each_domain_is_ranked_by_its_own_model(small, protocol):
    torch.manual_seed(0)
    tables = [torch.rand(50), torch.rand(50)]
    models = [Scorer(small, table) for table in tables]
    both, _ = rank_targets(models, small, "test", PROTOCOLS[protocol])
    for number, model in enumerate(models):
        alone, _ = rank_targets([model] * 2, small, "test", PROTOCOLS[protocol])
        mine = alone.domains == number
        assert mine.any()
        np.testing.assert_array_equal(both.ranks[mine], alone.ranks[mine])
    np.testing.assert_array_equal(both.positions, small.test)


def test_training_and_evaluating_by_c2dsrs_protocol(small, tmp_path):
    run = train("sasrec", small, tmp_path / "run", params={"width": 8}, epochs=12, protocol="c2dsr")
    best = run.about["best"]
    assert best["epochs"] == 12  # nothing stops early
    assert all(epoch in (5, 10, 12) for epoch in best["per_domain"]["epochs"])
    assert len(run.models) == 2
    found = evaluate(run.folder, protocol="c2dsr", split="valid")
    for domain, mrr in zip(small.domains, best["per_domain"]["valid_mrrs"], strict=True):
        assert found.results[domain.name]["MRR"].value == pytest.approx(mrr)
    evaluate(run.folder, protocol="sampled-unseen")
    assert (run.folder / "sampled-unseen" / "results.json").exists() or (
        run.folder / "test-sampled-unseen"
    ).exists()
    with pytest.raises(HafvtError, match="no protocol"):
        evaluate(run.folder, protocol="fair")  # type: ignore[arg-type]
    with pytest.raises(HafvtError, match="--exclude-seen"):
        evaluate(run.folder, protocol="sampled-unseen", exclude_seen=True)


def test_flattery_is_told(small, tmp_path):
    run = train("popularity", small, tmp_path / "run")
    found = evaluate(run.folder, protocol="c2dsr")
    assert found.tie_gain > 0.001  # items of equal count are ties
    assert "WARNING: c2dsr's tie rule raises a metric of popularity" in str(found)
    assert "ties at half" in str(found)
    assert "WARNING" not in str(evaluate(run.folder, protocol="sampled-unseen"))


MODELS = {
    "hafvt": {"id_width": 8, "content_width": 6},
    "hafvt ids": {"id_width": 8, "modalities": ("id",)},
    "gru4rec": {"width": 8},
    "sasrec": {"width": 8, "heads": 2},
    "srgnn": {"width": 8},
    "pinet": {"width": 8},
    "psjnet": {"width": 8},
    "mifn": {"width": 8},
    "tricdr": {"width": 8, "pretrain_steps": 2},
    "c2dsr": {"width": 8},
    "popularity": {},
}


def relabeled(data, folder, items, users):
    """Writes the same histories with items and users numbered otherwise; features follow the items."""
    order = np.argsort(users)  # the old user of each new one
    lengths = np.diff(data.offsets)[order]
    offsets = np.concatenate([[0], lengths.cumsum()])
    old = np.concatenate([np.arange(data.offsets[u], data.offsets[u + 1]) for u in order])
    where = np.empty(len(old), dtype=np.int64)
    where[old] = np.arange(len(old))
    made = write_dataset(
        folder,
        domains=list(data.domains),
        item_table=data.item_table[np.argsort(items)],
        user_ids=data.user_ids[order],
        items=items[data.items[old]],
        times=data.times[old],
        offsets=offsets,
        train_lengths=data.train_lengths[order],
        valid=np.sort(where[data.valid]),
        test=np.sort(where[data.test]),
    )
    return made, old


def with_model(name, data, folder):
    """Trains an epoch, then draws weights so large that no two scores are within rounding of each other."""
    model = train(name.split()[0], data, folder, params=MODELS[name], epochs=1).model
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def carried(model, made, items):
    """Returns a model over other numbers of the items: every row of a table of the catalog moves along."""
    if model.uses_relations:  # links hold numbers of items: they are read anew
        fresh = type(model)(load_item_features(made, (), relations=True), model.config).eval()
        for new, old in zip(fresh.parameters(), model.parameters(), strict=True):
            new.data = old.data.clone()
        model = fresh
    size, back = made.domains[-1].stop, np.argsort(items)
    orders = {size: back, **{len(d): back[d.start : d.stop] - d.start for d in made.domains}}
    for tensor in [*model.parameters(), *([] if model.uses_relations else model.buffers())]:
        if tensor.ndim and tensor.shape[0] in orders:
            tensor.data = tensor.data[orders[tensor.shape[0]]]
    for name, tensor in model.named_buffers():
        if ".rows_near_" in name:  # of whom it holds the numbers
            tensor.data = torch.from_numpy(items)[tensor.data].long()
    return model


@pytest.mark.parametrize("protocol", ["full", "sampled-unseen"])
@pytest.mark.parametrize("name", MODELS)
def test_numbers_of_items_and_users_change_nothing(make_small, tmp_path, name, protocol):
    random = np.random.default_rng(3)
    small = make_small(sizes=(31, 21))  # no other table of a model has 31, 21 or 52 rows
    model = with_model(name, small, tmp_path / "run")
    half, _ = rank_targets([model] * 2, small, "test", PROTOCOLS["full"])
    items = np.concatenate([d.start + random.permutation(len(d)) for d in small.domains]).astype(np.int32)
    made, old = relabeled(small, tmp_path / "made", items, random.permutation(small.num_users))
    model = carried(model, made, items)
    again, _ = rank_targets([model] * 2, made, "test", PROTOCOLS["full"])
    places = np.searchsorted(small.test, old[made.test])
    np.testing.assert_allclose(again.ranks, half.ranks[places], atol=1e-6)
    if protocol == "sampled-unseen":  # small domains: all that was never met is among the negatives
        again, _ = rank_targets([model] * 2, made, "test", PROTOCOLS["sampled-unseen"])
        model = carried(model, small, np.argsort(items))
        half, _ = rank_targets([model] * 2, small, "test", PROTOCOLS["sampled-unseen"])
        np.testing.assert_allclose(again.ranks, half.ranks[places], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_company_in_a_batch_change_nothing(small, tmp_path, name, monkeypatch):
    model = with_model(name, small, tmp_path / "run")
    half, _ = rank_targets([model] * 2, small, "test")
    monkeypatch.setattr("hafvt.evaluation.target_ranking.MAX_SCORES", 1)  # sixteen to a batch
    small_batches, _ = rank_targets([model] * 2, small, "test")
    np.testing.assert_allclose(small_batches.ranks, half.ranks, atol=1e-6)
    from hafvt.data import batches

    collate = batches.collate

    def padded(items, starts, stops):
        batch = collate(items, starts, stops)
        return batches.Batch(torch.nn.functional.pad(batch.items, (0, 3), value=7), batch.lengths)

    monkeypatch.setattr("hafvt.data.batches.collate", padded)
    accumulation_dtype, _ = rank_targets([model] * 2, small, "test")
    np.testing.assert_allclose(accumulation_dtype.ranks, half.ranks, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("protocol", ["full", "c2dsr", "sampled-unseen"])
def test_what_comes_after_a_target_changes_nothing_at_all(make_small, tmp_path, name, protocol):
    data = make_small()
    model = with_model(name, data, tmp_path / "run")
    before, _ = rank_targets([model] * 2, data, "valid", PROTOCOLS[protocol])
    # What follows each validation target, the test target, becomes another item.
    changed = np.array(data.items)
    for position in data.test:
        domain = next(d for d in data.domains if d.start <= changed[position] < d.stop)
        changed[position] = domain.start + (changed[position] - domain.start + 5) % len(domain)
    np.save(data.folder / "items.npy", changed)
    after, _ = rank_targets([model] * 2, type(data).open(data.folder), "valid", PROTOCOLS[protocol])
    assert (after.ranks == before.ranks).all()
