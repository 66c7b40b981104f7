"""Reads the histories to recommend for: from a file, a table of interactions or a dataset's user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import narwhals as nw
import numpy as np
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.data.ids import id_text, visible_text
from hafvt.data.lines import read_jsonl
from hafvt.data.parquet import open_parquet
from hafvt.data.readers import file_kind
from hafvt.data.schema import read_interactions
from hafvt.data.table_options import DEFAULT_OPTIONS, TableOptions
from hafvt.data.times import parse_request_time
from hafvt.errors import ArgumentError, HafvtError, InputError
from hafvt.files import explained_read_errors, read_json
from hafvt.settings import Folder
from hafvt.training.hub_download import local_folder

ROWS_PER_BATCH = 10_000  # of Parquet that are in memory at a time
MAX_LINE_BYTES = 2**24  # more than a million ids take
TIME_OPTIONS = ("time_format", "time_zone")
FIELDS = ("user_id", "history", "domain", "k", "exclude", "time")  # of a JSONL file of histories


class HistoryRequest(NamedTuple):
    """A history and which items are recommended for it.

    Attributes:
        user_id: the user of the history; None if unknown.
        history: item ids, oldest first.
        domain: name of the domain to recommend from.
        k: number of items.
        exclude: ids of items that are not recommended.
        time: of the request, in seconds since 1970; None is now.
    """

    user_id: str | None
    history: list[str]
    domain: str
    k: int
    exclude: list[str]
    time: int | None = None


def read_requests(
    source: Any,
    defaults: HistoryRequest,
    domains: tuple[str, ...],
    columns: dict[str, str] | None = None,
    options: TableOptions = DEFAULT_OPTIONS,
) -> Callable[[], Iterator[HistoryRequest]]:
    """Return a function that yields the requests of a file or a data frame, from the first one at each call.

    Args:
        source: JSONL whose first object has a "history", which is read line by line; or a table of
            interactions, a file or a data frame. Users of a table come in the order of their first rows, and
            rows of equal time stay in their order.
        defaults: domain, k and time of a history without them; its `exclude` is added to that of each
            history.
        domains: names of the domains of the model.
        columns: names of the table's columns, as in `prepare`.
        options: how a table is read; `strip` acts on the ids of JSONL, too, `time_format` and `time_zone` on
            the times.

    Raises:
        InputError: a table is wrong. The returned function raises the errors of lines.
        HafvtError: a table comes without a domain, or JSONL of histories with `columns`.
    """
    if isinstance(source, str | Path) and has_histories(path := Path(source)):
        if columns:
            raise HafvtError(
                "--columns names the columns of a table, but the file has histories with the fields user_id, "
                "history, domain, k, exclude and time: leave out --columns"
            )
        refuse_table_options(None, replace(options, strip=False), "a file of histories")
        return lambda: (_parse_line(path, *line, defaults, domains, options) for line in _lines(path))
    if _has_history_column(source):
        raise HafvtError(
            "the data frame has a column 'history': pass its lists, such as frame['history'].to_list(), to "
            "Recommender.recommend, or a data frame of interactions (user_id, item_id, timestamp)"
        )
    log = read_interactions(source, columns or {}, options)
    if not defaults.domain:
        raise HafvtError(f"no domain: give --domain, one of {', '.join(domains)}")
    users = log.frame.group_by("user_id", maintain_order=True).agg(
        pl.col("item_id").sort_by("timestamp", maintain_order=True)
    )
    return lambda: (defaults._replace(user_id=user, history=ids) for user, ids in users.iter_rows())


def refuse_table_options(columns: dict[str, str] | None, options: TableOptions, source: str) -> None:
    """Raise ArgumentError if there are options for a table of interactions, apart from those for times."""
    settings = {"columns": columns or None} | asdict(options)
    defaults = {"columns": None} | asdict(DEFAULT_OPTIONS) | {name: settings[name] for name in TIME_OPTIONS}
    if option := next((name for name in settings if settings[name] != defaults[name]), None):
        raise ArgumentError(f"--{option} is for a table of interactions, not for {source}: leave it out")


def _has_history_column(source: Any) -> bool:
    """Return whether a source is a data frame of histories, and not of interactions."""
    try:
        names = set(nw.from_native(source).collect_schema().names())
    except Exception:  # many types; `read_interactions` reports the error
        return False
    return "history" in names and "item_id" not in names


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield row number and fields of each history of a JSONL or Parquet file, a batch in memory at a time."""
    if file_kind(path) == "jsonl":
        yield from read_jsonl(path, FIELDS, max_bytes=MAX_LINE_BYTES)
        return
    with explained_read_errors(path, "write it again"):
        frames, _ = open_parquet(path, FIELDS, batch_rows=ROWS_PER_BATCH)
        yield from enumerate((fields for frame in frames for fields in frame.iter_rows(named=True)), start=1)


def has_histories(path: Path) -> bool:
    """Return whether a file is JSONL whose first object has a history, or Parquet with a column of them."""
    kind = file_kind(path)
    if kind == "parquet":
        with explained_read_errors(path, "write it again"):
            return "history" in open_parquet(path, FIELDS, batch_rows=ROWS_PER_BATCH)[1]
    return kind == "jsonl" and "history" in next(_lines(path), (1, {}))[1]


def _parse_line(
    file: Path,
    row: int,
    fields: dict[str, Any],
    defaults: HistoryRequest,
    domains: tuple[str, ...],
    options: TableOptions,
) -> HistoryRequest:
    """Return the request of a JSONL line, or raise InputError; see `read_requests`."""

    def error(name: str, problem: str, remedy: str) -> InputError:
        return InputError(problem, remedy, file=file, row=row, column=name, value=fields.get(name))

    def ids(name: str, values: Any) -> list[str]:
        if not isinstance(values, list):
            raise error(name, "not a list of ids", 'Write it as ["id", "id"]')
        try:
            texts = [id_text(value) for value in values]
        except HafvtError as wrong_id:
            problem, _, remedy = str(wrong_id).rpartition(": ")
            raise error(name, problem, remedy[0].upper() + remedy[1:]) from None
        return visible_text(pl.Series(texts, dtype=pl.String)).to_list() if options.strip else texts

    fields = {name: value for name, value in fields.items() if value is not None}
    domain, k = fields.get("domain", defaults.domain), fields.get("k", defaults.k)
    if domain not in domains:
        problem = "no such domain" if domain else "no domain"
        raise error("domain", problem, f"Give one of {', '.join(domains)}, here or as --domain")
    if type(k) is not int or k < 1:
        raise error("k", "not a number of items", "Give a whole number from 1 on")
    user_id = ids("user_id", [fields["user_id"]])[0] if "user_id" in fields else None
    exclude = defaults.exclude + ids("exclude", fields.get("exclude", []))
    try:
        time = parse_request_time(fields.get("time"), options.time_format, options.time_zone)
    except HafvtError as wrong_time:
        problem, _, remedy = str(wrong_time).rpartition(": ")
        raise error("time", problem, remedy[0].upper() + remedy[1:]) from None
    return HistoryRequest(
        user_id, ids("history", fields.get("history")), domain, k, exclude, time or defaults.time
    )


def read_user_history(run: Folder, user_id: str | int, data: str | Path | Dataset | None = None) -> list[str]:
    """Return the whole history of a user of a dataset, by default that of a run: item ids, oldest first.

    Raises:
        HafvtError: there is no such user, or no dataset.
    """
    folder = local_folder(run)
    if data is None and not (folder / "model.json").exists():
        raise HafvtError(f"{run} has no dataset with users: name it with --data, or give a --history")
    if not isinstance(data, Dataset):
        data = data or read_json(folder / "model.json")["data"]
        if data is None:
            raise HafvtError(f"{run} has no histories of users: name a dataset with --data")
        data = Dataset.open(data)
    user = data.user_ids.index_of(id_text(user_id))
    if user is None:
        raise HafvtError(
            f"no user {str(user_id)[:80]!r} in {data.folder}: give one of its users, or a --history"
        )
    return user_history(data, user)


def user_history(data: Dataset, user: int) -> list[str]:
    """Return the whole history of the user with an index, item ids, oldest first."""
    items = np.asarray(data.items[data.offsets[user] : data.offsets[user + 1]], dtype=np.int64)
    history: list[str] = data.item_table["item_id"].gather(items).to_list()
    return history
