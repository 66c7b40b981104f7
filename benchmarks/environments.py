"""Virtual environments of other libraries, which may need other versions than hafvt does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
RANKING = ["polars", "narwhals", "pydantic", "filelock", "rich", "PyYAML", "safetensors", "backports.zstd"]
"""Packages that `hafvt.evaluation` imports, for contestants that rank their scores by it."""

PACKAGES = {  # what each library's environment holds beside torch
    "rectools": ["rectools[torch]==0.19.0", *RANKING],
    "replay": ["replay-rec[torch]==0.22.0", *RANKING],
    "recbole": ["recbole==1.2.1", "setuptools<81", "numpy<2", "pandas<2.3"],
    "cornac": ["cornac==3.0.1", *RANKING],
}


def interpreter(name: str, work: Path) -> Path:
    """Return the Python of a library's environment, which the first call makes; "hafvt" has this Python."""
    if name == "hafvt":
        return Path(sys.executable)
    folder = work / "environments" / name
    python, ready = folder / "bin" / "python", folder / "ready"
    packages = [TORCH, *PACKAGES[name]]
    if not ready.exists() or ready.read_text() != "\n".join(packages):
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, TORCH], check=True)
        subprocess.run([*pip, *packages], check=True)
        ready.write_text("\n".join(packages))
    return python
