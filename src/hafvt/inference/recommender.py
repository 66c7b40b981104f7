"""`Recommender`: recommends items for any history, with the item ids of your own tables.

Here, a row is the index of a history in a batch, and a column is the index of an item in its domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

import numpy as np

from hafvt.data.dataset import Dataset, Int64
from hafvt.data.ids import id_text, id_text_lists, id_texts
from hafvt.data.schema import read_items
from hafvt.data.times import TimeLike, parse_request_time
from hafvt.errors import HafvtError, warn
from hafvt.folders import read_folder, recover_folder
from hafvt.inference.batch_writer import result_table, similar_table, to_json
from hafvt.inference.candidates import FaissCandidateGenerator
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.frames import frame_like, is_frame
from hafvt.inference.histories import HistoryRequest, read_requests
from hafvt.inference.item_vectors import ItemVectors, VectorReader, similar_indices
from hafvt.inference.onnx_scorer import is_export, open_export
from hafvt.inference.recommendations import Explanation, Recommendations, Results, ScoredItem, SimilarItems
from hafvt.inference.rules import NO_RULES, RuleOptions, make_rules
from hafvt.inference.scorer import Float32, Scorer, pad_histories
from hafvt.inference.selection import ItemAttributes, Selector
from hafvt.inference.summary import result_lines
from hafvt.inference.top_candidates import CandidateRequest, top_candidates
from hafvt.ops.top_k import top_k_columns
from hafvt.settings import Folder
from hafvt.training.hub_download import local_folder

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrameT

MAX_SCORES = 4_000_000  # scores in memory at a time: histories of a batch x items of a domain
MAX_SELECTORS = 32  # in memory: the rules of recent requests, for each domain


class Recommender:
    """Recommends items of one domain. A history lists item ids of any domains, oldest first.

    Ids are text or whole numbers; the number 7 is the id "7".

    Example:
        recommender = Recommender.open("runs/hafvt")
        recommender.recommend([["tt0111161", "tt0068646"]], "drama", k=10)

    Args:
        scorer: computes the scores of a trained model.
        catalog: the items that `scorer` scores.
        exclude_seen: whether items of the history are left out by default, for each domain.
        candidate_generator: selects the items to score in large domains; None scores all items.
        read_vectors: reads the vectors for `similar_items`; None without any.
        folder: of the run or export.
    """

    def __init__(
        self,
        scorer: Scorer,
        catalog: ItemCatalog,
        exclude_seen: Sequence[bool],
        candidate_generator: FaissCandidateGenerator | None = None,
        read_vectors: VectorReader | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        self.scorer, self.catalog, self.exclude_seen = scorer, catalog, tuple(exclude_seen)
        self.candidate_generator, self.read_vectors = candidate_generator, read_vectors
        self.folder, self.attributes = folder, ItemAttributes(catalog)
        selector = partial(Selector, self.attributes, lambda: self.vectors)
        self.selector = lru_cache(MAX_SELECTORS)(selector)

    @classmethod
    def open(cls, folder: Folder, data: str | Path | Dataset | None = None, *, threads: int = 0) -> Self:
        """Open a run or an export.

        Args:
            folder: that `train` or `export` wrote, a run, or hf://owner/name of the Hugging Face Hub.
            data: the dataset or its folder, if the folder has moved since training; unused for an export.
            threads: number of threads for scoring; 0 keeps the current number. If `folder` is a run, this
                applies to torch in the whole process.

        Raises:
            HafvtError: there is no finished run, added items or index are out of date, or files are damaged.
        """
        path = local_folder(folder)
        recover_folder(path)
        if is_export(path):
            return cls(*read_folder(path, lambda: open_export(path, threads=threads)), folder=path)
        # Imports torch, which an export does not need.
        from hafvt.inference.torch_scorer import open_trained_run

        return cls(*open_trained_run(path, data, threads=threads), folder=path)

    def __fspath__(self) -> str:
        """Return the folder: functions that take the folder of a run take the recommender, too."""
        if self.folder is None:
            raise HafvtError("this recommender was not opened from a folder: use Recommender.open")
        return str(self.folder)

    def __str__(self) -> str:
        """Return name and catalog and, of a run with test results, their table."""
        sizes = ", ".join(f"{domain.name} {len(domain):,}" for domain in self.catalog.domains)
        results = [] if self.folder is None else result_lines(self.scorer.name, self.folder)
        return "\n".join([f"{self.scorer.name} recommends items of {sizes}", *results])

    __repr__ = __str__

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the domains."""
        return tuple(domain.name for domain in self.catalog.domains)

    @overload
    def recommend(
        self,
        histories: Sequence[Sequence[str | int]],
        domain: str | None = None,
        k: int = 10,
        *,
        exclude: Sequence[Sequence[str | int]] | None = None,
        exclude_seen: bool | None = None,
        time: TimeLike = None,
        **rules: Unpack[RuleOptions],
    ) -> Results[Recommendations]: ...

    @overload
    def recommend(
        self,
        histories: IntoDataFrameT,
        domain: str | None = None,
        k: int = 10,
        *,
        columns: dict[str, str] | None = None,
        exclude_seen: bool | None = None,
        time: TimeLike = None,
        **rules: Unpack[RuleOptions],
    ) -> IntoDataFrameT: ...

    def recommend(
        self,
        histories: Sequence[Sequence[str | int]] | Any,
        domain: str | None = None,
        k: int = 10,
        *,
        columns: dict[str, str] | None = None,
        exclude: Sequence[Sequence[str | int]] | None = None,
        exclude_seen: bool | None = None,
        time: TimeLike = None,
        **rules: Unpack[RuleOptions],
    ) -> Results[Recommendations] | Any:
        """Return the k best items of a domain for each history.

        Scores all items of the domain or, in a large domain with an index (`hafvt index`), the items that the
        index proposes. Items with equal scores are sorted by the order of the catalog, which is random.

        Args:
            histories: item ids, oldest first. A history without known ids gets the most popular items. Or a
                data frame of interactions (user_id, item_id, timestamp).
            domain: name of the domain to recommend from; not needed if there is only one.
            k: number of items for each history; the result has fewer if no others remain.
            columns: your names of the columns of a data frame, as for `prepare`.
            exclude: for each history, ids of items not to recommend.
            exclude_seen: exclude the items of the history, too; None does so where the evaluation of the
                training did: by default, in domains where users rarely choose an item again.
            time: of the request: a date, a date with a time (in UTC if it names no zone), or seconds since
                1970; default: now. For models that know the date.
            rules: where, allow, max_per, pin, diversity and calibrate, see `RuleOptions`.

        Returns:
            The recommendations for each history, in order. For a data frame, one of the same kind, with a row
            for each user and item: user_id, rank, item_id, title, score and others.

        Raises:
            HafvtError: the domain is unknown, k is below 1, `exclude` is not as long as `histories`, a
                history is not a list of ids, or `time` or a rule is none.
        """
        if domain is None and len(self.domains) > 1:
            raise HafvtError(f"no domain: choose one of {', '.join(self.domains)}")
        domain, time = self.domains[0] if domain is None else domain, parse_request_time(time)
        domain_index = self.catalog.domain_index(domain)
        if not isinstance(k, int | np.integer) or k < 1:
            raise HafvtError(f"k is {k!r}: give 1 or more")
        checked_rules = make_rules(**rules)
        if is_frame(histories) and exclude is not None:
            raise HafvtError("exclude is for lists of histories, not for a data frame: leave it out")
        if is_frame(histories):
            options = {"exclude_seen": exclude_seen, "time": time, **rules}
            return self._recommend_frame(histories, domain, k, columns, options)
        selector = None if checked_rules == NO_RULES else self.selector(checked_rules, domain_index)
        id_lists = id_text_lists(histories, "histories")
        exclude_lists = id_text_lists([()] * len(id_lists) if exclude is None else exclude, "exclude")
        if len(exclude_lists) != len(id_lists):
            raise HafvtError(
                f"{len(exclude_lists)} lists to exclude for {len(id_lists)} histories: give one each"
            )
        exclude_seen = self.exclude_seen[domain_index] if exclude_seen is None else exclude_seen
        start, stop = self.catalog.domains[domain_index].start, self.catalog.domains[domain_index].stop
        known = [self.catalog.indices(ids) for ids in id_lists]
        excluded = [self.catalog.indices(ids) for ids in exclude_lists]
        seen_columns, excluded_columns = (
            [one.indices[(one.indices >= start) & (one.indices < stop)] - start for one in lists]
            for lists in (known, excluded)
        )
        if not exclude_seen:
            seen_columns = [columns[:0] for columns in seen_columns]
        known_items = [history.indices for history in known]
        best = self._top_items(known_items, domain_index, k, seen_columns, excluded_columns, time, selector)
        by_model = [s for items, (_, s) in zip(known_items, best, strict=True) if items.size and s.size]
        if self.scorer.uses_times and by_model and not np.concatenate(by_model).any():
            warn(
                f"{self.scorer.name} counts no training interaction at the time of the request, so all "
                "scores are 0 and the order is arbitrary: name another time"
            )
        return Results(
            Recommendations(
                tuple(
                    ScoredItem(self.catalog.item(start + column), score)
                    for column, score in zip(best_columns.tolist(), scores.tolist(), strict=True)
                ),
                "model" if len(history.indices) else "popularity",
                history.unknown_ids,
                items.unknown_ids,
                selector.unknown_ids if selector else (),
            )
            for history, items, (best_columns, scores) in zip(known, excluded, best, strict=True)
        )

    def _recommend_frame(
        self, interactions: Any, domain: str, k: int, columns: dict[str, str] | None, options: dict[str, Any]
    ) -> Any:
        """Return `recommend` for the users of a data frame of interactions, as a data frame."""
        defaults = HistoryRequest(None, [], domain, k, [])
        requests = list(read_requests(interactions, defaults, self.domains, columns)())
        histories = [request.history for request in requests]
        pairs = zip(requests, self.recommend(histories, domain, k, **options), strict=True)
        rows = [to_json(number, *pair) for number, pair in enumerate(pairs, start=1)]
        return frame_like(interactions, result_table(rows))

    @overload
    def similar_items(
        self, items: Sequence[str | int], k: int = 10, *, domain: str | None = None, by: str = "all"
    ) -> Results[SimilarItems]: ...

    @overload
    def similar_items(
        self, items: IntoDataFrameT, k: int = 10, *, domain: str | None = None, by: str = "all"
    ) -> IntoDataFrameT: ...

    def similar_items(
        self,
        items: Sequence[str | int] | Any,
        k: int = 10,
        *,
        domain: str | None = None,
        by: str = "all",
    ) -> Results[SimilarItems] | Any:
        """Return the k most similar items of each item, by the cosines of their vectors.

        Args:
            items: ids of the items, or a data frame with the column item_id.
            k: number of similar items of each item; fewer if no others have a vector.
            domain: name of the domain of the similar items; default: all domains.
            by: "id", the vectors that the model has learned from interactions; "image", "title" or another
                modality, the vectors of `encode`; "all", the mean of the cosines by all of these, where a
                vector that the similar item lacks counts as 0.

        Returns:
            The similar items of each item, in order. For a data frame, one of the same kind, with a row for
            each pair: item_id, rank, similar_item_id, domain, title, similarity.

        Raises:
            HafvtError: an item or the domain is unknown, there are no vectors of `by`, or this is an export.
        """
        if is_frame(items):
            ids = read_items(items, {}).frame["item_id"].unique(maintain_order=True).to_list()
            return frame_like(items, similar_table(self.similar_items(ids, k, domain=domain, by=by)))
        if not isinstance(k, int | np.integer) or k < 1:
            raise HafvtError(f"k is {k!r}: give 1 or more")
        start, stop = 0, len(self.catalog)
        if domain is not None:
            items_of_domain = self.catalog.domains[self.catalog.domain_index(domain)]
            start, stop = items_of_domain.start, items_of_domain.stop
        indices, unknown_ids = self.catalog.indices(id_texts(items, "items"))
        if unknown_ids:
            raise HafvtError(f"no item {unknown_ids[0][:80]!r} in the catalog: give ids of its items")
        most_similar = similar_indices(self.vectors, indices, by, range(start, stop), k)
        return Results(
            SimilarItems(
                self.catalog.item(item),
                tuple(ScoredItem(self.catalog.item(index), cosine) for index, cosine in similar),
                by,
            )
            for item, similar in zip(indices.tolist(), most_similar, strict=True)
        )

    @cached_property
    def vectors(self) -> dict[str, ItemVectors]:
        """The vectors of all items, see `VectorReader`."""
        if self.read_vectors is None:
            raise HafvtError("an export has no vectors of items: open the run that it was made from")
        return self.read_vectors()

    def explain(
        self, history: Sequence[str | int], item_id: str | int, *, time: TimeLike = None
    ) -> Explanation:
        """Return how each branch of the model contributes to the score of an item for a history.

        The time of the request is as in `recommend`.

        Raises:
            HafvtError: the model cannot explain scores, or the item or the whole history is unknown.
        """
        scorer, catalog, time = self.scorer, self.catalog, parse_request_time(time)
        if not scorer.can_explain:
            raise HafvtError(f"{scorer.name} cannot explain its scores: use hafvt")
        target = catalog.index_of(id_text(item_id))
        if target is None:
            raise HafvtError(f"no item {str(item_id)[:80]!r} in the catalog")
        items, unknown_ids = catalog.indices(id_texts(history, "history"))
        if not len(items):
            raise HafvtError(
                "the history has no known item, so items are ranked by popularity: nothing to explain"
            )
        items = items[-scorer.max_length :]
        domain = next(index for index, d in enumerate(catalog.domains) if d.start <= target < d.stop)
        scores = self.scores([items], domain, time)[0]
        score = scores[target - catalog.domains[domain].start]
        shares, attention = scorer.explain(items, domain, np.array([target]), time)
        branches = list(product(scorer.sequence_names, scorer.modalities))
        return Explanation(
            item=catalog.item(target),
            score=float(score),
            rank=float(1 + (scores > score).sum() + ((scores == score).sum() - 1) / 2),
            history=tuple(catalog.item(index) for index in items.tolist()),
            shares=dict(zip(branches, shares[0].flatten().tolist(), strict=True)),
            attention=dict(zip(branches, map(tuple, np.concatenate(attention).tolist()), strict=True)),
            unknown_ids=unknown_ids,
        )

    def scores(self, histories: Sequence[Int64], domain: int, time: int | None = None) -> Float32:
        """Return the scores of all C items of a domain for B histories, (B, C).

        For an empty history the score of an item is log(1 + train_count).

        Args:
            histories: item indices, oldest first; the model reads the last `max_length` of them.
            domain: index of the domain.
            time: of the request, in seconds since 1970; default: now.
        """
        items = self.catalog.domains[domain]
        scores = np.empty((len(histories), len(items)), dtype=np.float32)
        is_empty = np.array([len(history) == 0 for history in histories], dtype=bool)
        scores[is_empty] = np.log1p(self.catalog.train_counts[items.start : items.stop]).astype(np.float32)
        if not is_empty.all():
            recent = [history[-self.scorer.max_length :] for history in histories if len(history)]
            scores[~is_empty] = self.scorer.scores(*pad_histories(recent), domain, time)
        return scores

    def _top_items(
        self,
        histories: Sequence[Int64],
        domain: int,
        k: int,
        seen: Sequence[Int64],
        excluded: Sequence[Int64],
        time: int | None,
        selector: Selector | None,
    ) -> list[tuple[Int64, Float32]]:
        """Return for each history the columns of the k best items, best first, and their scores.

        `histories` are item indices, `domain` is an index, and `seen` and `excluded` have columns to leave
        out.
        """
        best = dict[int, tuple[Int64, Float32]]()
        if self.candidate_generator is not None:
            request = CandidateRequest(histories, domain, k, seen, excluded, time, selector)
            best = top_candidates(self.candidate_generator, self.scorer, request)
        remaining = [row for row in range(len(histories)) if row not in best]
        batch_size = max(1, MAX_SCORES // len(self.catalog.domains[domain]))
        for start in range(0, len(remaining), batch_size):
            rows = remaining[start : start + batch_size]
            batch_scores = self.scores([histories[row] for row in rows], domain, time)
            for row, scores in zip(rows, batch_scores, strict=True):
                if selector is None:
                    columns = top_k_columns(scores, k, np.concatenate([seen[row], excluded[row]]))
                else:
                    columns = selector.select(scores, k, seen[row], excluded[row], histories[row])
                best[row] = columns, scores[columns]
            del scores, batch_scores  # so that the next batch has their memory
        return [best[row] for row in range(len(histories))]
