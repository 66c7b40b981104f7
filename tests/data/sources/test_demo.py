from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hafvt.data.sources.demo import KINDS_PER_SHOP, MAX_PURCHASES, MIN_PER_SHOP, MIN_PURCHASES, generate_world
from hafvt.data.sources.demo_art import BRANDS, MOTIFS, PALETTES, SHOPS, THEMES, draw_picture, write_title
from hafvt.errors import HafvtError

Image = pytest.importorskip("PIL.Image")

USERS, PER_SHOP = 200, 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "world"
    assert generate_world(folder, users=USERS, items_per_shop=PER_SHOP, seed=3) == (
        folder / "interactions.csv",
        folder / "items.csv",
    )
    return folder


@pytest.fixture(scope="module")
def tables(world: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_csv(world / "interactions.csv"), pl.read_csv(world / "items.csv")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_generate_world_same_seed_gives_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_world(tmp_path / name, users=20, items_per_shop=30, seed=seed)
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    assert first["interactions.csv"] != contents(tmp_path / "c")["interactions.csv"]


def test_generate_world_tables_have_the_documented_columns_and_rows(
    tables: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    interactions, items = tables
    assert interactions.columns == ["user_id", "item_id", "timestamp"]
    assert items.columns == ["item_id", "domain", "title", "image"]
    assert items["item_id"].is_unique().all()
    assert dict(items["domain"].value_counts().iter_rows()) == dict.fromkeys(SHOPS, PER_SHOP)
    assert set(interactions["item_id"]) <= set(items["item_id"])
    assert interactions["user_id"].n_unique() == USERS
    assert not interactions.select("user_id", "item_id").is_duplicated().any()  # nobody buys twice


def test_generate_world_histories_have_the_documented_lengths(
    tables: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    joined = tables[0].join(tables[1], on="item_id")
    lengths = joined["user_id"].value_counts()["count"]
    assert MIN_PURCHASES <= lengths.min() < 12  # type: ignore[operator]
    assert 20 < lengths.max() <= MAX_PURCHASES  # type: ignore[operator]
    by_shop = joined.group_by("user_id", "domain").len()
    assert len(by_shop) == 2 * USERS
    assert by_shop["len"].min() >= MIN_PER_SHOP  # type: ignore[operator]


def test_generate_world_times_ascend_and_shops_alternate(tables: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    joined = tables[0].join(tables[1], on="item_id", maintain_order="left")
    steps = joined.group_by("user_id", maintain_order=True).agg(
        gap=pl.col("timestamp").diff(), moved=pl.col("domain") != pl.col("domain").shift()
    )
    gaps = np.array(steps["gap"].explode().drop_nulls())
    moved = steps["moved"].explode().drop_nulls()
    assert (gaps >= 0).all()
    assert (gaps == 0).mean() < 0.03
    assert 0.25 < moved.mean() < 0.75  # type: ignore[operator]


def test_generate_world_every_listed_image_opens(
    world: Path, tables: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    images = tables[1]["image"].drop_nulls()
    assert {f"pictures/{p.name}" for p in (world / "pictures").iterdir()} == set(images)
    sizes = {Image.open(world / image).size for image in images}
    assert len(sizes) == 1
    assert 1 <= tables[1]["image"].null_count() <= 4
    assert 1 <= tables[1]["title"].null_count() <= 4


def test_generate_world_popularity_is_skewed(tables: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    counts = np.sort(tables[0]["item_id"].value_counts()["count"].to_numpy())[::-1]
    assert counts[: PER_SHOP // 5].sum() > 0.15 * counts.sum()
    assert counts[0] > 2 * np.median(counts)


def test_generate_world_preferences_are_shared_across_shops(
    tables: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    """Whoever buys a theme in one shop buys it in the other more often than others do."""
    interactions, items = tables
    words = [(*t.styles, *t.materials) for t in THEMES]
    themes = {
        row["item_id"]: max(range(len(THEMES)), key=lambda t: sum(w in row["title"] for w in words[t]))
        for row in items.drop_nulls("title").iter_rows(named=True)
    }
    joined = interactions.join(items, on="item_id").filter(pl.col("item_id").is_in(list(themes)))
    users = {user: number for number, user in enumerate(joined["user_id"].unique().sort())}
    counts = np.zeros((2, len(users), len(THEMES)))
    for user, item, domain in joined.select("user_id", "item_id", "domain").iter_rows():
        counts[int(domain == "homeware"), users[user], themes[item]] += 1
    here, there = counts - counts.mean(axis=1, keepdims=True)
    assert np.corrcoef(here.ravel(), there.ravel())[0, 1] > 0.15


def inks(picture: object) -> np.ndarray:
    """Returns the mean colors of the darker and of the lighter half of the middle of a picture, (6,)."""
    pixels = np.asarray(picture, dtype=float)[40:90, 40:90].reshape(-1, 3)
    dark = pixels.sum(1) < np.median(pixels.sum(1))
    return np.concatenate([pixels[dark].mean(0), pixels[~dark].mean(0)])


def test_draw_picture_shows_the_palette_and_varies() -> None:
    kind, random = SHOPS["garments"][0], np.random.default_rng(0)
    firsts, seconds = ([draw_picture(kind, p, 0, random) for p in range(len(PALETTES))] for _ in range(2))
    for palette, first in enumerate(firsts):
        assert first.tobytes() != seconds[palette].tobytes()
        distances = [np.abs(inks(first) - inks(second)).sum() for second in seconds]
        assert int(np.argmin(distances)) == palette


def test_draw_picture_and_write_title_support_every_kind_and_motif() -> None:
    random = np.random.default_rng(0)
    for kinds in SHOPS.values():
        assert len(kinds) == KINDS_PER_SHOP
        for kind in kinds:
            for brand, name in enumerate(BRANDS):
                title = write_title(kind, 0, brand, random)
                assert any(noun in title.lower() for noun in (kind.noun, kind.synonym))
                assert name in title
            for motif in range(len(MOTIFS)):
                assert draw_picture(kind, 0, motif, random).mode == "RGB"


def test_generate_world_replaces_only_an_earlier_world(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    generate_world(folder, users=5, items_per_shop=30, seed=0)
    before = contents(folder)
    generate_world(folder, users=5, items_per_shop=30, seed=1)
    assert contents(folder) != before
    (folder / "thesis.txt").write_text("dear")
    with pytest.raises(HafvtError, match=r"holds thesis.txt, which .* would be lost"):
        generate_world(folder, users=5, items_per_shop=30, seed=0)
    assert (folder / "thesis.txt").read_text() == "dear"
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    (tmp_path / "mine" / "pictures" / "me.jpg").write_text("dear")
    with pytest.raises(HafvtError, match="exists and is not a demo world"):
        generate_world(tmp_path / "mine", users=5, items_per_shop=30, seed=0)
    assert (tmp_path / "mine" / "pictures" / "me.jpg").read_text() == "dear"


@pytest.mark.parametrize("numbers", [{"users": 0}, {"items_per_shop": 5}, {"items_per_shop": 10**6}])
def test_generate_world_of_a_wrong_size_is_refused(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(HafvtError, match="at least"):
        generate_world(tmp_path / "world", **numbers)
    assert not (tmp_path / "world").exists()
