"""Search of items by the words of their titles and ids."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left

import numpy as np
import snowballstemmer
from rapidfuzz import process
from rapidfuzz.distance import OSA

from hafvt.data.dataset import Int64
from hafvt.inference.catalog import ItemCatalog

WORD = re.compile(r"[^\W_]+")
MAX_QUERY_WORDS = 16  # further words of a query are ignored
MIN_STEM_LENGTH = 3  # letters that all words of a stem begin with
MAX_SPELLINGS = 50  # words that a misspelled word may stand for


def normalized_words(text: str) -> list[str]:
    """Return the words of a text without case and accents: "Amélie (2001)" gives amelie and 2001."""
    decomposed = unicodedata.normalize("NFKD", text)
    return WORD.findall("".join(c for c in decomposed if not unicodedata.combining(c)).casefold())


def max_typos(word: str) -> int:
    """Return how many letters of a word may be wrong, missing, added or swapped: none in a short word."""
    return 0 if len(word) < 4 else 1 if len(word) < 8 else 2


class ItemSearch:
    """Finds items of a catalog by words in an inverted index, in milliseconds for 100,000 items.

    A word of a query matches the words that begin with it and those with the same English stem, such as
    "shirts" and "shirt". If there is none, it matches the words without digits of the most similar spelling.
    """

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
        self._by_length: dict[int, list[int]] = {}  # numbers of the words without digits
        for number, word in enumerate(self._words):
            if word.isalpha():
                self._by_length.setdefault(len(word), []).append(number)
        self._stem = snowballstemmer.stemmer("english").stemWord
        self._by_popularity = np.argsort(-catalog.train_counts, kind="stable")

    def search(self, query: str, domain: str | None = None) -> Int64:
        """Return the indices of all items that match a query, the most popular first.

        Args:
            query: words in any order, each of which must match a word of title or id; without a word, all
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
            has_word = np.zeros(len(is_match), dtype=bool)
            for numbers in self._matching_words(word):
                first, last = self._offsets[numbers.start], self._offsets[numbers.stop]
                has_word[self._items[first:last]] = True
            is_match &= has_word
        matches: Int64 = self._by_popularity[is_match[self._by_popularity]]
        return matches

    def _matching_words(self, word: str) -> list[range]:
        """Return the numbers of the catalog's words that a word of a query matches, as ranges."""
        stem = self._stem(word)
        # Most endings change the last letter of a stem at most: "berries" and "berry" begin with "berr".
        relatives = self._words_from(stem[:-1]) if len(stem) > MIN_STEM_LENGTH else range(0)
        same_stem = [n for n in relatives if self._stem(self._words[n]) == stem]
        if same_stem or self._words_from(word):
            return [self._words_from(word), *(range(n, n + 1) for n in same_stem)]
        most = max_typos(word)
        lengths = range(len(word) - most, len(word) + most + 1) if most else range(0)
        numbers = [number for length in lengths for number in self._by_length.get(length, ())]
        words = [self._words[number] for number in numbers]
        similar = process.extract(word, words, scorer=OSA.distance, score_cutoff=most, limit=MAX_SPELLINGS)
        places = [place for _, distance, place in similar if distance == similar[0][1]]
        return [range(numbers[place], numbers[place] + 1) for place in places]

    def _words_from(self, prefix: str) -> range:
        """Return the numbers of the words that begin with a prefix."""
        return range(bisect_left(self._words, prefix), bisect_left(self._words, prefix + "\U0010ffff"))
