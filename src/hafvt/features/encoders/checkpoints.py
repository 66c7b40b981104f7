"""Pretrained checkpoints: a local folder or an id on the Hugging Face hub, safetensors only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hafvt.errors import HafvtError
from hafvt.files import sha256


def checkpoint_sha256(name: str) -> dict[str, str]:
    """Return the SHA-256 of each weights file of a local checkpoint, by file name; empty for a hub id."""
    folder = Path(name)
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*.safetensors"))}


@contextmanager
def loading(kind: str, name: str) -> Iterator[None]:
    """Turn any error while a checkpoint loads into one line.

    Args:
        kind: name of the encoder.
        name: a local folder or a hub id.

    Raises:
        HafvtError: the name is empty or that of a missing folder, or the block failed.
    """
    remedy = "give a local folder with safetensors weights, or a hub id that can be reached or is cached"
    if not name:
        raise HafvtError(f"the encoder {kind} needs a checkpoint: give {kind}:FOLDER or {kind}:HUB_ID")
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise HafvtError(f"{kind}:{name}: there is no such folder: {remedy}")
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    try:
        hub.setLevel(logging.ERROR)  # or else each attempt to reach the hub logs a line
        yield
    except HafvtError:
        raise
    except Exception as error:  # the loaders raise nearly anything for a missing or damaged file
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise HafvtError(f"{kind}:{name} cannot be loaded ({reason}): {remedy}") from None
    finally:
        hub.setLevel(level)
