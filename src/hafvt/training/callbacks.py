"""Callbacks: what your own code does at the start of a training, after each epoch and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hafvt.training.run import Run


class Callback:
    """Override the methods that you need. Of several processes, process 0 calls them."""

    def on_train_start(self, settings: Mapping[str, Any]) -> None:
        """Run before the first epoch, or before the next one of a resumed training.

        Args:
            settings: the content of config.yaml.
        """

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> bool | None:
        """Run after each epoch.

        Args:
            epoch: number of the epoch, from 1.
            metrics: the epoch's line in metrics.jsonl: its loss and, after a validation, `valid_mrr`.

        Returns:
            True to stop the training, which then keeps the best weights so far.
        """

    def on_train_end(self, run: Run) -> None:
        """Run once the run is finished and its test targets are ranked."""
