"""SASRec of RePlay: its model and its loss, driven by a bare loop.

Settings: `width`, `blocks`, `heads`, `dropout`, `max_length`, `learning_rate`, `batch_size`, and `content`:
whether the model reads the frozen vectors of pictures and titles beside the ids.
"""

from __future__ import annotations

from importlib.metadata import version
from itertools import count

import numpy as np
import torch
from convergence import (
    ExternalCurve,
    ExternalModel,
    content_vectors,
    longest_input,
    read_trial,
    train_windows,
)
from replay_sasrec import build, score, train_epoch


def main() -> None:
    trial = read_trial()
    settings, items = trial.settings, trial.data.num_items
    length = longest_input(trial.data, settings["max_length"])
    content = None
    if settings.get("content"):
        vectors = torch.from_numpy(content_vectors(trial.data))
        content = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])  # the last row is padding
    random = np.random.default_rng(0)
    curve = ExternalCurve(trial)
    sizes = (settings[name] for name in ("width", "blocks", "heads", "dropout"))
    network = build(items, *sizes, length, 0 if content is None else content.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"])

    def score_histories(histories: list[np.ndarray]) -> torch.Tensor:
        return score(network, histories, length, items, content)

    model = ExternalModel(network, score_histories, trial.data, length)
    options = {"batch": settings["batch_size"], "length": length, "padding": items, "content": content}
    for epoch in count():
        train_epoch(network, optimizer, train_windows(trial.data, length, epoch), random, **options)
        if curve.validate(model):
            break
    curve.finish(model, f"RePlay {version('replay-rec')}")


if __name__ == "__main__":
    main()
