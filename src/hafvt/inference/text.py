"""Answers and explanations as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hafvt.tables import align_columns

if TYPE_CHECKING:
    from hafvt.inference.catalog import Item
    from hafvt.inference.recommender import Explanation, Recommendations

MERGED = "all domains"
WIDTH = 50  # characters of a title
ROWS = 10  # items of a history; few of them decide


def of_answer(answer: Recommendations) -> str:
    """Returns a line for each item and one for the unknown ids."""
    rows = [["rank", "item", "title", "score"]]
    for rank, one in enumerate(answer.items, start=1):
        rows.append([str(rank), printable(one.item.item_id), title(one.item), f"{one.score:.4f}"])
    lines = align_columns(rows, 3)
    if answer.by == "popularity":
        lines.append("by popularity: the history has no known item")
    return "\n".join(lines + unknown(answer.unknown))


def of_explanation(told: Explanation) -> str:
    """Returns the shares of sequences and modalities, and the history by attention.

    The attention is that of the merged sequence and of the item's own domain. First stands what weighs most:
    attention times share, summed over these sequences and all modalities.
    """
    item, shares, attention = told.item, told.shares, told.attention
    sequences, modalities = (list(dict.fromkeys(names)) for names in zip(*shares, strict=True))
    rows = [["share of the score in %", *modalities, "together"]]
    for sequence in sequences:
        parts = [shares[sequence, modality] for modality in modalities]
        rows.append([sequence, *percents([*parts, sum(parts)])])
    sums = [sum(shares[sequence, modality] for sequence in sequences) for modality in modalities]
    rows.append(["together", *percents([*sums, sum(sums)])])

    shown = [sequence for sequence in (MERGED, item.domain) if sequence in sequences]
    pairs = [(sequence, modality) for sequence in shown for modality in modalities]
    weights = [
        sum(shares[pair] * attention[pair][slot] for pair in pairs) for slot in range(len(told.history))
    ]
    order = sorted(range(len(weights)), key=lambda slot: -weights[slot])[:ROWS]
    gap = [""] * (len(modalities) - 1)
    read = [["", "attention in %", "", *(cell for sequence in shown for cell in (sequence, *gap))]]
    read.append(["read", "item", "title", *(modality for _, modality in pairs)])
    for slot in order:
        one = told.history[slot]
        values = percents([attention[pair][slot] for pair in pairs])
        read.append([f"{slot + 1}.", printable(one.item_id), title(one), *values])
    more = len(told.history) - len(order)
    return "\n".join(
        [
            f"{printable(item.item_id)}  {title(item)}".rstrip(),
            f"score {told.score:.4f}, rank {told.rank:g} in {item.domain}",
            "",
            *align_columns(rows),
            "",
            *align_columns(read, 3),
            *([f"and {more} more"] if more else []),
            *unknown(told.unknown),
        ]
    )


def unknown(item_ids: Sequence[str]) -> list[str]:
    """Returns a line about unknown ids, none where there are none."""
    if not item_ids:
        return []
    first = ", ".join(repr(item_id[:WIDTH]) for item_id in item_ids[:3])
    return [f"skipped {len(item_ids)} unknown ids: {first}{', ...' if len(item_ids) > 3 else ''}"]


def title(item: Item) -> str:
    """Returns an item's title, cut; nothing where it has none."""
    text = printable(item.title or "")
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def printable(text: str) -> str:
    """Returns a text of the input without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def percents(fractions: Sequence[float]) -> list[str]:
    """Returns 0.1234 as "12.3"."""
    return [f"{100 * fraction:.1f}" for fraction in fractions]
