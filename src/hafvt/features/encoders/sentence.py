"""Sentence encoders of sentence-transformers: titles to vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hafvt.errors import HafvtError, missing_package
from hafvt.features.encoders.checkpoints import checkpoint_sha256, loading, pick_device

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"]
OTHER_RUNTIMES = ["onnx/*", "openvino/*", "*.h5", "*.ot", "*.msgpack"]


class SentenceTitles:
    """A checkpoint of sentence-transformers; longer titles are cut at what it can read.

    Args:
        argument: a local folder, a hub id, or the bare name of one of the library's own checkpoints.
        device: "auto", or a device of torch.
        seed: ignored; nothing here is drawn.
    """

    packages: tuple[str, ...] = ("sentence-transformers", "transformers", "tokenizers", "torch")
    whole = False

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        self.fit: dict[str, npt.NDArray[Any]] = {}
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise missing_package("encode", "sentence-transformers") from None
        target = pick_device(device)
        with loading("sentence", argument):
            folder = _folder(argument)
            self.model = SentenceTransformer(
                str(folder),
                device=str(target),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        self.model.float().eval()
        self.settings: dict[str, Any] = {
            "encoder": "sentence",
            "checkpoint": argument,
            "sha256": checkpoint_sha256(str(folder)),
            "max_length": self.model.max_seq_length,
            "device": str(target),
        }

    def encode(self, values: list[str]) -> Float32:
        """Returns the sentence vectors (n, e) of n titles."""
        rows = self.model.encode(
            values, batch_size=len(values), show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(rows, dtype=np.float32)

    def finish(self, rows: Float32, present: Bool) -> Float32:
        """Returns the rows as they are."""
        return rows


def _folder(name: str) -> Path:
    """Returns the local folder of a checkpoint, fetched if need be; none of its weights is a pickle."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        hub_id = name if "/" in name else f"sentence-transformers/{name}"
        folder = Path(snapshot_download(hub_id, ignore_patterns=[*PICKLES, *OTHER_RUNTIMES]))
    for path in folder.rglob("pytorch_model.bin"):
        if not path.with_name("model.safetensors").exists():
            raise HafvtError(f"{path} is a pickle: save the checkpoint with safetensors weights")
    return folder
