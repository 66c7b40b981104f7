"""metrics.jsonl: one line per epoch; optionally the same numbers as TensorBoard events."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hafvt.errors import missing_package
from hafvt.files import atomic_file, explained_write_errors


class MetricsLog:
    """Appends a line per epoch to metrics.jsonl.

    Args:
        folder: of the run.
        lines: of the epochs that are done; a resumed run writes those of later epochs again.
        tensorboard: also write TensorBoard events into the folder.

    Raises:
        HafvtError: `tensorboard` without the package.
    """

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, float]], tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise missing_package("track", "tensorboard") from None
            self.writer = SummaryWriter(str(folder / "tensorboard"))
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def write(self, values: Mapping[str, float]) -> None:
        """Append one line and wait until it is on disk."""
        with explained_write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.writer is not None:
            for name in (name for name in values if name == "loss" or name.startswith("valid_")):
                self.writer.add_scalar(name, values[name], values["epoch"])
            self.writer.flush()
