from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hafvt.features.encode import encode
from hafvt.features.encoders.classic import BLOCKS
from hafvt.features.images import open_picture
from hafvt.features.modalities import make_encoder

from .conftest import write_catalog


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_classic_pictures_of_one_kind_are_nearest_neighbors(tmp_path: Path) -> None:
    """The nearest neighbor of each picture has the same pattern, stripes or dots, and color, red or blue."""
    random = np.random.default_rng(0)
    grid = np.arange(96)
    stripes = np.broadcast_to((grid[:, None] // 8) % 2, (96, 96))
    dots = ((grid[:, None] // 12) % 2) * ((grid[None] // 12) % 2)
    kinds, pictures = [], []
    for n in range(24):
        kind = (n % 2, n // 2 % 2)
        color = np.array([(200, 40, 40), (40, 40, 200)][kind[1]])
        pixels = (stripes, dots)[kind[0]][..., None] * color + random.integers(0, 50, (96, 96, 3))
        kinds.append(kind)
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    encoder = make_encoder("image", "classic", "cpu", 0)
    raw = encoder.encode(pictures)
    assert raw.shape == (24, sum(BLOCKS))
    rows = unit(encoder.finish(raw, np.ones(24, dtype=bool)))
    similarity = rows @ rows.T - 2 * np.eye(24)
    assert [kinds[n] for n in similarity.argmax(axis=1)] == kinds


def test_classic_pictures_in_any_batch_give_the_same_rows() -> None:
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (50, 30, 3), dtype=np.uint8)) for _ in range(5)]
    encoder = make_encoder("image", "classic", "cpu", 0)
    in_one_batch = encoder.encode(pictures)
    one_by_one = np.concatenate([encoder.encode([picture]) for picture in pictures])
    np.testing.assert_array_equal(in_one_batch, one_by_one)


def test_classic_pictures_histograms_count_the_pixels_of_each_quarter() -> None:
    pixels = np.zeros((96, 96, 3), dtype=np.uint8)
    pixels[:48, 48:] = (255, 0, 0)
    row = make_encoder("image", "classic", "cpu", 0).encode([Image.fromarray(pixels)])[0]
    quarters = np.square(row[BLOCKS[0] : BLOCKS[0] + BLOCKS[1]]).reshape(4, -1)
    np.testing.assert_allclose(quarters.sum(axis=1), 1, rtol=1e-5)
    assert (quarters[1] != quarters[0]).any()
    np.testing.assert_array_equal(quarters[[0, 0]], quarters[[2, 3]])


def test_classic_pictures_fit_ignores_absent_pictures() -> None:
    random = np.random.default_rng(0)
    raw = random.random((30, sum(BLOCKS)), dtype=np.float32)
    present = np.arange(30) % 3 != 0
    raw[~present] = 0
    encoder = make_encoder("image", "classic", "cpu", 0)
    rows = encoder.finish(raw, present)
    assert not rows[~present].any()
    alone = encoder.finish(raw[present], np.ones(20, dtype=bool))
    # Rounding may flip the sign of axes, which does not change products of vectors.
    np.testing.assert_allclose(rows[present] @ rows[present].T, alone @ alone.T, atol=1e-4)


def test_classic_titles_with_shared_word_parts_are_nearest_neighbors() -> None:
    titles = [
        "red lamp",
        "red lamps!",
        "blue chair",
        "Blue Chairs",
        "7",
        "???",
        "night film",
        "a night of films",
    ]
    encoder = make_encoder("title", "classic", "cpu", 0)
    rows = unit(encoder.encode(titles))
    assert np.isfinite(rows).all()
    nearest = (rows @ rows.T - 2 * np.eye(len(titles))).argmax(axis=1)
    assert nearest[[0, 1, 2, 3, 6, 7]].tolist() == [1, 0, 3, 2, 7, 6]


@pytest.mark.parametrize("titles", [["x"], ["same", "same", "same"], ["x", "y", None]])
def test_classic_titles_of_very_few_items_are_encoded(tmp_path: Path, titles: list[str | None]) -> None:
    data = write_catalog(tmp_path / "data", titles, [None] * len(titles), None)
    table = encode(data, title="classic")["title"]
    assert table.present.tolist() == [title is not None for title in titles]
    assert table.rows.shape[1] <= len(titles)


@pytest.mark.slow
def test_classic_pictures_of_real_posters_agree_with_genres(shared_data: Path) -> None:
    folder = shared_data / "movielens-posters"
    items = pl.read_csv(folder / "items.csv").drop_nulls("image")[::5]
    encoder = make_encoder("image", "classic", "cpu", 0)
    raw = encoder.encode([open_picture(folder, value) for value in items["image"]])
    rows = unit(encoder.finish(raw, np.ones(len(items), dtype=bool)))
    nearest = np.argsort(-(rows @ rows.T - 2 * np.eye(len(rows))), axis=1)[:, :10]
    action = (items["domain"] == "action").to_numpy()
    agree = (action[nearest] == action[:, None]).mean()
    chance = (action.mean() ** 2) + (1 - action.mean()) ** 2
    assert agree > chance + 0.03  # 442 posters: 0.04 above chance is eight standard errors
