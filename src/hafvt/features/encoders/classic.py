"""Encoders that need no checkpoint: colors, layout and gradients of pictures, weighted n-grams of titles."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from hafvt.data.dataset import Bool
from hafvt.errors import HafvtError, missing_package
from hafvt.features.encoders.base import Encoder, Float32
from hafvt.features.table import pack_texts, unpack_texts

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 256  # width of the vectors, at most
SIDE = 96  # pictures are resized to a square of this many pixels a side
HSV_BINS, LAB_BINS = (8, 3, 3), (4, 6, 6)
LAB_LOW, LAB_SPAN = np.array((0, -80, -80), dtype=np.float32), np.array((100, 160, 160), dtype=np.float32)
HOG_CELLS = SIDE // 16
# Lengths of the descriptors: gradients, HSV and Lab histograms of the quarters, 12 x 12 mean colors.
BLOCKS = ((HOG_CELLS - 1) ** 2 * 4 * 9, 4 * 72, 4 * 144, 12 * 12 * 3)
MAX_FIT_ROWS = 20_000  # pictures that the projection is fitted on, at most
CHUNK_ROWS = 8_192
MAX_NGRAMS = 50_000  # most frequent n-grams that are used, of words and of characters each


class ClassicPictures(Encoder):
    """Color histograms, layout and gradients, projected by PCA fitted on the pictures of the dataset.

    Before PCA to at most 256 dimensions, each kind of descriptor is centered and scaled to the same total
    variance, so that none outweighs the others. The seed chooses the pictures to fit on and starts the PCA.
    """

    packages = ("scikit-image", "scikit-learn", "pillow", "numpy")

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        _check(argument, "skimage", "sklearn")
        super().__init__({"encoder": "classic", "side": SIDE, "width": WIDTH, "seed": seed})

    def encode(self, contents: list[Image]) -> Float32:
        """Return the descriptors (n, 2196) of n RGB pictures."""
        from skimage.color import rgb2hsv, rgb2lab
        from skimage.feature import hog

        pictures = np.stack(
            [np.asarray(picture.resize((SIDE, SIDE)), dtype=np.float32) for picture in contents]
        )
        pictures /= 255  # (n, SIDE, SIDE, 3)
        lab = (rgb2lab(pictures).astype(np.float32) - LAB_LOW) / LAB_SPAN
        gradients = [hog(gray, 9, (16, 16), (2, 2), block_norm="L2-Hys") for gray in pictures.mean(axis=3)]
        cells = lab.reshape(len(lab), 12, SIDE // 12, 12, SIDE // 12, 3).mean(axis=(2, 4))  # (n, 12, 12, 3)
        parts = (
            np.sqrt(gradients),  # square roots keep large values of histograms from dominating
            np.sqrt(_histograms(rgb2hsv(pictures), HSV_BINS)),
            np.sqrt(_histograms(lab, LAB_BINS)),
            cells.reshape(len(lab), -1),
        )
        return np.concatenate(parts, axis=1).astype(np.float32)

    def finish(self, rows: Float32, present: Bool) -> Float32:
        """Return the projections (items, at most 256) of the descriptors of all items."""
        if not self.fitted_arrays:
            self._fit(rows, present)
        mean, scale, axes = (self.fitted_arrays[name] for name in ("mean", "scale", "axes"))
        vectors = np.zeros((len(rows), len(axes)), dtype=np.float32)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            vectors[part] = ((rows[part] - mean) * scale) @ axes.T * present[part, None]
        return vectors

    def _fit(self, rows: Float32, present: Bool) -> None:
        """Fit mean (d,), scale (d,) and principal axes (width, d) to the descriptors."""
        from sklearn.utils.extmath import randomized_svd

        items, seed = np.flatnonzero(present), self.settings["seed"]
        if len(items) > MAX_FIT_ROWS:
            items = np.sort(np.random.default_rng(seed).choice(items, MAX_FIT_ROWS, replace=False))
        sample = np.array(rows[items])
        mean = sample.mean(axis=0)
        sample -= mean
        scale = np.empty_like(mean)
        for block in np.split(np.arange(len(mean)), np.cumsum(BLOCKS)[:-1]):
            scale[block] = 1 / max(float(np.sqrt(np.square(sample[:, block]).sum(axis=1).mean())), 1e-9)
        width = min(WIDTH, *sample.shape)
        _, _, axes = randomized_svd(sample * scale, width, n_iter=5, random_state=seed)
        self.fitted_arrays = {"mean": mean, "scale": scale, "axes": axes}


class ClassicTitles(Encoder):
    """TF-IDF of words, word pairs and character n-grams within words, reduced by SVD to at most 256."""

    packages = ("scikit-learn", "numpy")
    needs_all_items = True

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        _check(argument, "sklearn")
        super().__init__({"encoder": "classic", "width": WIDTH, "seed": seed})

    def encode(self, contents: list[str]) -> Float32:
        """Return the vectors (n, at most 256) of all n titles of a dataset or, once fitted, of any titles."""
        from scipy.sparse import hstack
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        # Words or runs of signs, of any length, so that no title is without a token.
        ngrams: dict[str, dict[str, Any]] = {
            "words": {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]+"},
            "characters": {"ngram_range": (3, 5), "analyzer": "char_wb"},
        }
        arrays, is_fitted, parts = self.fitted_arrays, bool(self.fitted_arrays), []
        for name, options in ngrams.items():
            options = options | {"sublinear_tf": True, "dtype": np.float32}
            if is_fitted:
                vectorizer = TfidfVectorizer(**options, vocabulary=unpack_texts(arrays[name]))
                vectorizer.idf_ = arrays[f"{name}_idf"]
                parts.append(vectorizer.transform(contents))
            else:
                vectorizer = TfidfVectorizer(**options, max_features=MAX_NGRAMS)
                parts.append(vectorizer.fit_transform(contents))
                arrays[name] = pack_texts(vectorizer.get_feature_names_out().tolist())
                arrays[f"{name}_idf"] = vectorizer.idf_
        counts = hstack(parts, format="csr")  # (n, n-grams)
        if not is_fitted:
            width = min(WIDTH, *counts.shape)
            _, _, arrays["axes"] = randomized_svd(counts, width, n_iter=5, random_state=self.settings["seed"])
        return np.asarray(counts @ arrays["axes"].T, dtype=np.float32)


def _histograms(colors: Float32, bins: tuple[int, int, int]) -> Float32:
    """Return joint histograms (n, 4 * bins) of the quarters of pictures (n, SIDE, SIDE, 3) in [0, 1]."""
    levels = np.minimum((colors * bins).astype(np.int64), np.array(bins) - 1).clip(0)
    codes = (levels[..., 0] * bins[1] + levels[..., 1]) * bins[2] + levels[..., 2]
    n, half, size = len(codes), SIDE // 2, int(np.prod(bins))
    quarters = codes.reshape(n, 2, half, 2, half).transpose(0, 1, 3, 2, 4).reshape(4 * n, half * half)
    flat = (quarters + size * np.arange(4 * n)[:, None]).ravel()
    counts = np.bincount(flat, minlength=4 * n * size).reshape(n, 4 * size)
    return (counts / (half * half)).astype(np.float32)


def _check(argument: str, *packages: str) -> None:
    """Raise HafvtError if an argument is given or a package is not installed."""
    if argument:
        raise HafvtError(f"the encoder classic takes no argument, got {argument!r}: give classic alone")
    for package in packages:
        if find_spec(package) is None:
            raise missing_package("classic", package)
