"""Results of a `Recommender`: recommendations and explanations, and their text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hafvt.inference.catalog import Item
from hafvt.tables import align_columns

ALL_DOMAINS = "all domains"  # name of the merged sequence
MAX_TITLE = 50  # characters of a title, or of an unknown id, in a terminal
MAX_HISTORY_ROWS = 10  # items of a history that an explanation shows


@dataclass(frozen=True)
class ScoredItem:
    """A recommended item and its score; higher is better."""

    item: Item
    score: float


@dataclass(frozen=True)
class Recommendations:
    """The items recommended for one history.

    Attributes:
        items: best first; fewer than k if fewer may be recommended.
        ranked_by: "model", or "popularity" if the history has no known item.
        unknown_ids: ids of the history that the catalog does not have; they were skipped.
        unknown_excluded_ids: ids to exclude that the catalog does not have.
    """

    items: tuple[ScoredItem, ...]
    ranked_by: Literal["model", "popularity"]
    unknown_ids: tuple[str, ...] = ()
    unknown_excluded_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a table with one line per item, and lines about unknown ids."""
        rows = [["rank", "item", "title", "score"]]
        for rank, scored in enumerate(self.items, start=1):
            rows.append([str(rank), *_id_and_title(scored.item), f"{scored.score:.4f}"])
        lines = align_columns(rows, 3)
        if self.ranked_by == "popularity":
            lines.append("by popularity: the history has no known item")
        lines += _unknown_line("skipped {} unknown ids", self.unknown_ids)
        return "\n".join(lines + _unknown_line("{} ids to exclude are unknown", self.unknown_excluded_ids))


@dataclass(frozen=True)
class Explanation:
    """How each branch of a model (a sequence and a modality) contributes to the score of an item.

    Attributes:
        item: the item.
        score: its score, as in `Recommender.recommend`.
        rank: its rank among all items of its domain; ties count half.
        history: the known items that the model read, oldest first.
        shares: fraction of the score by (sequence, modality), summing to 1.
        attention: weights of the items of `history` by (sequence, modality), summing to 1, or to 0 if the
            sequence is empty.
        unknown_ids: see `Recommendations`.
    """

    item: Item
    score: float
    rank: float
    history: tuple[Item, ...]
    shares: dict[tuple[str, str], float] = field(repr=False)
    attention: dict[tuple[str, str], tuple[float, ...]] = field(repr=False)
    unknown_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a table of the shares in per cent, and one of the items with the most attention.

        The second table shows the attention of the merged sequence and of the item's own domain: one column
        for all modalities of a sequence if they have equal attention. Its rows are sorted by attention times
        share, summed over these sequences and all modalities.
        """
        sequences, modalities = (list(dict.fromkeys(names)) for names in zip(*self.shares, strict=True))
        share_rows = [["share of the score in %", *modalities, "total"]]
        for sequence in sequences:
            parts = [self.shares[sequence, modality] for modality in modalities]
            share_rows.append([sequence, *_percents([*parts, sum(parts)])])
        sums = [sum(self.shares[sequence, modality] for sequence in sequences) for modality in modalities]
        share_rows.append(["total", *_percents([*sums, sum(sums)])])

        shown = [sequence for sequence in (ALL_DOMAINS, self.item.domain) if sequence in sequences]
        weights = [
            sum(self.shares[s, m] * self.attention[s, m][slot] for s in shown for m in modalities)
            for slot in range(len(self.history))
        ]
        order = sorted(range(len(weights)), key=lambda slot: -weights[slot])[:MAX_HISTORY_ROWS]
        item_rows = [["", "attention in %", ""], ["read", "item", "title"]]
        item_rows += [[f"{slot + 1}.", *_id_and_title(self.history[slot])] for slot in order]
        for sequence in shown:
            groups: dict[tuple[float, ...], list[str]] = {}  # modalities by attention
            for modality in modalities:
                groups.setdefault(self.attention[sequence, modality], []).append(modality)
            for column, (attention, names) in enumerate(groups.items()):
                labels = ["" if column else sequence, ", ".join(names) if len(groups) > 1 else ""]
                cells = [*labels, *_percents([attention[slot] for slot in order])]
                for row, cell in zip(item_rows, cells, strict=True):
                    row.append(cell)
        num_hidden = len(self.history) - len(order)
        return "\n".join(
            [
                "  ".join(_id_and_title(self.item)).rstrip(),
                f"score {self.score:.4f}, rank {self.rank:g} in {self.item.domain}",
                "",
                *align_columns(share_rows),
                "",
                *align_columns(item_rows, 3),
                *([f"and {num_hidden} more"] if num_hidden else []),
                *_unknown_line("skipped {} unknown ids", self.unknown_ids),
            ]
        )


def _unknown_line(text: str, item_ids: Sequence[str]) -> list[str]:
    """Return a line of text, in which {} is the number of ids, with examples; no line without any ids."""
    if not item_ids:
        return []
    examples = ", ".join(repr(item_id[:MAX_TITLE]) for item_id in item_ids[:3])
    return [f"{text.format(len(item_ids))}: {examples}{', ...' if len(item_ids) > 3 else ''}"]


def _id_and_title(item: Item) -> tuple[str, str]:
    """Return an item's id and its shortened title, without characters that control a terminal."""
    item_id, title = (
        "".join(letter if letter.isprintable() else " " for letter in text)
        for text in (item.item_id, item.title or "")
    )
    return item_id, title if len(title) <= MAX_TITLE else f"{title[: MAX_TITLE - 1]}…"


def _percents(fractions: Sequence[float]) -> list[str]:
    """Return fractions as text in per cent: 0.1234 as "12.3"."""
    return [f"{100 * fraction:.1f}" for fraction in fractions]
