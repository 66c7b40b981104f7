"""The modalities of items that can be encoded: how their content is loaded, and with which encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hafvt.errors import ArgumentError
from hafvt.features.encoders.attribute_vectors import ATTRIBUTES
from hafvt.features.encoders.base import Encoder
from hafvt.features.encoders.classic import ClassicPictures, ClassicTitles
from hafvt.features.encoders.clip import ClipPictures, ClipTitles
from hafvt.features.encoders.sentence import SentenceTitles
from hafvt.features.images import decode_picture, open_picture
from hafvt.features.remote_images import is_picture_address, read_remote


class Modality(NamedTuple):
    """One kind of content that items have.

    Attributes:
        column: the column of the item table that holds the content or the path of its file.
        load: returns the content from a non-empty cell and the folder that relative paths start from. It
            raises `ContentError` if the content of this one item cannot be used.
        encoders: encoder classes by the name that users give on the command line.
    """

    column: str
    load: Callable[[str, Path | None], Any]
    encoders: dict[str, Callable[..., Encoder]]


def load_picture(value: str, image_root: Path | None) -> Any:
    """Return the RGB picture at a path or an address of the item table."""
    return (
        decode_picture(read_remote(value)) if is_picture_address(value) else open_picture(image_root, value)
    )


def load_text(value: str, image_root: Path | None) -> str:
    """Return a text of the item table without surrounding spaces."""
    return value.strip()


MODALITIES: dict[str, Modality] = {
    "image": Modality("image", load_picture, {"classic": ClassicPictures, "clip": ClipPictures}),
    "title": Modality(
        "title", load_text, {"classic": ClassicTitles, "clip": ClipTitles, "sentence": SentenceTitles}
    ),
}


def encode_option(name: str) -> str:
    """Return an option of `hafvt encode` that makes the vectors of a modality."""
    if name == ATTRIBUTES:
        return "--attributes COLUMN"
    if name not in MODALITIES:
        return f"--precomputed {name}=FILE"
    encoder = next(iter(MODALITIES[name].encoders))
    return f"--{name} {encoder}" if name in ("image", "title") else f"--encoders {name}={encoder}"


def make_encoder(name: str, spec: str, device: str, seed: int) -> Encoder:
    """Return a new encoder.

    Args:
        name: a modality of `MODALITIES`.
        spec: "ENCODER" or "ENCODER:ARGUMENT", e.g. "clip:checkpoints/vit-b-32".
        device: "auto", or a device of torch.
        seed: random seed of encoders that are fitted.

    Raises:
        HafvtError: there is no such modality or encoder, or its checkpoint, package or device is missing.
    """
    if name not in MODALITIES:
        raise ArgumentError(f"no encoders for modality {name!r}: choose one of {', '.join(MODALITIES)}")
    encoder, _, argument = spec.partition(":")
    encoders = MODALITIES[name].encoders
    if encoder not in encoders:
        raise ArgumentError(f"no {name} encoder {encoder!r}: choose one of {', '.join(encoders)}")
    return encoders[encoder](argument, device=device, seed=seed)
