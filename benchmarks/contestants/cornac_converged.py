"""VBPR of Cornac on the frozen vectors of pictures and titles, by its own loop.

Settings: arguments of the library's class, and `epochs_per_fit`: so many epochs the library trains before
each validation. Its next call goes on with the weights; Adam's moments start anew.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO

import numpy as np
import torch
from convergence import ExternalCurve, ExternalModel, content_vectors, read_trial, train_histories
from cornac.data import Dataset as CornacDataset
from cornac.data import ImageModality
from cornac.models import VBPR
from torch import nn

from hafvt.data.dataset import Dataset


class FactorTables(nn.Module):
    """The vectors of users and items, whose products are the scores."""

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        super().__init__()
        self.users, self.items = (
            nn.Parameter(torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32)))
            for table in (users, items)
        )


def train_set(data: Dataset) -> CornacDataset:
    """Return the training interactions of all users, with the frozen vectors of all items side by side."""
    rows = train_histories(data)
    users, items = np.repeat(np.arange(len(rows)), [len(row) for row in rows]), np.concatenate(rows)
    _, first = np.unique(users * data.num_items + items, return_index=True)
    interactions = (users[first], items[first], np.ones(len(first), dtype=np.float32))
    numbers = [{number: number for number in range(count)} for count in (data.num_users, data.num_items)]
    log = CornacDataset(data.num_users, data.num_items, *numbers, interactions, seed=0)
    images = ImageModality(features=content_vectors(data))
    log.add_modalities(item_image=images)
    return log


def user_of_histories(data: Dataset) -> dict[bytes, int]:
    """Return the user of each history of a validation or test target, by the bytes of its items.

    Raises:
        ValueError: two users have the same history.
    """
    users: dict[bytes, int] = {}
    for position in [*data.valid, *data.test]:
        user = int(data.users_at(position))
        history = np.asarray(data.items[data.offsets[user] : position], dtype=np.int64).tobytes()
        if users.setdefault(history, user) != user:
            raise ValueError(f"users {user} and {users[history]} have the same history")
    return users


def main() -> None:
    trial = read_trial()
    settings = dict(trial.settings)
    per_fit = settings.pop("epochs_per_fit")
    del settings["max_length"]  # VBPR reads the user, not the history
    users = user_of_histories(trial.data)
    curve = ExternalCurve(trial)
    log = train_set(trial.data)
    vbpr = VBPR(n_epochs=per_fit, seed=0, verbose=False, **settings)
    network: FactorTables | None = None

    def score(histories: list[np.ndarray]) -> torch.Tensor:
        assert network is not None
        rows = [users[history.tobytes()] for history in histories]
        return network.users[rows] @ network.items.T

    epoch, longest = 0, max(len(history) // 8 for history in users)
    while True:
        with redirect_stdout(StringIO()):
            vbpr.fit(log)
        epoch += per_fit
        weights = FactorTables(vbpr.get_user_vectors(), vbpr.get_item_vectors())
        if network is None:
            network = weights
            model = ExternalModel(network, score, trial.data, longest)
        network.load_state_dict(weights.state_dict())
        if curve.validate(model, epoch):
            break
    curve.finish(model, f"Cornac {version('cornac')}")


if __name__ == "__main__":
    main()
