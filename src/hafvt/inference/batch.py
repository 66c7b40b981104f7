"""`hafvt recommend`: recommendations for the histories of a file, batch by batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from hafvt.data.dataset import Dataset
from hafvt.data.ids import id_text, id_texts
from hafvt.data.table_options import DEFAULT_OPTIONS, TableOptions
from hafvt.data.times import TimeLike, parse_request_time
from hafvt.errors import ArgumentError, HafvtError
from hafvt.inference.batch_parts import PartOptions, is_folder, recommend_parts
from hafvt.inference.batch_writer import SUFFIXES, open_writer, result_table, to_json
from hafvt.inference.frames import frame_like, is_frame
from hafvt.inference.histories import (
    HistoryRequest,
    read_requests,
    read_user_history,
    refuse_table_options,
)
from hafvt.inference.policies import choose_policy, read_policies
from hafvt.inference.recommender import Recommender
from hafvt.inference.request_batches import BatchSummary, batches, recommend_batch
from hafvt.inference.rules import make_rules
from hafvt.progress import console, progress
from hafvt.settings import Folder, PositiveCount, RayAddress, Weight, check_arguments

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrameT


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
    ray: RayAddress | None


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
    ray: RayAddress | None = None,
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

    A folder or pattern of files of histories becomes a folder `out`: each .jsonl or .parquet file becomes a
    file of its kind with the same name, and history_number counts from 1 in each. Repeat an interrupted call
    with the same options: files that are there and whose histories have not changed are not written again.
    Folders may be addresses of fsspec, such as s3://bucket/histories.

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
            for a data frame of histories a data frame of its kind as result, with the columns of CSV. For a
            folder of histories, a folder.
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
        ray: recommend on a Ray cluster, for files of histories: HOST:PORT, "auto" for the cluster that this
            machine is part of, or "local" to start one here. All machines share the folders.

    Raises:
        InputError: the input is wrong; names file, row, field, value and remedy.
        HafvtError: an option is wrong, there is no finished run, or `out` cannot be written.
    """
    if sum(source is not None for source in (histories, history, user)) != 1:
        raise ArgumentError(
            "one history is needed: give either --histories FILE, --history ID ID ... or --user USER"
        )
    many_files = is_folder(histories) or ray is not None
    if many_files and (not isinstance(histories, str | Path) or out is None or Path(out).suffix in SUFFIXES):
        raise ArgumentError("name a folder or pattern of files with --histories, and a folder with --out")
    target = None if out is None or many_files else Path(out)
    if target is not None:
        if target.suffix.lower() not in SUFFIXES or target.is_dir():
            raise ArgumentError(f"--out {target}: name a file .jsonl, .csv or .parquet")
        if isinstance(histories, str | Path) and target.resolve() == Path(histories).resolve():
            raise ArgumentError(f"--out {target} is the file of histories: name another file")
    if histories is None or many_files:
        source = "files of histories" if many_files else "--history" if user is None else "--user"
        refuse_table_options(columns, DEFAULT_OPTIONS if many_files else table_options, source)
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
    if many_files:
        options = PartOptions(defaults, exclude_seen, rules, table_options)
        summary = recommend_parts(recommender, str(histories), str(out), options, data, ray)
        _print_warnings(summary)
        return summary
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
        _print_warnings(summary)
    return frame_like(histories, result_table(rows)) if returns_frame else summary


def _print_warnings(summary: BatchSummary) -> None:
    """Print a line each about unknown ids on stderr."""
    for warning in summary.warnings:
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
