"""metrics.jsonl: one line per epoch; optionally the same numbers as TensorBoard events."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hafvt.errors import missing_package
from hafvt.files import atomic_file, explained_read_errors, explained_write_errors


class MetricsLog:
    """Appends a line per epoch to metrics.jsonl.

    Args:
        folder: of the run.
        epoch: epochs that are done; lines of later epochs, which a resumed run trains again, are removed.
        tensorboard: also write TensorBoard events into the folder.

    Raises:
        HafvtError: `tensorboard` without the package.
    """

    def __init__(self, folder: Path, epoch: int, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise missing_package("track", "tensorboard") from None
            self.writer = SummaryWriter(str(folder / "tensorboard"))
        complete = []
        with explained_read_errors(self.path, "move it away"):
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for line in lines:
            try:
                if json.loads(line)["epoch"] <= epoch:
                    complete.append(line + b"\n")
            except (ValueError, KeyError, TypeError):
                break  # an incomplete line: the process was killed while it wrote
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(b"".join(complete))

    def write(self, values: dict[str, Any]) -> None:
        """Append one line and wait until it is on disk."""
        with explained_write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.writer is not None:
            for name in {"loss", "valid_mrr"} & values.keys():
                self.writer.add_scalar(name, values[name], values["epoch"])
            self.writer.flush()
