"""Trains each case for some steps in one of several processes, and writes losses and gradients.

    torchrun --nproc-per-node N -m tests.training.distributed_worker DATA OUT

OUT/N.json holds the losses by case, OUT/N-CASE.safetensors the gradients of the first step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hafvt.data.batches import Batch, TrainBatches
from hafvt.data.dataset import Dataset
from hafvt.evaluation.protocols import FULL
from hafvt.models import build_model, configure, resolve_config
from hafvt.ops.collectives import process_group
from hafvt.ops.shards import Shard, iter_table
from hafvt.processes import num_processes, process_index
from hafvt.training.config import TrainingConfig
from hafvt.training.run import model_item_features
from hafvt.training.trainer import Trainer
from tests.conftest import SMALL_PARAMS

PARITY: dict[str, tuple[str, dict[str, Any], int]] = {
    "hafvt": ("hafvt", {"dropout": 0.0}, 7),
    "hafvt-ids": ("hafvt", {"dropout": 0.0, "modalities": ["id"]}, 7),
    "hafvt-sampled": ("hafvt", {"dropout": 0.0, "num_negatives": 12}, 7),
    "hafvt-ids-sampled": ("hafvt", {"dropout": 0.0, "modalities": ["id"], "num_negatives": 12}, 7),
    "sasrec": ("sasrec", {"dropout": 0.0}, 7),
    "sasrec-small-batch": ("sasrec", {"dropout": 0.0}, 2),  # of three processes, one has no users
    "sasrec-sampled": ("sasrec", {"dropout": 0.0, "num_negatives": 12}, 7),
    "gru4rec": ("gru4rec", {"dropout_embed": 0.0, "dropout_hidden": 0.0}, 7),
    "gru4rec-cross-entropy": (
        "gru4rec",
        {"dropout_embed": 0.0, "dropout_hidden": 0.0, "loss": "cross-entropy", "num_negatives": 12},
        7,
    ),
    "gru4rec-bpr-max": (
        "gru4rec",
        {"dropout_embed": 0.0, "dropout_hidden": 0.0, "loss": "bpr-max", "num_negatives": 12},
        2,
    ),
    "sasrec-sharded": ("sasrec", {"dropout": 0.0}, 7),
    "sasrec-small-batch-sharded": ("sasrec", {"dropout": 0.0}, 2),
    "hafvt-sharded": ("hafvt", {"dropout": 0.0}, 7),
    "hafvt-ids-sharded": ("hafvt", {"dropout": 0.0, "modalities": ["id"]}, 7),
    "hafvt-sampled-sharded": ("hafvt", {"dropout": 0.0, "num_negatives": 12}, 7),
    "sasrec-sampled-sharded": ("sasrec", {"dropout": 0.0, "num_negatives": 12}, 7),
    "pinet": ("pinet", {"dropout": 0.0}, 7),
    "psjnet": ("psjnet", {"dropout": 0.0}, 2),
}
"""Model, hyperparameters and batch size of cases whose losses do not depend on the processes.

Those with a sharded catalog equal one process's case with whole tables.
"""
OTHERS = ("srgnn", "mifn", "tricdr", "c2dsr", "hafvt-paper", "popularity")
FEW_STEPS = ("pinet", "psjnet")  # slow models
STEPS, OTHER_STEPS = 50, 4


def forever(batches: TrainBatches) -> Iterator[Batch]:
    for epoch in count():
        yield from batches.epoch(epoch)


def train_case(
    data: Dataset, out: Path, case: str, model: str, params: dict[str, Any], batch_size: int, steps: int
) -> list[float]:
    """Returns the loss of each step, and writes the gradients of the first."""
    config = configure(model, "default", {**SMALL_PARAMS.get(model, {}), **params})
    features = model_item_features(data, model, config)
    shard = None
    if case.endswith("-sharded") and num_processes() > 1:
        ranges = [(domain.start, domain.stop) for domain in data.domains]
        shard = Shard.of_ranges(ranges, process_index(), num_processes())
        features = replace(features, shard=shard)
    torch.manual_seed(0)
    network = build_model(model, features, resolve_config(config, features))
    shares = {"process_index": process_index(), "num_processes": num_processes()}
    batches = TrainBatches(data, batch_size, network.max_length + 1, 0, **shares)
    settings, device = TrainingConfig(batch_size=batch_size, learning_rate=0.003), torch.device("cpu")
    trainer = Trainer(network, data, batches, out / "none", settings, FULL, device, torch.float32)
    network.train()
    gradients: dict[str, torch.Tensor] = {}

    def keep_gradients(*_: object) -> None:
        for name, weight in network.named_parameters():
            if weight.grad is not None and trainer.state.step == 0 and name not in gradients:
                grad = weight.grad.to_dense().clone().contiguous()
                is_slice = shard is not None and name in network.sharded_names
                gradients[name] = torch.cat(list(iter_table(grad, shard))) if is_slice else grad

    assert trainer.optimizer is not None
    trainer.optimizer.register_step_pre_hook(keep_gradients)
    losses: list[float] = []
    for batch, step in zip(forever(batches), range(steps), strict=False):
        trainer.state.step = step
        losses.append(trainer.train_step(batch))
    if process_index() == 0:
        save_file(gradients, out / f"{num_processes()}-{case}.safetensors")
    return losses


@process_group()
def main(data: Dataset, out: Path) -> None:
    losses = {
        case: train_case(
            data, out, case, model, params, batch_size, OTHER_STEPS if case in FEW_STEPS else STEPS
        )
        for case, (model, params, batch_size) in PARITY.items()
        if num_processes() > 1 or not case.endswith("-sharded")
    }
    for model in OTHERS[:-1]:
        losses[model] = train_case(data, out, model, model, {}, 5, OTHER_STEPS)
    if process_index() == 0:
        (out / f"{num_processes()}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Dataset.open(sys.argv[1]), Path(sys.argv[2]))
