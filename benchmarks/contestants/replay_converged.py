"""SASRec of RePlay: its model and its loss, driven by a bare loop.

Settings: `width`, `blocks`, `heads`, `dropout`, `max_length`, `learning_rate` and `batch_size`.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from convergence import ExternalCurve, ExternalModel, longest_input, read_trial, train_histories
from replay_sasrec import build, score, train_epoch


def main() -> None:
    trial = read_trial()
    settings, items = trial.settings, trial.data.num_items
    length = longest_input(trial.data, settings["max_length"])
    rows = [row[-length - 1 :] for row in train_histories(trial.data) if len(row) >= 2]
    random = np.random.default_rng(0)
    curve = ExternalCurve(trial)
    network = build(items, *(settings[name] for name in ("width", "blocks", "heads", "dropout")), length)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"])
    model = ExternalModel(
        network, lambda histories: score(network, histories, length, items), trial.data, length
    )
    while True:
        train_epoch(
            network, optimizer, rows, random, batch=settings["batch_size"], length=length, padding=items
        )
        if curve.validate(model):
            break
    curve.finish(model, f"RePlay {version('replay-rec')}")


if __name__ == "__main__":
    main()
