"""Search of items by the words of their titles and ids."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left

import numpy as np

from hafvt.data.dataset import Int64
from hafvt.inference.catalog import ItemCatalog

WORD = re.compile(r"[^\W_]+")
MAX_QUERY_WORDS = 16  # further words of a query are ignored


def normalized_words(text: str) -> list[str]:
    """Return the words of a text without case and accents: "Amélie (2001)" gives amelie and 2001."""
    decomposed = unicodedata.normalize("NFKD", text)
    return WORD.findall("".join(c for c in decomposed if not unicodedata.combining(c)).casefold())


class ItemSearch:
    """Finds items of a catalog by word prefixes in an inverted index, in a millisecond for 100,000 items."""

    def __init__(self, catalog: ItemCatalog) -> None:
        self.catalog = catalog
        postings: dict[str, list[int]] = {}  # word -> item indices
        for index, (item_id, title) in enumerate(catalog.table.select("item_id", "title").iter_rows()):
            for word in {*normalized_words(item_id), *normalized_words(title or "")}:
                postings.setdefault(word, []).append(index)
        self._words = sorted(postings)
        self._offsets = np.cumsum([0, *(len(postings[word]) for word in self._words)])
        self._items = np.concatenate(
            [np.array(postings[word], dtype=np.int32) for word in self._words] or [np.zeros(0, np.int32)]
        )
        self._by_popularity = np.argsort(-catalog.train_counts, kind="stable")

    def search(self, query: str, domain: str | None = None) -> Int64:
        """Return the indices of all items that match a query, the most popular first.

        Args:
            query: words in any order, each of which must begin a word of title or id; without a word, all
                items match.
            domain: only items of this domain; None for all domains.

        Raises:
            HafvtError: there is no such domain.
        """
        query_words = normalized_words(query)[:MAX_QUERY_WORDS]
        is_match = np.full(len(self._by_popularity), bool(query_words) or not query.strip())
        if domain is not None:
            items = self.catalog.domains[self.catalog.domain_index(domain)]
            is_match[: items.start] = is_match[items.stop :] = False
        for word in query_words:
            first = bisect_left(self._words, word)
            last = bisect_left(self._words, word + "\U0010ffff")
            has_word = np.zeros(len(is_match), dtype=bool)
            has_word[self._items[self._offsets[first] : self._offsets[last]]] = True
            is_match &= has_word
        matches: Int64 = self._by_popularity[is_match[self._by_popularity]]
        return matches
