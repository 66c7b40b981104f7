"""A small generated world of two shops, "garments" and "homeware", that share their customers.

Each item has a kind (shirt, mug), a palette and a motif that only its image shows, and a theme (Nordic,
Retro) and a brand that only its title names. Each customer prefers some palettes, motifs, themes and brands,
the same ones in both shops, so that purchases in one shop predict those in the other. Each purchase is
decided either by looks or by words, so that neither images nor titles suffice. Customers shop in sessions
that alternate between the shops. Within a session they match their previous purchase, and some kinds follow
others (trousers a shirt, a plate a mug). A few items are popular; most are bought too rarely to be learned
by id alone. A few items lack an image, a few a title, and ids are random.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Bool, Int64
from hafvt.data.sources.checks import SECONDS_PER_DAY
from hafvt.data.sources.demo_art import BRANDS, MOTIFS, PALETTES, SHOPS, THEMES, draw_picture, write_title
from hafvt.errors import ArgumentError
from hafvt.files import write_json
from hafvt.folders import FolderKind, atomic_folder, check_output_folder
from hafvt.progress import progress

Float = npt.NDArray[np.float64]

KINDS_PER_SHOP = 6
FAVORITE_LOG_ODDS = (3.0, 1.8)  # added to the log-odds of a purchase by the favorite and the second favorite
MATCH_LOG_ODDS = 2.4  # added by each match with the previous purchase of the session
FOLLOW_LOG_ODDS = 1.2  # added for the kind that follows the kind of the previous purchase
POPULARITY_EXPONENT = -0.4  # an item's base popularity is its rank to this power
NEW_SESSION_PROBABILITY = 0.35
LOOKS_PROBABILITY = 0.5  # that looks decide a purchase
MIN_PURCHASES, MAX_PURCHASES, MEAN_PURCHASES = 8, 30, 16  # of a customer
MIN_PER_SHOP = 3  # purchases of a customer in each shop
MAX_PER_SHOP = 10_000  # items of a shop; customers are simulated in 32 KiB per item
MISSING_SHARE = 0.02  # share of items without an image; as many others lack a title
CUSTOMERS_PER_CHUNK = 1000  # simulated together, which bounds the memory
WORLD = FolderKind("a demo world", "world.json", ("interactions.csv", "items.csv", "pictures"))
START_TIME = 1_640_995_200  # 2022-01-01 in seconds since 1970


@dataclass(frozen=True)
class GeneratedItems:
    """The items of both shops, those of the first shop first.

    `shop` is 0 or 1, `kind` a number within the shop, and `palette`, `motif`, `theme` and `brand` are numbers
    in the lists of `demo_art`. `log_popularity` is the log of the base popularity. All have the shape (n,).
    """

    shop: Int64
    kind: Int64
    palette: Int64
    motif: Int64
    theme: Int64
    brand: Int64
    log_popularity: Float

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.shop)

    @property
    def preferences(self) -> tuple[tuple[Int64, int], ...]:
        """Attributes with preferences and their numbers of values: two of words, then two of looks."""
        words = (self.theme, len(THEMES)), (self.brand, len(BRANDS))
        return *words, (self.palette, len(PALETTES)), (self.motif, len(MOTIFS))


def generate_world(
    folder: str | Path, *, users: int = 3000, items_per_shop: int = 400, seed: int = 0
) -> tuple[Path, Path]:
    """Write the world to a folder: `interactions.csv`, `items.csv`, `pictures/` and `world.json`.

    Args:
        folder: the folder to write; an earlier world in it is replaced.
        users: number of customers.
        items_per_shop: number of items of each of the two shops.
        seed: the same seed gives the same bytes.

    Returns:
        The paths of the interactions (user_id, item_id, timestamp in seconds since 1970) and of the items
        (item_id, domain, title, image as a path relative to the folder), as `prepare` takes them.

    Raises:
        HafvtError: the folder has other files, a number is too small, or Pillow is missing.
    """
    folder = Path(folder)
    if users < 1 or not MAX_PURCHASES <= items_per_shop <= MAX_PER_SHOP:
        raise ArgumentError(
            f"a demo world needs at least 1 user and {MAX_PURCHASES} to {MAX_PER_SHOP} items per shop: "
            "choose such numbers"
        )
    check_output_folder(folder, WORLD, overwrite=True)
    item_random, user_random = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    items = generate_items(items_per_shop, item_random)
    item_ids = random_ids("i", len(items), item_random)
    user_ids = random_ids("u", users, user_random)
    with atomic_folder(folder, WORLD, overwrite=True) as temporary:
        draw_items(items, item_ids, temporary, item_random).write_csv(temporary / "items.csv")
        frames = []
        with progress("simulating customers", users, "users") as advance:
            for start in range(0, users, CUSTOMERS_PER_CHUNK):
                customers = user_ids[start : start + CUSTOMERS_PER_CHUNK]
                purchases, times = simulate_purchases(items, len(customers), user_random)
                rows, steps = np.nonzero(purchases >= 0)
                ids = {"user_id": customers[rows], "item_id": item_ids[purchases[rows, steps]]}
                frames.append(pl.DataFrame({**ids, "timestamp": times[rows, steps]}))
                advance(len(customers))
        pl.concat(frames).sort("timestamp", maintain_order=True).write_csv(temporary / "interactions.csv")
        settings = {"users": users, "items_per_shop": items_per_shop, "seed": seed}
        write_json(temporary / WORLD.marker, {"format": 1, **settings})
    return folder / "interactions.csv", folder / "items.csv"


def generate_items(per_shop: int, random: np.random.Generator) -> GeneratedItems:
    """Return `per_shop` items of each shop, with independent attributes."""
    n = 2 * per_shop
    ranks = np.concatenate([random.permutation(per_shop), random.permutation(per_shop)])
    return GeneratedItems(
        shop=np.repeat([0, 1], per_shop),
        kind=random.integers(KINDS_PER_SHOP, size=n),
        palette=random.integers(len(PALETTES), size=n),
        motif=random.integers(len(MOTIFS), size=n),
        theme=random.integers(len(THEMES), size=n),
        brand=random.integers(len(BRANDS), size=n),
        log_popularity=POPULARITY_EXPONENT * np.log(1.0 + ranks),
    )


def random_ids(letter: str, n: int, random: np.random.Generator) -> npt.NDArray[np.str_]:
    """Return `n` distinct ids in random order: a letter and six digits."""
    return np.array([f"{letter}{number:06}" for number in random.permutation(max(10**6, n))[:n]])


def draw_items(
    items: GeneratedItems, item_ids: npt.NDArray[np.str_], folder: Path, random: np.random.Generator
) -> pl.DataFrame:
    """Draw the images into `folder`/pictures; return item_id, domain, title and image of each item."""
    (folder / "pictures").mkdir()
    num_missing = max(1, round(MISSING_SHARE * len(items)))
    order = random.permutation(len(items)).tolist()
    without_image, without_title = set(order[:num_missing]), set(order[num_missing : 2 * num_missing])
    rows = []
    with progress("drawing pictures", len(items), "items") as advance:
        for item, item_id in enumerate(item_ids.tolist()):
            domain = list(SHOPS)[items.shop[item]]
            kind = SHOPS[domain][items.kind[item]]
            title = write_title(kind, int(items.theme[item]), int(items.brand[item]), random)
            picture = draw_picture(kind, int(items.palette[item]), int(items.motif[item]), random)
            image = None if item in without_image else f"pictures/{item_id}.jpg"
            if image:
                picture.save(folder / image, quality=88)
            rows.append((item_id, domain, None if item in without_title else title, image))
            advance(1)
    return pl.DataFrame(rows, schema=["item_id", "domain", "title", "image"], orient="row").sort("item_id")


def draw_preferences(users: int, num_values: int, random: np.random.Generator) -> Float:
    """Return the log-odds that each value of an attribute adds for each user, (users, num_values)."""
    log_odds = np.zeros(num_values)
    log_odds[: len(FAVORITE_LOG_ODDS)] = FAVORITE_LOG_ODDS
    return log_odds[random.random((users, num_values)).argsort(axis=1)]


def simulate_purchases(items: GeneratedItems, users: int, random: np.random.Generator) -> tuple[Int64, Int64]:
    """Return the items that customers buy, oldest first, and the times in seconds.

    Both have the shape (users, MAX_PURCHASES). The item is -1 after the last purchase of a customer.
    """
    lengths = MIN_PURCHASES + random.geometric(1 / (MEAN_PURCHASES - MIN_PURCHASES + 1), users) - 1
    lengths = np.minimum(lengths, MAX_PURCHASES)
    base_log_odds = np.tile(items.log_popularity, (2, users, 1))  # (words or looks, users, items)
    for number, (values, num_values) in enumerate(items.preferences):
        base_log_odds[number // 2] += draw_preferences(users, num_values, random)[:, values]
    shops = plan_shops(lengths, random)
    opens_session = random.random((users, MAX_PURCHASES)) < NEW_SESSION_PROBABILITY
    # what decides each purchase: 0 for words, 1 for looks
    motives = (random.random((users, MAX_PURCHASES)) < LOOKS_PROBABILITY).astype(np.int64)
    purchases = np.full((users, MAX_PURCHASES), -1)
    for step in range(MAX_PURCHASES):
        for shop in (0, 1):
            rows = np.flatnonzero((shops[:, step] == shop) & (step < lengths))
            candidates = np.flatnonzero(items.shop == shop)
            motive = motives[rows, step]
            log_odds = base_log_odds[motive[:, None], rows[:, None], candidates]  # (rows, candidates)
            if step > 0:
                previous, same_session = purchases[rows, step - 1], ~opens_session[rows, step]
                log_odds += previous_log_odds(items, candidates, previous, motive, same_session)
            log_odds += random.gumbel(size=log_odds.shape)  # the maximum is then a draw from the softmax
            purchases[rows, step] = candidates[log_odds.argmax(axis=1)]
        rows = np.flatnonzero(step < lengths)
        base_log_odds[:, rows, purchases[rows, step]] = -np.inf  # nobody buys an item twice
    return purchases, draw_times(opens_session, random)


def plan_shops(lengths: Int64, random: np.random.Generator) -> Int64:
    """Return the shop of each purchase, (users, MAX_PURCHASES), each shop at least MIN_PER_SHOP times."""
    share = random.beta(3, 3, len(lengths))
    num_first = np.clip(np.round(share * lengths), MIN_PER_SHOP, lengths - MIN_PER_SHOP)  # in shop 0
    order = random.random((len(lengths), MAX_PURCHASES))
    order[np.arange(MAX_PURCHASES) >= lengths[:, None]] = np.inf
    return (order.argsort(axis=1).argsort(axis=1) >= num_first[:, None]).astype(np.int64)


def previous_log_odds(
    items: GeneratedItems, candidates: Int64, previous: Int64, motive: Int64, same_session: Bool
) -> Float:
    """Return what the previous purchase adds to the log-odds of each candidate, (users, candidates)."""
    follows = items.kind[candidates] == (items.kind[previous][:, None] + 1) % KINDS_PER_SHOP
    log_odds: Float = FOLLOW_LOG_ODDS * follows
    for number, (values, _) in enumerate(items.preferences):
        counts = same_session & (motive == number // 2)
        log_odds += MATCH_LOG_ODDS * (counts[:, None] & (values[candidates] == values[previous][:, None]))
    return log_odds


def draw_times(opens_session: Bool, random: np.random.Generator) -> Int64:
    """Return the time of each purchase: minutes apart within a session, days between sessions."""
    shape = opens_session.shape
    short_gaps = random.integers(20, 30 * 60, shape) * (random.random(shape) > 0.01)  # 0 makes equal times
    long_gaps = random.integers(SECONDS_PER_DAY // 2, 30 * SECONDS_PER_DAY, shape)
    gaps = np.where(opens_session, long_gaps, short_gaps)
    gaps[:, 0] = START_TIME + random.integers(0, 365 * SECONDS_PER_DAY, len(gaps))
    return gaps.cumsum(axis=1)
