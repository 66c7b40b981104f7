"""CLIP and SigLIP checkpoints of transformers: pictures and titles become vectors of one shared space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hafvt.errors import HafvtError, missing_package
from hafvt.features.encoders.base import Encoder, Float32
from hafvt.features.encoders.checkpoints import checkpoint_sha256, loading
from hafvt.ops.device import select_device

if TYPE_CHECKING:
    from PIL.Image import Image


class ClipPictures(Encoder):
    """The picture encoder of a CLIP or SigLIP checkpoint; torchvision is not needed."""

    packages = ("transformers", "torch", "pillow")

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        self.model, settings = _load(argument, device)
        with loading("clip", argument):
            import transformers

            auto: Any = transformers.AutoImageProcessor
            # Pillow resizes, so that vectors do not depend on whether torchvision is installed.
            self.processor = auto.from_pretrained(argument, backend="pil", trust_remote_code=False)
        super().__init__(settings)

    @torch.inference_mode()
    def encode(self, contents: list[Image]) -> Float32:
        """Return the projected vectors (n, e) of n RGB pictures."""
        inputs = self.processor(images=contents, return_tensors="pt").to(self.model.device)
        return _rows(self.model.get_image_features(**inputs))


class ClipTitles(Encoder):
    """The text encoder of a CLIP or SigLIP checkpoint; titles are cut at its maximum length."""

    packages = ("transformers", "tokenizers", "torch")

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        self.model, settings = _load(argument, device)
        with loading("clip", argument):
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(argument, trust_remote_code=False)
        self.max_length = int(self.model.config.text_config.max_position_embeddings)
        # SigLIP was trained with padding to the full length and attends to it.
        self.padding = "max_length" if self.model.config.model_type.startswith("siglip") else "longest"
        super().__init__(settings | {"max_length": self.max_length, "padding": self.padding})

    @torch.inference_mode()
    def encode(self, contents: list[str]) -> Float32:
        """Return the projected vectors (n, e) of n titles."""
        inputs = self.tokenizer(
            contents, padding=self.padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        return _rows(self.model.get_text_features(**inputs))


def _load(name: str, device_name: str) -> tuple[Any, dict[str, Any]]:
    """Return the model in float32 on its device, and the settings that its vectors depend on."""
    device = select_device(device_name)
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
        if report["missing_keys"]:  # transformers would initialize them at random
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
    """Return the vectors of a batch: `features` itself in transformers 4, a part of it in transformers 5."""
    pooled = features if isinstance(features, torch.Tensor) else features.pooler_output
    rows: Float32 = pooled.float().cpu().numpy()
    return rows
