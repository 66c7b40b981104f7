"""metrics.jsonl: one line per epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hafvt.files import atomic_file, explained_write_errors


class MetricsLog:
    """Appends a line per epoch to metrics.jsonl.

    Args:
        folder: of the run.
        lines: of the epochs that are done; a resumed run writes those of later epochs again.
    """

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, float]]) -> None:
        self.path = folder / "metrics.jsonl"
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def write(self, values: Mapping[str, float]) -> None:
        """Append one line and wait until it is on disk."""
        with explained_write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())
