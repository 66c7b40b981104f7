"""A small generated world of two shops, "garments" and "homeware", that share their customers.

Every item is of one kind (a shirt, a mug), has colors and a motif that only its picture shows, and a theme
(Nordic, Retro, ...) and a brand that only its title tells. Every customer likes some palettes, motifs, themes
and brands better than the rest, and the same ones in both shops: what somebody wears tells what plates they
buy. Sometimes the looks decide and sometimes the words, so neither pictures nor titles tell the whole story.
People shop in sessions that wander between the shops; within a session they match what they have just bought,
and some kinds follow upon others (trousers upon a shirt, a plate upon a mug). A few items are popular and
most are not, so many are bought too rarely to be known by their id alone.

A few items have no picture, a few no title, and the ids say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.sources.demo_art import BRANDS, MOTIFS, PALETTES, SHOPS, THEMES, draw_picture, write_title
from hafvt.errors import HafvtError
from hafvt.files import atomic_folder
from hafvt.progress import progress

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

KINDS = 6  # of each shop
LIKES = (3.0, 1.8)  # how much the favorite and the second favorite add to the log-odds of a purchase
MATCHES = 2.4  # what each match with the purchase before adds within a session
FOLLOWS = 1.2  # what it adds to be of the kind that follows upon the purchase before
SKEW = 0.4  # an item's base popularity is its rank to the power -SKEW
SESSION = 0.35  # chance that a purchase opens a session of its own
SHORTEST, LONGEST, MEAN = 8, 30, 16  # purchases of a customer
LEAST = 3  # of them in each shop
MISSING = 0.02  # share of items without a picture; as many others lack a title
CUSTOMERS = 1000  # simulated together, which bounds the memory
LOOKS = 0.5  # how often it is the looks that decide
WRITTEN = {"interactions.csv", "items.csv", "pictures"}
DAY = 86_400
OPENING = 1_640_995_200  # 2022-01-01 in seconds since 1970


@dataclass(frozen=True)
class GeneratedItems:
    """The items of both shops, one entry each: first those of one shop, then those of the other.

    Attributes:
        shop: (n,) 0 or 1.
        kind: (n,) below KINDS.
        palette: (n,) number of the palette.
        motif: (n,) number of the motif.
        theme: (n,) number of the theme.
        brand: (n,) number of the brand.
        appeal: (n,) log of the base popularity.
    """

    shop: Int
    kind: Int
    palette: Int
    motif: Int
    theme: Int
    brand: Int
    appeal: Float

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self.shop)

    @property
    def tastes(self) -> tuple[tuple[Int, int], ...]:
        """Attributes that are to taste and how many values each has: two of words, then two of looks."""
        words = (self.theme, len(THEMES)), (self.brand, len(BRANDS))
        return *words, (self.palette, len(PALETTES)), (self.motif, len(MOTIFS))


def generate_world(
    folder: str | Path, *, users: int = 3000, items_per_shop: int = 400, seed: int = 0
) -> tuple[Path, Path]:
    """Writes the world to a new folder: `interactions.csv`, `items.csv` and `pictures/`.

    Args:
        folder: where to; what is there is replaced if it is nothing but an earlier world.
        users: number of customers.
        items_per_shop: number of items of each of the two shops.
        seed: the same seed gives the same bytes.

    Returns:
        The path of the interactions (user_id, item_id, timestamp in seconds since 1970) and that of the items
        (item_id, domain, title, image as a path relative to the folder).

    Raises:
        HafvtError: the folder holds something else, a number is too small, or Pillow is missing.
    """
    folder = Path(folder)
    if users < 1 or items_per_shop < LONGEST:
        raise HafvtError(
            f"a demo world needs at least 1 user and {LONGEST} items per shop: raise the numbers"
        )
    if folder.exists() and {path.name for path in folder.iterdir()} - WRITTEN:
        raise HafvtError(f"{folder} is not empty: choose another folder for the demo world or empty it")
    of_items, of_users = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    items = invent_items(items_per_shop, of_items)
    item_ids = opaque_ids("i", len(items), of_items)
    user_ids = opaque_ids("u", users, of_users)
    with atomic_folder(folder, overwrite=True) as temporary:
        describe_items(items, item_ids, temporary, of_items).write_csv(temporary / "items.csv")
        rows = []
        with progress("customers go shopping", users, "users") as advance:
            for start in range(0, users, CUSTOMERS):
                customers = user_ids[start : start + CUSTOMERS]
                bought, times = go_shopping(items, len(customers), of_users)
                who, when = np.nonzero(bought >= 0)
                ids = {"user_id": customers[who], "item_id": item_ids[bought[who, when]]}
                rows.append(pl.DataFrame({**ids, "timestamp": times[who, when]}))
                advance(len(customers))
        pl.concat(rows).sort("timestamp", maintain_order=True).write_csv(temporary / "interactions.csv")
    return folder / "interactions.csv", folder / "items.csv"


def invent_items(per_shop: int, random: np.random.Generator) -> GeneratedItems:
    """Returns `per_shop` items of each shop, each attribute drawn apart from the others."""
    n = 2 * per_shop
    ranks = np.concatenate([random.permutation(per_shop), random.permutation(per_shop)])
    return GeneratedItems(
        shop=np.repeat([0, 1], per_shop),
        kind=random.integers(KINDS, size=n),
        palette=random.integers(len(PALETTES), size=n),
        motif=random.integers(len(MOTIFS), size=n),
        theme=random.integers(len(THEMES), size=n),
        brand=random.integers(len(BRANDS), size=n),
        appeal=-SKEW * np.log(1.0 + ranks),
    )


def opaque_ids(letter: str, n: int, random: np.random.Generator) -> npt.NDArray[np.str_]:
    """Returns `n` different ids in no order: a letter and six digits."""
    return np.array([f"{letter}{number:06}" for number in random.permutation(max(10**6, n))[:n]])


def describe_items(
    items: GeneratedItems, item_ids: npt.NDArray[np.str_], folder: Path, random: np.random.Generator
) -> pl.DataFrame:
    """Draws the pictures into `folder`/pictures; returns item_id, domain, title and image of every item."""
    (folder / "pictures").mkdir()
    round_up_width = max(1, round(MISSING * len(items)))
    odd = random.permutation(len(items))
    blind, nameless = (
        set(odd[:round_up_width].tolist()),
        set(odd[round_up_width : 2 * round_up_width].tolist()),
    )
    rows = []
    shops = list(SHOPS.items())
    with progress("drawing pictures", len(items), "items") as advance:
        for item, item_id in enumerate(item_ids):
            domain, kinds = shops[items.shop[item]]
            kind = kinds[items.kind[item]]
            title = write_title(kind, int(items.theme[item]), int(items.brand[item]), random)
            picture = draw_picture(kind, int(items.palette[item]), int(items.motif[item]), random)
            image = None if item in blind else f"pictures/{item_id}.jpg"
            if image:
                picture.save(folder / image, quality=88)
            rows.append((str(item_id), domain, None if item in nameless else title, image))
            advance(1)
    return pl.DataFrame(rows, schema=["item_id", "domain", "title", "image"], orient="row").sort("item_id")


def favorites(users: int, n: int, random: np.random.Generator) -> Float:
    """Returns what each of `n` values adds for each user, (users, n): something for two of them, else 0."""
    likes = np.zeros(n)
    likes[: len(LIKES)] = LIKES
    return likes[random.random((users, n)).argsort(axis=1)]


def go_shopping(items: GeneratedItems, users: int, random: np.random.Generator) -> tuple[Int, Int]:
    """Lets customers shop.

    Returns:
        What they bought, oldest first, (users, LONGEST), -1 after the last purchase, and when, in seconds.
    """
    lengths = np.minimum(SHORTEST + random.geometric(1 / (MEAN - SHORTEST + 1), users) - 1, LONGEST)
    liking = np.tile(items.appeal, (2, users, 1))  # (motives, users, items)
    for number, (values, n) in enumerate(items.tastes):
        liking[number // 2] += favorites(users, n, random)[:, values]
    shops = plan_visits(lengths, random)
    opens = random.random((users, LONGEST)) < SESSION  # this purchase opens a session
    motives = (random.random((users, LONGEST)) < LOOKS).astype(np.int64)  # 0: words decide, 1: looks
    bought = np.full((users, LONGEST), -1)
    for step in range(LONGEST):
        for shop in (0, 1):
            rows = np.flatnonzero((shops[:, step] == shop) & (step < lengths))
            goods = np.flatnonzero(items.shop == shop)
            motive = motives[rows, step]
            odds = liking[motive[:, None], rows[:, None], goods]
            if step > 0:
                odds += influence(items, goods, bought[rows, step - 1], motive, ~opens[rows, step])
            odds += random.gumbel(size=odds.shape)  # the largest is now a draw from the softmax
            bought[rows, step] = goods[odds.argmax(axis=1)]
        now = np.flatnonzero(step < lengths)
        liking[:, now, bought[now, step]] = -np.inf  # nobody buys the same item twice
    return bought, clock(opens, random)


def plan_visits(lengths: Int, random: np.random.Generator) -> Int:
    """Returns the shop of every purchase, (users, LONGEST), at least LEAST in each within the length."""
    share = random.beta(3, 3, len(lengths))
    first = np.clip(np.round(share * lengths), LEAST, lengths - LEAST)  # purchases in shop 0
    order = random.random((len(lengths), LONGEST))
    order[np.arange(LONGEST) >= lengths[:, None]] = np.inf
    return (order.argsort(axis=1).argsort(axis=1) >= first[:, None]).astype(np.int64)


def influence(items: GeneratedItems, goods: Int, before: Int, motive: Int, same_session: Bool) -> Float:
    """Returns what the purchase before adds to the log-odds of each of `goods`, (users, goods)."""
    added: Float = FOLLOWS * (items.kind[goods] == (items.kind[before][:, None] + 1) % KINDS)
    for number, (values, _) in enumerate(items.tastes):
        counts = same_session & (motive == number // 2)
        added += MATCHES * (counts[:, None] & (values[goods] == values[before][:, None]))
    return added


def clock(opens: Bool, random: np.random.Generator) -> Int:
    """Returns the time of every purchase: minutes apart within a session, days between sessions."""
    minutes = random.integers(20, 30 * 60, opens.shape) * (random.random(opens.shape) > 0.01)  # else a tie
    gaps = np.where(opens, random.integers(DAY // 2, 30 * DAY, opens.shape), minutes)
    gaps[:, 0] = OPENING + random.integers(0, 365 * DAY, len(opens))
    return gaps.cumsum(axis=1)
