"""CLIP and SigLIP checkpoints of transformers: pictures and titles into their shared space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from hafvt.errors import HafvtError, missing_package
from hafvt.features.encoders.checkpoints import checkpoint_sha256, loading, pick_device

if TYPE_CHECKING:
    from PIL.Image import Image

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class ClipPictures:
    """The picture half of a CLIP or SigLIP checkpoint; torchvision is not needed.

    Args:
        argument: a local folder or a hub id, with safetensors weights.
        device: "auto", or a device of torch.
        seed: ignored; nothing here is drawn.
    """

    packages: tuple[str, ...] = ("transformers", "torch", "pillow")
    whole = False

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        self.fit: dict[str, npt.NDArray[Any]] = {}
        self.model, self.settings = _load(argument, pick_device(device))
        with loading("clip", argument):
            import transformers

            auto: Any = transformers.AutoImageProcessor
            # Pillow's path everywhere, so that vectors do not depend on whether torchvision is installed
            self.processor = auto.from_pretrained(argument, backend="pil", trust_remote_code=False)

    @torch.inference_mode()
    def encode(self, values: list[Image]) -> Float32:
        """Returns the projected rows (n, e) of n RGB pictures."""
        inputs = self.processor(images=values, return_tensors="pt").to(self.model.device)
        return _rows(self.model.get_image_features(**inputs))

    def finish(self, rows: Float32, present: Bool) -> Float32:
        """Returns the rows as they are."""
        return rows


class ClipTitles:
    """The text half of a CLIP or SigLIP checkpoint; longer titles are cut at what it can read.

    Args:
        argument: a local folder or a hub id, with safetensors weights.
        device: "auto", or a device of torch.
        seed: ignored; nothing here is drawn.
    """

    packages: tuple[str, ...] = ("transformers", "tokenizers", "torch")
    whole = False

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        self.fit: dict[str, npt.NDArray[Any]] = {}
        self.model, self.settings = _load(argument, pick_device(device))
        with loading("clip", argument):
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(argument, trust_remote_code=False)
        self.max_length = int(self.model.config.text_config.max_position_embeddings)
        # SigLIP was trained on full-length padding and attends to it
        self.padding = "max_length" if self.model.config.model_type.startswith("siglip") else "longest"
        self.settings |= {"max_length": self.max_length, "padding": self.padding}

    @torch.inference_mode()
    def encode(self, values: list[str]) -> Float32:
        """Returns the projected rows (n, e) of n titles."""
        inputs = self.tokenizer(
            values, padding=self.padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        return _rows(self.model.get_text_features(**inputs))

    def finish(self, rows: Float32, present: Bool) -> Float32:
        """Returns the rows as they are."""
        return rows


def _load(name: str, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Returns the model in float32 on its device, and the settings its vectors depend on."""
    try:
        import transformers
    except ImportError:
        raise missing_package("encode", "transformers") from None
    with loading("clip", name):
        model, report = transformers.AutoModel.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise HafvtError(f"clip:{name} is a {model.config.model_type}: give a CLIP or SigLIP checkpoint")
        if report["missing_keys"]:  # they would be drawn at random
            raise HafvtError(f"clip:{name} lacks weights, e.g. {min(report['missing_keys'])}: fetch it anew")
    settings = {
        "encoder": "clip",
        "checkpoint": name,
        "revision": getattr(model.config, "_commit_hash", None),
        "sha256": checkpoint_sha256(name),
        "device": str(device),
    }
    return model.float().eval().to(device), settings


def _rows(features: Any) -> Float32:
    """Returns the vectors of a batch; transformers 4 gives them bare, transformers 5 within an output."""
    pooled = features if isinstance(features, torch.Tensor) else features.pooler_output
    rows: Float32 = pooled.float().cpu().numpy()
    return rows
