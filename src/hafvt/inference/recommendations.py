"""Results of a `Recommender`: recommendations and explanations, and their text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from hafvt.inference.catalog import Item
from hafvt.inference.html import html_table, item_cards, paragraphs
from hafvt.tables import align_columns
from hafvt.words import modality_name

ALL_DOMAINS = "all domains"  # name of the merged sequence
MAX_TITLE = 50  # characters of a title, or of an unknown id, in a terminal
MAX_HTML_RESULTS = 20
MAX_HISTORY_ROWS = 10  # items of a history that an explanation shows


class HtmlResult(Protocol):
    """A result that a notebook can show."""

    def _repr_html_(self) -> str: ...


Result = TypeVar("Result", bound=HtmlResult)


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
        unknown_rule_ids: ids to allow or to pin that the catalog does not have.
    """

    items: tuple[ScoredItem, ...]
    ranked_by: Literal["model", "popularity"]
    unknown_ids: tuple[str, ...] = ()
    unknown_excluded_ids: tuple[str, ...] = ()
    unknown_rule_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a table with one line per item, and lines about unknown ids."""
        rows = [["rank", "item", "title", "score"]]
        for rank, scored in enumerate(self.items, start=1):
            rows.append([str(rank), *_id_and_title(scored.item), f"{scored.score:.4f}"])
        return "\n".join([*align_columns(rows, 3), *self._notes()])

    def _notes(self) -> list[str]:
        """Return lines about unknown ids."""
        lines = []
        if self.ranked_by == "popularity":
            lines.append("by popularity: the history has no known item")
        lines += _unknown_line("skipped {} unknown ids", self.unknown_ids)
        lines += _unknown_line("{} ids to exclude are unknown", self.unknown_excluded_ids)
        return lines + _unknown_line("{} ids to allow or to pin are unknown", self.unknown_rule_ids)

    def _repr_html_(self) -> str:
        """Return the items with their pictures, for notebooks."""
        return _ranked_cards(self.items) + paragraphs(self._notes())


@dataclass(frozen=True)
class SimilarItems:
    """The items that are most similar to one item.

    Attributes:
        item: the item.
        items: the most similar one first; the score is the cosine of the vectors. None without a vector.
        by: "all", or the modality of the vectors.
    """

    item: Item
    items: tuple[ScoredItem, ...]
    by: str

    def __str__(self) -> str:
        """Return a table with one line per item."""
        rows = [["rank", "item", "title", "domain", "similarity"]]
        for rank, one in enumerate(self.items, start=1):
            rows.append([str(rank), *_id_and_title(one.item), one.item.domain, f"{one.score:.4f}"])
        heading = "  ".join(_id_and_title(self.item)).rstrip()
        return "\n".join([f"similar to {heading}, by {self.by}", *align_columns(rows, 4)])

    def _repr_html_(self) -> str:
        """Return the items with their pictures, for notebooks."""
        return item_cards([(self.item, f"similar items by {self.by}:")]) + _ranked_cards(self.items)


class Results(list[Result]):
    """A list of results, which a notebook shows with pictures."""

    def __str__(self) -> str:
        """Return the texts of the results, with a blank line between them."""
        return "\n\n".join(map(str, self))

    def _repr_html_(self) -> str:
        """Return the first `MAX_HTML_RESULTS` results, one below the other."""
        rest = len(self) - MAX_HTML_RESULTS
        shown = "<hr>".join(result._repr_html_() for result in self[:MAX_HTML_RESULTS])
        return shown + (f"<p>and {rest:,} more</p>" if rest > 0 else "")


def _ranked_cards(items: Sequence[ScoredItem]) -> str:
    """Return items as cards with rank and score."""
    return item_cards((one.item, f"{rank}. {one.score:.4f}") for rank, one in enumerate(items, start=1))


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
        sequences, modalities = self._branch_names()
        shown = [sequence for sequence in (ALL_DOMAINS, self.item.domain) if sequence in sequences]
        weights = self._weights()
        order = sorted(range(len(weights)), key=lambda slot: -weights[slot])[:MAX_HISTORY_ROWS]
        item_rows = [["", "attention in %", ""], ["read", "item", "title"]]
        item_rows += [[f"{slot + 1}.", *_id_and_title(self.history[slot])] for slot in order]
        for sequence in shown:
            groups: dict[tuple[float, ...], list[str]] = {}  # modalities by attention
            for modality in modalities:
                groups.setdefault(self.attention[sequence, modality], []).append(modality)
            for column, (attention, names) in enumerate(groups.items()):
                compared = ", ".join(map(modality_name, names)) if len(groups) > 1 else ""
                labels = ["" if column else sequence, compared]
                cells = [*labels, *_percents([attention[slot] for slot in order])]
                for row, cell in zip(item_rows, cells, strict=True):
                    row.append(cell)
        num_hidden = len(self.history) - len(order)
        return "\n".join(
            [
                "  ".join(_id_and_title(self.item)).rstrip(),
                f"score {self.score:.4f}, rank {self.rank:g} in {self.item.domain}",
                "",
                *align_columns(self._share_rows()),
                "",
                *align_columns(item_rows, 3),
                *([f"and {num_hidden} more"] if num_hidden else []),
                *_unknown_line("skipped {} unknown ids", self.unknown_ids),
            ]
        )

    def _branch_names(self) -> tuple[list[str], list[str]]:
        """Return the sequences and the modalities of `shares`."""
        sequences, modalities = (list(dict.fromkeys(names)) for names in zip(*self.shares, strict=True))
        return sequences, modalities

    def _share_rows(self) -> list[list[str]]:
        """Return the table of `shares`: a header, a row for each sequence, and their total."""
        sequences, modalities = self._branch_names()
        rows = [["share of the score in %", *map(modality_name, modalities), "total"]]
        for sequence in sequences:
            parts = [self.shares[sequence, modality] for modality in modalities]
            rows.append([sequence, *_percents([*parts, sum(parts)])])
        sums = [sum(self.shares[sequence, modality] for sequence in sequences) for modality in modalities]
        return [*rows, ["total", *_percents([*sums, sum(sums)])]]

    def _weights(self) -> list[float]:
        """Return the weight of each item of the history: attention times share, over all that is shown."""
        sequences, modalities = self._branch_names()
        shown = [sequence for sequence in (ALL_DOMAINS, self.item.domain) if sequence in sequences]
        return [
            sum(self.shares[s, m] * self.attention[s, m][slot] for s in shown for m in modalities)
            for slot in range(len(self.history))
        ]

    def _repr_html_(self) -> str:
        """Return the item, the table of shares, and the history by weight, with pictures, for notebooks."""
        weights = self._weights()
        order = sorted(range(len(weights)), key=lambda slot: -weights[slot])[:MAX_HISTORY_ROWS]
        total = sum(weights) or 1.0
        history = [(self.history[slot], f"read {slot + 1}., {weights[slot] / total:.1%}") for slot in order]
        score = f"score {self.score:.4f}, rank {self.rank:g} in {self.item.domain}"
        hidden = [f"and {len(weights) - len(order)} more"] if len(weights) > len(order) else []
        return "".join(
            [
                item_cards([(self.item, score)]),
                html_table(self._share_rows()),
                paragraphs(["items of the history, by their share in attention"]),
                item_cards(history),
                paragraphs([*hidden, *_unknown_line("skipped {} unknown ids", self.unknown_ids)]),
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
