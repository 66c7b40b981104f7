"""Checkpoints of sentence-transformers: titles become vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hafvt.errors import HafvtError, missing_package
from hafvt.features.encoders.base import Encoder, Float32
from hafvt.features.encoders.checkpoints import checkpoint_sha256, loading, pick_device

PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"]
OTHER_RUNTIMES = ["onnx/*", "openvino/*", "*.h5", "*.ot", "*.msgpack"]


class SentenceTitles(Encoder):
    """A checkpoint of sentence-transformers; titles are cut at its maximum length.

    Args:
        argument: a local folder, a hub id, or the bare name of one of the library's own checkpoints.
        device: "auto", or a device of torch.
        seed: ignored; nothing is random.
    """

    packages = ("sentence-transformers", "transformers", "tokenizers", "torch")

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
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


def _folder(name: str) -> Path:
    """Return the local folder of a checkpoint, downloaded if needed; none of its weights is a pickle."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        hub_id = name if "/" in name else f"sentence-transformers/{name}"
        folder = Path(snapshot_download(hub_id, ignore_patterns=[*PICKLES, *OTHER_RUNTIMES]))
    for path in folder.rglob("pytorch_model.bin"):
        if not path.with_name("model.safetensors").exists():
            raise HafvtError(f"{path} is a pickle: save the checkpoint with safetensors weights")
    return folder
