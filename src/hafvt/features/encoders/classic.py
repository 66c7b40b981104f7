"""Encoders that need no checkpoint: colors, layout and gradients of pictures, weighted n-grams of titles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hafvt.errors import HafvtError, missing_package

if TYPE_CHECKING:
    from PIL.Image import Image

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

WIDTH = 256  # of the vectors, at most
SIDE = 96  # pictures are described at this size, squashed to a square
HSV_BINS, LAB_BINS = (8, 3, 3), (4, 6, 6)
LAB_LOW, LAB_SPAN = np.array((0, -80, -80), dtype=np.float32), np.array((100, 160, 160), dtype=np.float32)
HOG_CELLS = SIDE // 16
# gradients | HSV histograms of the quarters | Lab histograms of the quarters | 12 x 12 mean colors
BLOCKS = ((HOG_CELLS - 1) ** 2 * 4 * 9, 4 * 72, 4 * 144, 12 * 12 * 3)
FIT_ROWS = 20_000  # the projection is fitted on so many pictures at most
CHUNK = 8_192


class ClassicPictures:
    """Color histograms, layout and gradients, projected by PCA fitted on the dataset's own pictures.

    Each kind of descriptor is centerd and scaled to the same total variance, so that none outweighs the
    others, before PCA to at most 256 dimensions.

    Args:
        argument: none is taken.
        device: ignored; this encoder runs on the CPU.
        seed: of the choice of pictures to fit on and of the randomised PCA.
    """

    packages: tuple[str, ...] = ("scikit-image", "scikit-learn", "pillow", "numpy")
    whole = False

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        _no_argument(argument)
        try:
            import skimage  # noqa: F401
            import sklearn  # noqa: F401
        except ImportError as error:
            raise missing_package("encode", str(error.name)) from None
        self.settings: dict[str, Any] = {"encoder": "classic", "side": SIDE, "width": WIDTH, "seed": seed}
        self.seed = seed
        self.fit: dict[str, npt.NDArray[Any]] = {}

    def encode(self, values: list[Image]) -> Float32:
        """Returns the descriptors (n, 2196) of n RGB pictures."""
        from skimage.color import rgb2hsv, rgb2lab
        from skimage.feature import hog

        pictures = np.stack([np.asarray(value.resize((SIDE, SIDE)), dtype=np.float32) for value in values])
        pictures /= 255  # (n, SIDE, SIDE, 3)
        lab = (rgb2lab(pictures).astype(np.float32) - LAB_LOW) / LAB_SPAN
        gradients = [hog(gray, 9, (16, 16), (2, 2), block_norm="L2-Hys") for gray in pictures.mean(axis=3)]
        cells = lab.reshape(len(lab), 12, SIDE // 12, 12, SIDE // 12, 3).mean(axis=(2, 4))
        parts = (
            np.sqrt(gradients),  # the root tames the large values of histograms
            np.sqrt(_histograms(rgb2hsv(pictures), HSV_BINS)),
            np.sqrt(_histograms(lab, LAB_BINS)),
            cells.reshape(len(lab), -1),
        )
        return np.concatenate(parts, axis=1).astype(np.float32)

    def finish(self, rows: Float32, present: Bool) -> Float32:
        """Returns the projections (items, at most 256) of the descriptors of all items."""
        if not self.fit:
            self._fit(rows, present)
        mean, scale, axes = (self.fit[name] for name in ("mean", "scale", "axes"))
        out = np.zeros((len(rows), len(axes)), dtype=np.float32)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            out[part] = ((rows[part] - mean) * scale) @ axes.T * present[part, None]
        return out

    def _fit(self, rows: Float32, present: Bool) -> None:
        from sklearn.utils.extmath import randomized_svd

        found = np.flatnonzero(present)
        if len(found) > FIT_ROWS:
            found = np.sort(np.random.default_rng(self.seed).choice(found, FIT_ROWS, replace=False))
        sample = np.array(rows[found])
        mean = sample.mean(axis=0)
        sample -= mean
        scale = np.empty_like(mean)
        for block in np.split(np.arange(len(mean)), np.cumsum(BLOCKS)[:-1]):
            scale[block] = 1 / max(float(np.sqrt(np.square(sample[:, block]).sum(axis=1).mean())), 1e-9)
        width = min(WIDTH, *sample.shape)
        _, _, axes = randomized_svd(sample * scale, width, n_iter=5, random_state=self.seed)  # (width, d)
        self.fit = {"mean": mean, "scale": scale, "axes": axes}


class ClassicTitles:
    """TF-IDF of words, word pairs and character n-grams within words, reduced by SVD to at most 256.

    Args:
        argument: none is taken.
        device: ignored; this encoder runs on the CPU.
        seed: of the randomised SVD.
    """

    packages: tuple[str, ...] = ("scikit-learn", "numpy")
    whole = True
    FEATURES = 50_000  # most frequent n-grams kept, of words and of characters each

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        _no_argument(argument)
        try:
            import sklearn  # noqa: F401
        except ImportError as error:
            raise missing_package("encode", str(error.name)) from None
        self.settings: dict[str, Any] = {"encoder": "classic", "width": WIDTH, "seed": seed}
        self.seed = seed
        self.fit: dict[str, npt.NDArray[Any]] = {}

    def encode(self, values: list[str]) -> Float32:
        """Returns the vectors (n, at most 256) of all n titles of a dataset; once fitted, of any titles."""
        from scipy.sparse import hstack
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        shared = {"sublinear_tf": True, "dtype": np.float32}
        # words or runs of signs, of any length, so that no title is without a token
        kinds = {
            "words": {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]+"},
            "characters": {"ngram_range": (3, 5), "analyzer": "char_wb"},
        }
        fitted, parts = bool(self.fit), []
        for name, settings in kinds.items():
            if fitted:
                vectorizer = TfidfVectorizer(**settings, **shared, vocabulary=_unpacked(self.fit[name]))
                vectorizer.idf_ = self.fit[f"{name}_idf"]
                parts.append(vectorizer.transform(values))
            else:
                vectorizer = TfidfVectorizer(**settings, **shared, max_features=self.FEATURES)
                parts.append(vectorizer.fit_transform(values))
                self.fit[name] = _packed(vectorizer.get_feature_names_out().tolist())
                self.fit[f"{name}_idf"] = vectorizer.idf_
        grams = hstack(parts, format="csr")
        if not fitted:
            width = min(WIDTH, *grams.shape)
            _, _, self.fit["axes"] = randomized_svd(grams, width, n_iter=5, random_state=self.seed)
        return np.asarray(grams @ self.fit["axes"].T, dtype=np.float32)

    def finish(self, rows: Float32, present: Bool) -> Float32:
        """Returns the rows as they are."""
        return rows


def _histograms(colors: Float32, bins: tuple[int, int, int]) -> Float32:
    """Returns joint histograms (n, 4 * bins) of the quarters of pictures (n, SIDE, SIDE, 3) in [0, 1]."""
    levels = np.minimum((colors * bins).astype(np.int64), np.array(bins) - 1).clip(0)
    codes = (levels[..., 0] * bins[1] + levels[..., 1]) * bins[2] + levels[..., 2]
    n, half, size = len(codes), SIDE // 2, int(np.prod(bins))
    quarters = codes.reshape(n, 2, half, 2, half).transpose(0, 1, 3, 2, 4).reshape(4 * n, half * half)
    flat = (quarters + size * np.arange(4 * n)[:, None]).ravel()
    counts = np.bincount(flat, minlength=4 * n * size).reshape(n, 4 * size)
    return (counts / (half * half)).astype(np.float32)


def _packed(texts: list[str]) -> npt.NDArray[np.uint8]:
    """Returns texts of any length as bytes: an array of text is as wide as its longest."""
    return np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)


def _unpacked(packed: npt.NDArray[np.uint8]) -> list[str]:
    """Returns what `_packed` took."""
    texts: list[str] = json.loads(packed.tobytes())
    return texts


def _no_argument(argument: str) -> None:
    if argument:
        raise HafvtError(f"the encoder classic takes no argument, got {argument!r}: say classic")
