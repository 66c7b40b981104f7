"""The three protocols: their negatives and tie rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import mean_mrr, summarize
from hafvt.evaluation.negatives import NUM_NEGATIVES, load_negatives
from hafvt.evaluation.protocols import PROTOCOLS
from hafvt.evaluation.results import read_description, read_notes, write_results
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.evaluate import evaluate
from hafvt.models.base import Model
from hafvt.training.train import train
from tests.conftest import write_small


class RuleScorer(Model):
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


def test_load_negatives_of_each_protocol_follow_its_rule(big):
    for split, positions in (("valid", big.valid), ("test", big.test)):
        with_replacement, unseen = (
            protocol_negatives(big, split, "c2dsr"),
            protocol_negatives(big, split, "sampled-unseen"),
        )
        assert with_replacement.shape == unseen.shape == (len(positions), NUM_NEGATIVES)
        for row, position in enumerate(positions):
            target = big.items[position]
            domain = next(d for d in big.domains if d.start <= target < d.stop)
            for drawn in (with_replacement[row], unseen[row]):
                assert (drawn >= domain.start).all()
                assert (drawn < domain.stop).all()
                assert target not in drawn
            start = big.offsets[big.users_at(position)]
            assert len(np.unique(unseen[row])) == NUM_NEGATIVES
            assert not np.isin(unseen[row], big.items[start:position]).any()
        assert (
            np.array([len(np.unique(row)) for row in with_replacement]) < NUM_NEGATIVES
        ).mean() > 0.9  # with replacement
        counts = np.bincount(with_replacement.ravel(), minlength=4000)
        assert counts[:1500].min() > 0
        assert counts[1500:].min() > 0


def test_load_negatives_after_the_first_call_reads_the_file_and_checks_it(big):
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
    with pytest.raises(HafvtError, match="does not exist: remove"):
        protocol_negatives(big, "test", "c2dsr")
    path.with_suffix(".json").unlink()
    assert (protocol_negatives(big, "test", "c2dsr") == first).all()


def test_sampled_unseen_in_a_small_domain_ranks_among_all_unseen_items(small):
    drawn = protocol_negatives(small, "test", "sampled-unseen")
    for row, position in enumerate(small.test):
        target = small.items[position]
        domain = next(d for d in small.domains if d.start <= target < d.stop)
        seen = small.items[small.offsets[small.users_at(position)] : position + 1]
        expected = set(range(domain.start, domain.stop)) - set(seen.tolist())
        assert set(drawn[row][drawn[row] >= 0].tolist()) == expected
        assert (drawn[row] >= 0).sum() == len(expected)
    half_ties, _ = rank_targets(
        [RuleScorer(small, torch.zeros(50))] * 2, small, "test", PROTOCOLS["sampled-unseen"]
    )
    assert (half_ties.candidates == 1 + (drawn >= 0).sum(1)).all()
    np.testing.assert_allclose(half_ties.ranks, (half_ties.candidates + 1) / 2)


def test_rank_targets_of_a_constant_scorer_is_perfect_by_c2dsrs_tie_rule_only(big):
    half_ties, by_protocol = rank_targets(
        [RuleScorer(big, torch.zeros(4000))] * 2, big, "test", PROTOCOLS["c2dsr"]
    )
    assert (by_protocol.ranks == 1).all()
    assert (half_ties.ranks == 500.5).all()
    assert summarize(half_ties, ["a", "b"])["overall"]["MRR"].value == pytest.approx(0.002, abs=1e-4)
    unseen, same = rank_targets(
        [RuleScorer(big, torch.zeros(4000))] * 2, big, "test", PROTOCOLS["sampled-unseen"]
    )
    assert (unseen.ranks == 500.5).all()
    assert (same.ranks == unseen.ranks).all()


def test_rank_targets_of_a_random_scorer_has_the_expected_metrics(big):
    torch.manual_seed(0)
    samples = {"MRR": [], "NDCG@5": [], "NDCG@10": []}
    for _ in range(12):  # 18,000 targets
        _, by_protocol = rank_targets([RuleScorer(big)] * 2, big, "test", PROTOCOLS["c2dsr"])
        for metric, figure in summarize(by_protocol, ["a", "b"], resamples=2)["overall"].items():
            if metric in samples:
                samples[metric].append(figure.value)
    n = 12 * len(big.test)
    for metric, expected, deviation in (
        ("MRR", 0.00749, 0.0405),
        ("NDCG@5", 0.00295, 0.0482),
        ("NDCG@10", 0.00454, 0.0525),
    ):
        assert np.mean(samples[metric]) == pytest.approx(expected, abs=4 * deviation / n**0.5), metric


def test_c2dsr_margin_favors_the_target_only_within_it(small):
    table = torch.linspace(0, 1, 50).double()
    half_ties, by_protocol = rank_targets([RuleScorer(small, table)] * 2, small, "test", PROTOCOLS["c2dsr"])
    drawn = protocol_negatives(small, "test", "c2dsr")
    target = small.items[small.test][:, None]
    np.testing.assert_array_equal(by_protocol.ranks, 1 + (drawn > target).sum(1))
    np.testing.assert_array_equal(half_ties.ranks, by_protocol.ranks)  # no two items score alike
    _, close = rank_targets([RuleScorer(small, table * 1e-5)] * 2, small, "test", PROTOCOLS["c2dsr"])
    assert (close.ranks == 1).all()


@pytest.mark.parametrize("protocol", ["full", "c2dsr", "sampled-unseen"])
def test_rank_targets_with_a_model_per_domain_ranks_each_by_its_own(small, protocol):
    torch.manual_seed(0)
    tables = [torch.rand(50), torch.rand(50)]
    models = [RuleScorer(small, table) for table in tables]
    both, _ = rank_targets(models, small, "test", PROTOCOLS[protocol])
    for number, model in enumerate(models):
        alone, _ = rank_targets([model] * 2, small, "test", PROTOCOLS[protocol])
        mine = alone.domains == number
        assert mine.any()
        np.testing.assert_array_equal(both.ranks[mine], alone.ranks[mine])
    np.testing.assert_array_equal(both.positions, small.test)


def test_train_by_c2dsr_keeps_a_checkpoint_per_domain(small, tmp_path):
    run = train("sasrec", small, tmp_path / "run", params={"width": 8}, epochs=12, protocol="c2dsr")
    best = run.manifest["best"]
    assert best["epochs"] == 12  # nothing stops early
    assert all(epoch in (5, 10, 12) for epoch in best["per_domain"]["epochs"])
    assert len(run.models) == 2
    evaluation = evaluate(run.folder, protocol="c2dsr", split="valid")
    for domain, mrr in zip(small.domains, best["per_domain"]["valid_mrrs"], strict=True):
        assert evaluation.results[domain.name]["MRR"].value == pytest.approx(mrr)
    evaluate(run.folder, protocol="sampled-unseen")
    assert (run.folder / "sampled-unseen" / "results.json").exists() or (
        run.folder / "test-sampled-unseen"
    ).exists()
    with pytest.raises(HafvtError, match="no protocol"):
        evaluate(run.folder, protocol="fair")  # type: ignore[arg-type]
    with pytest.raises(HafvtError, match="--candidates unseen needs --protocol full"):
        evaluate(run.folder, protocol="sampled-unseen", candidates="unseen")


def test_evaluate_by_c2dsr_warns_of_its_tie_rule(small, tmp_path):
    run = train("popularity", small, tmp_path / "run")
    evaluation = evaluate(run.folder, protocol="c2dsr")
    assert evaluation.tie_gain > 0.001  # items of equal count are ties
    assert "WARNING: c2dsr's tie rule raises a metric of popularity" in str(evaluation)
    assert "ties at half" in str(evaluation)
    assert "WARNING" not in str(evaluate(run.folder, protocol="sampled-unseen"))


def test_write_results_of_a_domain_of_one_item_leaves_its_targets_out_and_says_so(tmp_path):
    data = write_small(tmp_path / "data", sizes=(1, 9), with_features=False)
    protocol = PROTOCOLS["sampled-unseen"]
    ranks, _ = rank_targets([RuleScorer(data, torch.zeros(10))] * 2, data, "test", protocol)
    lone = int((ranks.candidates == 1).sum())
    assert lone > 0
    results = write_results(tmp_path, data, ranks, protocol)
    assert list(results) == ["d1"]
    assert mean_mrr(ranks) == pytest.approx(results["d1"]["MRR"].value)
    low, high = ranks.candidates[ranks.candidates > 1].min(), ranks.candidates.max()
    notes = [note for note in read_notes(tmp_path) if "repeats" not in note]
    assert notes == [
        f"d1: only {low} to {high} candidates per target, as the domain has no more unseen items",
        f"{lone} targets without another candidate are left out of the means",
    ]
    assert all(note in read_description(tmp_path) for note in read_notes(tmp_path))


def test_write_results_of_a_small_domain_says_how_many_candidates_there_are(tmp_path):
    data = write_small(tmp_path / "data", sizes=(2, 30), with_features=False)
    expected = {
        "sampled-unseen": "d0: only 2 candidates per target, as the domain has no more unseen items",
        "c2dsr": "d0: the 999 negatives of a target contain items several times, as the domain has 2 items",
    }
    for name, note in expected.items():
        ranks, _ = rank_targets([RuleScorer(data, torch.zeros(32))] * 2, data, "test", PROTOCOLS[name])
        write_results(tmp_path, data, ranks, PROTOCOLS[name])
        assert note in read_notes(tmp_path), name


def test_write_results_without_any_rival_has_no_metrics(tmp_path):
    data = write_small(tmp_path / "data", sizes=(1, 1), with_features=False)
    ranks, _ = rank_targets([RuleScorer(data, torch.zeros(2))] * 2, data, "test")
    assert write_results(tmp_path, data, ranks, PROTOCOLS["full"]) == {}
