"""Encoders: pictures or titles to vectors. A new one is a class in a file of its own and a line below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hafvt.errors import HafvtError
from hafvt.features.encoders.classic import ClassicPictures, ClassicTitles
from hafvt.features.encoders.clip import ClipPictures, ClipTitles
from hafvt.features.encoders.sentence import SentenceTitles

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class Encoder(Protocol):
    """What an encoder must be; it is made as `Class(argument, device=..., seed=...)`.

    Attributes:
        settings: everything its vectors depend on, for JSON: what is stored under other settings is not
            resumed.
        packages: the distributions whose versions belong to the provenance.
        whole: whether it must see all items in one batch, as an encoder fitted on the texts must.
        fit: arrays that it was fitted to; empty before, and where nothing is fitted. They are kept beside the
            vectors: an encoder that is given them describes items that come later alike.
    """

    settings: dict[str, Any]
    packages: tuple[str, ...]
    whole: bool
    fit: dict[str, npt.NDArray[Any]]

    def encode(self, values: list[Any]) -> Float32:
        """Returns the raw rows (n, d) of n RGB pictures or n titles; one row depends on its batch alone."""
        ...

    def finish(self, rows: Float32, present: Bool) -> Float32:
        """Returns the vectors (items, e) of all raw rows (items, d), where `present` (items,) holds."""
        ...


ENCODERS: dict[str, dict[str, Callable[..., Encoder]]] = {
    "image": {"classic": ClassicPictures, "clip": ClipPictures},
    "title": {"classic": ClassicTitles, "clip": ClipTitles, "sentence": SentenceTitles},
}


def make_encoder(modality: str, spec: str, device: str, seed: int) -> Encoder:
    """Makes the encoder that a user named.

    Args:
        modality: "image" or "title".
        spec: "NAME" or "NAME:ARGUMENT", e.g. "clip:checkpoints/vit-b-32".
        device: "auto", or a device of torch.
        seed: of whatever is fitted with chance.

    Raises:
        HafvtError: there is no such encoder, or its checkpoint, package or device is missing.
    """
    name, _, argument = spec.partition(":")
    known = ENCODERS[modality]
    if name not in known:
        raise HafvtError(f"no {modality} encoder {name!r}: choose one of {', '.join(known)}")
    return known[name](argument, device=device, seed=seed)
