"""Results as HTML with pictures, for notebooks; pictures are part of the HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import escape

from hafvt.errors import HafvtError
from hafvt.features.images import thumbnail_data_uri
from hafvt.inference.catalog import Item

SIDE = 120  # largest width and height of a picture, in pixels
CARD = f"width:{SIDE}px;margin:0;font-size:12px;overflow-wrap:anywhere"
PICTURE = f"height:{SIDE}px;display:flex;align-items:center;justify-content:center"


def item_cards(items: Iterable[tuple[Item, str]]) -> str:
    """Return items in a row, each as its picture, title, id and a line of text."""
    cards = "".join(item_card(item, text) for item, text in items)
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{cards}</div>'


def item_card(item: Item, text: str) -> str:
    """Return an item as its picture, title, id and a line of text."""
    picture = None
    if item.image:
        with suppress(HafvtError):  # pillow is missing
            picture = thumbnail_data_uri(item.image_folder, item.image, SIDE)
    image = f'<img src="{picture}" alt="">' if picture else ""
    title = f"{escape(item.title)}<br>" if item.title else ""
    caption = f"<figcaption>{title}<small>{escape(item.item_id)}<br>{escape(text)}</small></figcaption>"
    return f'<figure style="{CARD}"><div style="{PICTURE}">{image}</div>{caption}</figure>'


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is the header."""
    header, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    lines = "".join(f"<tr>{cells}</tr>" for cells in body)
    return f"<table><thead><tr>{header.replace('td>', 'th>')}</tr></thead><tbody>{lines}</tbody></table>"


def paragraphs(lines: Iterable[str]) -> str:
    """Return lines of text as paragraphs."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
