"""Which users, random numbers and validation targets a process of a training has."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from hafvt.data.batches import Batch, TrainBatches
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.training.train import train
from hafvt.training.trainer import step_seed
from tests.training.conftest import SMALL_SASREC
from tests.training.test_train import read_log


@pytest.mark.parametrize(("batch_size", "num_processes"), [(4, 3), (2, 3), (7, 2)])
def test_train_batches_of_several_processes_share_each_batch(training_data, batch_size, num_processes):
    """Together the processes have the rows of one process; a process without rows gets no target."""

    def histories(batch: Batch) -> list[tuple[int, ...]]:
        lengths = batch.lengths.tolist()
        return [tuple(row[:n]) for row, n in zip(batch.items.tolist(), lengths, strict=True) if n > 1]

    single = TrainBatches(training_data, batch_size, 50, seed=0)
    parts = [
        TrainBatches(training_data, batch_size, 50, seed=0, process_index=n, num_processes=num_processes)
        for n in range(num_processes)
    ]
    assert {len(part) for part in parts} == {len(single)}
    for epoch in (0, 1):
        for batch, *shares in zip(single.epoch(epoch), *(p.epoch(epoch) for p in parts), strict=True):
            rows = [history for share in shares for history in histories(share)]
            assert sorted(rows) == sorted(histories(batch))
            assert all(len(share.items) > 0 for share in shares)


def test_step_seed_of_processes_and_steps_is_distinct():
    seeds = {step_seed(seed, step, process) for seed in (0, 1) for step in range(3) for process in range(2)}
    assert len(seeds) == 12
    assert step_seed(7, 5, 0) == (7 << 32) + 5


def test_train_with_validate_users_ranks_the_same_users_each_time(training_data, tmp_path):
    settings = {"params": SMALL_SASREC, "epochs": 2, "batch_size": 8, "validate_every": 1, "test": False}
    run = train("sasrec", training_data, tmp_path / "run", validate_users=12, **settings)
    ranks = [
        rank_targets(run.models, training_data, "valid", run.protocol, max_users=count).by_protocol
        for count in (12, 12, 1000)
    ]
    assert len(np.unique(ranks[0].users)) == 12
    assert ranks[0].users.tolist() == ranks[1].users.tolist()
    assert len(ranks[2].users) == len(training_data.valid)
    best = max(line["valid_mrr"] for line in read_log(run.folder))
    assert mean_mrr(ranks[0]) == pytest.approx(best)
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["validate_users"] == 12
    with pytest.raises(HafvtError, match=r"\(validate_users was 12\): resume with"):
        train("sasrec", training_data, tmp_path / "run", resume=True, **settings)
