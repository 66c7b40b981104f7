"""Checkpoints of sentence-transformers: titles become vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hafvt.errors import HafvtError, missing_package
from hafvt.features.encoders.base import Encoder, Float32
from hafvt.features.encoders.checkpoints import checkpoint_sha256, loading
from hafvt.ops.device import select_device

# Files of a hub repository that are not downloaded: pickles and the weights of other runtimes.
IGNORED_FILES = [
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
    *("onnx/*", "openvino/*", "*.h5", "*.ot", "*.msgpack"),
]


class SentenceTitles(Encoder):
    """A checkpoint of sentence-transformers; titles are cut at its maximum length.

    Its argument may also be the bare name of one of the library's own checkpoints.
    """

    packages = ("sentence-transformers", "transformers", "tokenizers", "torch")

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise missing_package("encode", "sentence-transformers") from None
        target = select_device(device)
        with loading("sentence", argument):
            folder = _checkpoint_folder(argument)
            self.model = SentenceTransformer(
                str(folder),
                device=str(target),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        self.model.float().eval()
        super().__init__(
            {
                "encoder": "sentence",
                "checkpoint": argument,
                "sha256": checkpoint_sha256(str(folder)),
                "max_length": self.model.max_seq_length,
                "device": str(target),
            }
        )

    def encode(self, contents: list[str]) -> Float32:
        """Return the sentence vectors (n, e) of n titles."""
        rows = self.model.encode(
            contents, batch_size=len(contents), show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(rows, dtype=np.float32)


def _checkpoint_folder(name: str) -> Path:
    """Return the local folder of a checkpoint, downloaded if needed; none of its weights is a pickle."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        hub_id = name if "/" in name else f"sentence-transformers/{name}"
        folder = Path(snapshot_download(hub_id, ignore_patterns=IGNORED_FILES))
    for path in folder.rglob("pytorch_model.bin"):
        if not path.with_name("model.safetensors").exists():
            raise HafvtError(f"{path} is a pickle: save the checkpoint with safetensors weights")
    return folder
