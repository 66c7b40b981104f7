"""The interface of encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Bool
from hafvt.errors import HafvtError

Float32 = npt.NDArray[np.float32]


class ContentError(HafvtError):
    """What is wrong with the content of one item, such as its picture, in a few words.

    Args:
        problem: the few words.
        content: what is used all the same, such as a picture whose file ends too early; None if nothing.
    """

    def __init__(self, problem: str, content: Any = None) -> None:
        super().__init__(problem)
        self.content = content


class Encoder(ABC):
    """Turns the content of items, such as pictures or titles, into vectors.

    A subclass is constructed as `Class(argument, device=..., seed=...)`:

    * `argument` is what follows the colon in "clip:CHECKPOINT" (a local folder or a hub id with safetensors
      weights), or empty;
    * `device` is where a checkpoint runs, "auto" or a device of torch; encoders without one ignore it;
    * `seed` is the random seed of an encoder that is fitted on the dataset; others ignore it.

    An encoder that is fitted stores what it learned in `fitted_arrays`; given these arrays, a new instance
    must encode further items in the same way.

    Attributes:
        settings: everything the vectors depend on, as JSON values. An interrupted encoding is continued, and
            new items are encoded, only with equal settings.
        fitted_arrays: arrays learned from the dataset, by name; empty if the encoder is not fitted (yet).
        packages: names of the installed packages whose versions are recorded with the vectors.
        needs_all_items: whether the first call of `encode` must get the content of all items at once.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    needs_all_items: ClassVar[bool] = False

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.fitted_arrays: dict[str, npt.NDArray[Any]] = {}

    @abstractmethod
    def encode(self, contents: list[Any]) -> Float32:
        """Return the raw rows (n, d) of n contents: RGB pictures or titles."""

    def finish(self, rows: Float32, present: Bool) -> Float32:
        """Return the vectors (items, e) of all items, by default their raw rows.

        Args:
            rows: (items, d) raw rows; zero where `present` is false.
            present: (items,) whether an item has a raw row.
        """
        return rows
