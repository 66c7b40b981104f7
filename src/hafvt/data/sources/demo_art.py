"""Images and titles of the items of the demo world.

An image is a silhouette (the kind of item) filled with a motif in the colors of a palette. A title names the
kind, the brand, and words of a theme. Images show neither theme nor brand; titles name neither palette nor
motif.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.errors import missing_package

if TYPE_CHECKING:
    from PIL import Image

Float = npt.NDArray[np.float64]

SIZE = 128  # pixels, width and height
NOISE = 7.0  # standard deviation of the pixel noise, in gray levels
OTHER_THEME_PROBABILITY = 0.1  # that a word of a title comes from a random theme

PALETTES: tuple[tuple[str, str], ...] = (  # background, foreground
    ("#e4572e", "#ffe8c9"),
    ("#17408b", "#8fc9f0"),
    ("#1f6f4a", "#c4e8b2"),
    ("#e8b21d", "#6b3d10"),
    ("#7b2a8c", "#f3a9cf"),
    ("#2b2f36", "#e9e4da"),
    ("#0f9a97", "#f58a3c"),
    ("#a3142b", "#d8c3a0"),
)


class Theme(NamedTuple):
    """Words of titles, the same in both shops."""

    styles: tuple[str, str]
    materials: tuple[str, str]


THEMES = (
    Theme(("Nautical", "Breezy"), ("sailcloth", "driftwood")),
    Theme(("Nordic", "Hushed"), ("birch", "felt")),
    Theme(("Moorish", "Gilded"), ("brass", "kilim")),
    Theme(("Rustic", "Farmhouse"), ("oak", "burlap")),
    Theme(("Retro", "Diner"), ("vinyl", "chrome")),
    Theme(("Botanical", "Wildflower"), ("rattan", "hemp")),
    Theme(("Industrial", "Workshop"), ("steel", "canvas")),
    Theme(("Alpine", "Chalet"), ("fleece", "pine")),
)
BRANDS = ("Saltmarsh", "Lumi", "Zellige", "Hayloft", "Rivet", "Kinari", "Orbit", "Palais")

TEMPLATES = (
    "{style} {material} {noun} by {brand}",
    "{brand} {noun}, {style} {material}",
    "{noun} in {material} - {style}, {brand}",
)


class Kind(NamedTuple):
    """A kind of item: its two names in titles, and its silhouette.

    `outline` has the parts of the silhouette, "x,y x,y ...; x,y ...", in percent of the image, x to the right
    and y down: the corners of a polygon, or two opposite corners of the box around an ellipse.
    """

    noun: str
    synonym: str
    outline: str


SHOPS: dict[str, tuple[Kind, ...]] = {
    "garments": (
        Kind("shirt", "tee", "30,10 42,17 58,17 70,10 96,32 84,46 74,38 74,92 26,92 26,38 16,46 4,32"),
        Kind("trousers", "slacks", "25,5 75,5 86,95 58,95 50,36 42,95 14,95"),
        Kind("scarf", "shawl", "14,4 86,46; 22,28 48,38 42,80 14,76; 52,38 78,28 90,92 60,96"),
        Kind("hat", "cap", "2,56 98,90; 22,10 78,84"),
        Kind("dress", "gown", "34,5 44,15 56,15 66,5 68,42 92,95 8,95 32,42"),
        Kind("tote", "bag", "12,36 88,36 94,95 6,95; 28,36 34,5 66,5 72,36 64,36 60,14 40,14 36,36"),
    ),
    "homeware": (
        Kind("mug", "cup", "10,14 70,14 66,90 14,90; 70,26 94,32 92,68 67,76 68,64 80,59 82,42 69,38"),
        Kind("plate", "platter", "3,3 97,97"),
        Kind("cushion", "pillow", "4,6 50,13 96,6 88,50 96,94 50,87 4,94 12,50"),
        Kind("lamp", "lampshade", "30,5 70,5 95,60 5,60; 45,60 55,60 55,90 45,90; 26,84 74,97"),
        Kind("vase", "jug", "36,4 64,4 59,24 86,56 70,96 30,96 14,56 41,24"),
        Kind("rug", "runner", "18,4 82,4 82,96 18,96"),
    ),
}


def _distance(x: Float) -> Float:
    """Return the distance of `x` to the center of its unit cell, 0 to 0.5."""
    return np.abs(x - np.floor(x) - 0.5)


MOTIFS: dict[str, Callable[[Float, Float], Float]] = {  # positive in the foreground
    "stripes": lambda x, y: 0.25 - _distance(y),
    "pinstripes": lambda x, y: 0.16 - _distance(1.5 * x),
    "diagonals": lambda x, y: 0.25 - _distance(0.8 * (x + y)),
    "dots": lambda x, y: 0.3 - np.hypot(_distance(x), _distance(y)),
    "checks": lambda x, y: 24 * (_distance(x / 2) - 0.25) * (_distance(y / 2) - 0.25),
    "zigzag": lambda x, y: 0.22 - _distance(y + _distance(x)),
    "rings": lambda x, y: 0.22 - _distance(np.hypot(x - 3, y - 3)),
    "lattice": lambda x, y: np.maximum(0.09 - _distance((x + y) / 2), 0.09 - _distance((x - y) / 2)),
}


@cache
def _silhouette(kind: Kind) -> Image.Image:
    """Return a gray image that is white inside the silhouette, with soft edges."""
    from PIL import Image, ImageDraw

    big = 4 * SIZE
    mask = Image.new("L", (big, big))
    draw = ImageDraw.Draw(mask)
    for part in kind.outline.split("; "):
        percent = np.array([corner.split(",") for corner in part.split()], dtype=float)
        corners = [(x, y) for x, y in big * (0.08 + 0.84 * percent / 100)]
        if len(corners) == 2:
            draw.ellipse(corners, fill=255)
        else:
            draw.polygon(corners, fill=255)
    return mask.resize((SIZE, SIZE), Image.Resampling.BOX)


def draw_picture(kind: Kind, palette: int, motif: int, random: np.random.Generator) -> Image.Image:
    """Draw an item as an RGB image of SIZE x SIZE pixels with random scale, angle, position, tint and noise.

    `palette` and `motif` are numbers in `PALETTES` and `MOTIFS`; the kind gives the silhouette.

    Raises:
        HafvtError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageColor
    except ImportError:
        raise missing_package("classic", "pillow") from None
    rotation, scale, tilt = random.uniform(-0.08, 0.08), random.uniform(5.5, 6.5), random.uniform(-4, 4)
    down, right = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    x = 3 + scale * (right * np.cos(rotation) + down * np.sin(rotation)) + random.uniform(-0.15, 0.15)
    y = 3 + scale * (down * np.cos(rotation) - right * np.sin(rotation)) + random.uniform(-0.15, 0.15)
    foreground = np.clip(0.5 + 12 * list(MOTIFS.values())[motif](x, y), 0, 1)[..., None]
    colors = np.array([ImageColor.getrgb(color) for color in PALETTES[palette]])
    colors = colors + random.normal(0, 14, (2, 3))
    shading = (1.05 - 0.25 * (down + 0.5))[..., None]
    filled = (colors[0] * (1 - foreground) + colors[1] * foreground) * shading
    silhouette = _silhouette(kind).rotate(tilt, Image.Resampling.BILINEAR)
    inside = np.asarray(silhouette, dtype=float)[..., None] / 255
    wall = random.uniform(228, 246) + random.normal(0, 3, 3)
    pixels = wall * (1 - inside) + filled * inside + random.normal(0, NOISE, (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def write_title(kind: Kind, theme: int, brand: int, random: np.random.Generator) -> str:
    """Return a title of an item: its brand and words of its theme, sometimes of another theme."""

    def word(part: str) -> str:
        is_other = random.random() < OTHER_THEME_PROBABILITY
        source = THEMES[random.integers(len(THEMES)) if is_other else theme]
        return str(random.choice(getattr(source, part)))

    title = str(random.choice(TEMPLATES)).format(
        style=word("styles"),
        material=word("materials"),
        brand=BRANDS[brand],
        noun=random.choice((kind.noun, kind.synonym)),
    )
    return title[0].upper() + title[1:]
