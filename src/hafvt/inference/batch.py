"""`hafvt recommend`: recommendations for the histories of a file, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from hafvt.data.dataset import Dataset
from hafvt.data.ids import id_text, id_texts
from hafvt.data.table_options import DEFAULT_OPTIONS, TableOptions
from hafvt.data.times import TimeLike, parse_request_time
from hafvt.errors import ArgumentError, HafvtError
from hafvt.inference.batch_writer import SUFFIXES, open_writer, result_table, to_json
from hafvt.inference.frames import frame_like, is_frame
from hafvt.inference.histories import (
    HistoryRequest,
    read_requests,
    read_user_history,
    refuse_table_options,
)
from hafvt.inference.policies import choose_policy, read_policies
from hafvt.inference.recommendations import Recommendations
from hafvt.inference.recommender import Recommender
from hafvt.inference.rules import NO_RULES, Rules, make_rules
from hafvt.progress import console, progress
from hafvt.settings import Folder, PositiveCount, Weight, check_arguments

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrameT

MAX_BATCH_SIZE = 1024  # histories that are read, ranked and written together
MAX_BATCH_IDS = 200_000  # ids of histories and recommendations in a batch


@dataclass
class BatchSummary:
    """Count of what `recommend` did.

    Attributes:
        out: the file; None if the recommendations went to stdout.
        num_histories: number of histories.
        num_by_popularity: number of histories without a known item, which got the most popular items.
        num_with_unknown_ids: number of histories with an unknown id.
        num_unknown_ids: number of unknown ids in all histories; they were skipped.
        unknown_id_examples: up to three unknown ids.
        num_unknown_excluded_ids: number of unknown ids to exclude, over all histories.
        unknown_excluded_id_examples: up to three unknown ids to exclude.
        unknown_rule_ids: ids to allow or to pin that the catalog does not have.
    """

    out: Path | None
    num_histories: int = 0
    num_by_popularity: int = 0
    num_with_unknown_ids: int = 0
    num_unknown_ids: int = 0
    unknown_id_examples: tuple[str, ...] = ()
    num_unknown_excluded_ids: int = 0
    unknown_excluded_id_examples: tuple[str, ...] = ()
    unknown_rule_ids: tuple[str, ...] = ()

    def add(self, recommendations: Recommendations) -> None:
        """Count the recommendations for one history."""
        unknown, excluded = recommendations.unknown_ids, recommendations.unknown_excluded_ids
        self.num_histories += 1
        self.unknown_rule_ids = recommendations.unknown_rule_ids
        self.num_by_popularity += recommendations.ranked_by == "popularity"
        self.num_with_unknown_ids += bool(unknown)
        self.num_unknown_ids += len(unknown)
        self.unknown_id_examples = (*self.unknown_id_examples, *unknown)[:3]
        self.num_unknown_excluded_ids += len(excluded)
        self.unknown_excluded_id_examples = tuple(
            dict.fromkeys((*self.unknown_excluded_id_examples, *excluded))
        )[:3]

    @property
    def warnings(self) -> list[str]:
        """A line each about unknown ids of histories, to exclude, and of rules; empty without any."""
        lines = []
        if self.num_unknown_ids:
            lines.append(
                f"skipped {self.num_unknown_ids:,} unknown ids in {self.num_with_unknown_ids:,} of "
                f"{self.num_histories:,} histories, such as {_quoted(self.unknown_id_examples)}"
            )
        if self.num_unknown_excluded_ids:
            lines.append(
                f"{self.num_unknown_excluded_ids:,} ids to exclude are unknown, such as "
                f"{_quoted(self.unknown_excluded_id_examples)}"
            )
        if self.unknown_rule_ids:
            lines.append(
                f"{len(self.unknown_rule_ids):,} ids to allow or to pin are unknown, such as "
                f"{_quoted(self.unknown_rule_ids[:3])}"
            )
        return lines

    def __str__(self) -> str:
        """Return a line about the file; empty if the recommendations went to stdout."""
        if self.out is None:
            return ""
        popular = f" ({self.num_by_popularity:,} without a known item, by popularity)"
        note = popular if self.num_by_popularity else ""
        return f"wrote recommendations for {self.num_histories:,} histories{note} to {self.out}"


def _quoted(item_ids: tuple[str, ...]) -> str:
    """Return shortened ids for a message."""
    return ", ".join(repr(item_id[:80]) for item_id in item_ids)


class RecommendOptions(TypedDict, total=False):
    """The options of `recommend` for any kind of histories; see there."""

    domain: str | None
    k: PositiveCount
    exclude_seen: bool | None
    exclude: list[str] | list[int] | None
    where: str | None
    allow: list[str] | list[int] | None
    max_per: dict[str, int] | None
    pin: dict[str, str] | None
    diversity: Weight
    calibrate: dict[str, float] | None
    policies: str | Path | None
    policy: str | None
    columns: dict[str, str] | None
    time: TimeLike
    table_options: TableOptions
    data: str | Path | Dataset | None


@overload
def recommend(
    run: Folder, *, histories: IntoDataFrameT, **options: Unpack[RecommendOptions]
) -> IntoDataFrameT: ...


@overload
def recommend(
    run: Folder,
    *,
    histories: str | Path | Any | None = None,
    history: list[str] | list[int] | None = None,
    user: str | int | None = None,
    out: str | Path | None = None,
    **options: Unpack[RecommendOptions],
) -> BatchSummary: ...


@check_arguments
def recommend(
    run: Folder,
    *,
    histories: str | Path | Any | None = None,
    history: list[str] | list[int] | None = None,
    user: str | int | None = None,
    domain: str | None = None,
    k: PositiveCount = 10,
    out: str | Path | None = None,
    exclude_seen: bool | None = None,
    exclude: list[str] | list[int] | None = None,
    where: str | None = None,
    allow: list[str] | list[int] | None = None,
    max_per: dict[str, int] | None = None,
    pin: dict[str, str] | None = None,
    diversity: Weight = 0.0,
    calibrate: dict[str, float] | None = None,
    policies: str | Path | None = None,
    policy: str | None = None,
    columns: dict[str, str] | None = None,
    time: TimeLike = None,
    table_options: TableOptions = DEFAULT_OPTIONS,
    data: str | Path | Dataset | None = None,
) -> BatchSummary | Any:
    """Recommend the k best items of a domain for each history.

    Histories may mix domains and may be of users that the dataset does not have. Ids are text: "007" differs
    from "7", and the number 7 is "7". Unknown ids are skipped and listed in `unknown_ids` or, if they were to
    be excluded, in `unknown_excluded_ids`. Histories without a known id get the most popular items of the
    domain, and `ranked_by` is "popularity". The whole input is checked before any scoring; the file `out`
    appears complete or not at all.

    JSONL has one object per history: history_number (1 for the first history of the input), user_id, domain,
    ranked_by, items (rank, item_id, title, score), unknown_ids and unknown_excluded_ids. CSV and Parquet have
    one row per recommended item, with num_unknown_ids instead. In CSV, text that a spreadsheet would run as a
    formula, such as =1+1, has an apostrophe before it.

    Example: hafvt recommend runs/hafvt --histories histories.jsonl --domain drama --k 10 --out top.parquet

    Args:
        run: the folder of a finished run or of an export.
        histories: a file of histories, or a table of interactions (user_id, item_id, timestamp). A file of
            histories is JSONL, also as .gz or .zst; each object has history, a list of ids, oldest first, and
            optionally user_id, domain, k, time, and exclude, ids in addition to those of --exclude. A table
            is of any type that prepare reads, or a data frame.
        history: instead of a file, one history: item ids, oldest first; no ids are an empty history.
        user: instead of a file, a user of the dataset, with all interactions.
        domain: the domain to recommend from; not needed if each history names one or there is only one.
        k: number of items for each history.
        out: the file to write or replace: .jsonl, .csv or .parquet; default: stdout, as JSONL for a file, or
            for a data frame of histories a data frame of its kind as result, with the columns of CSV.
        exclude_seen: do not recommend items of the history; if not given, as in the training's evaluation.
        exclude: ids of items that are not recommended.
        where: condition in SQL over columns of the items table that recommended items meet, such as
            "category in ('tea') and price < 20".
        allow: ids of the only items that are recommended.
        max_per: largest number of recommended items with equal values of a column, such as brand=2.
        pin: ids of items that are recommended at given places, such as 1=a101 3=b205.
        diversity: weight of choosing items that differ in picture and title from those above.
        calibrate: weight of lists with the shares of values that the history has, by column of the items
            table, such as category=0.3.
        policies: a YAML file of named rules, as for serve; the policy "default" holds if no other is named.
        policy: name of the policy that holds, too.
        columns: our column names and the table's names where they differ, as for prepare.
        time: when the items are shown: a date such as 2026-12-24, a date with a time, or seconds since 1970;
            default: now. For models that know the date; others ignore it.
        table_options: how a table is read; its form and zone of dates are those of `time`, too.
        data: the dataset, if it has moved since training.

    Raises:
        InputError: the input is wrong; names file, row, field, value and remedy.
        HafvtError: an option is wrong, there is no finished run, or `out` cannot be written.
    """
    if sum(source is not None for source in (histories, history, user)) != 1:
        raise ArgumentError(
            "one history is needed: give either --histories FILE, --history ID ID ... or --user USER"
        )
    target = None if out is None else Path(out)
    if target is not None:
        if target.suffix.lower() not in SUFFIXES or target.is_dir():
            raise ArgumentError(f"--out {target}: name a file .jsonl, .csv or .parquet")
        if isinstance(histories, str | Path) and target.resolve() == Path(histories).resolve():
            raise ArgumentError(f"--out {target} is the file of histories: name another file")
    if histories is None:
        refuse_table_options(columns, table_options, "--history" if user is None else "--user")
    request_time = parse_request_time(time, table_options.time_format, table_options.time_zone)
    one_history = id_texts([] if history is None else history, "--history")
    exclude_ids = id_texts([] if exclude is None else exclude, "--exclude")
    chosen = choose_policy({} if policies is None else read_policies(policies), policy)
    own_rules = make_rules(
        where=where, allow=allow, max_per=max_per, pin=pin, diversity=diversity, calibrate=calibrate
    )
    rules = chosen.rules.merged_with(own_rules)
    exclude_seen = chosen.exclude_seen if exclude_seen is None else exclude_seen
    exclude_ids += chosen.exclude
    recommender = Recommender.open(run, data)
    domains = recommender.domains
    if domain is not None:
        recommender.catalog.domain_index(domain)
    domain = domain or (domains[0] if len(domains) == 1 else "")
    user_id = None if user is None else id_text(user)
    defaults = HistoryRequest(user_id, [], domain, k, exclude_ids, request_time)
    if histories is not None:
        requests = read_requests(histories, defaults, domains, columns, table_options)
    elif domain:
        if user_id is not None:
            one_history = read_user_history(run, user_id, data)
        requests = [defaults._replace(history=one_history)].__iter__
    else:
        raise HafvtError(f"no domain: give --domain, one of {', '.join(domains)}")

    summary, rows = BatchSummary(target), list[dict[str, Any]]()
    returns_frame = target is None and is_frame(histories)
    total = sum(1 for _ in requests())
    with open_writer(target) as write, progress("recommend", total, "histories") as advance:
        for batch in batches(requests()):
            results = recommend_batch(recommender, batch, exclude_seen, rules)
            numbers = range(summary.num_histories + 1, summary.num_histories + len(batch) + 1)
            if histories is None and target is None:
                print(results[0])
            else:
                new_rows = [to_json(*row) for row in zip(numbers, batch, results, strict=True)]
                if returns_frame:
                    rows += new_rows
                else:
                    write(new_rows)
            for recommendations in results:
                summary.add(recommendations)
            advance(len(batch))
    if histories is not None or target is not None:
        for warning in summary.warnings:
            console.print(warning, markup=False, highlight=False, soft_wrap=True)
    return frame_like(histories, result_table(rows)) if returns_frame else summary


def batches(requests: Iterable[HistoryRequest]) -> Iterator[list[HistoryRequest]]:
    """Yield requests in batches of at most `MAX_BATCH_SIZE`, fewer if histories are long or k is large."""
    batch: list[HistoryRequest] = []
    num_ids = 0
    for request in requests:
        batch.append(request)
        num_ids += len(request.history) + request.k
        if len(batch) == MAX_BATCH_SIZE or num_ids >= MAX_BATCH_IDS:
            yield batch
            batch, num_ids = [], 0
    if batch:
        yield batch


def recommend_batch(
    recommender: Recommender,
    batch: list[HistoryRequest],
    exclude_seen: bool | None,
    rules: Rules = NO_RULES,
) -> list[Recommendations]:
    """Return the recommendations for each request, ranked together if domain, k and time agree."""
    groups: dict[tuple[str, int, int | None], list[int]] = {}
    for row, request in enumerate(batch):
        groups.setdefault((request.domain, request.k, request.time), []).append(row)
    results: dict[int, Recommendations] = {}
    for (domain, k, time), rows in groups.items():
        histories, exclude = [batch[row].history for row in rows], [batch[row].exclude for row in rows]
        recommendations = recommender.recommend(
            histories,
            domain,
            k,
            exclude=exclude,
            exclude_seen=exclude_seen,
            time=time,
            **rules._asdict(),
        )
        results.update(zip(rows, recommendations, strict=True))
    return [results[row] for row in range(len(batch))]
