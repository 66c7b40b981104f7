"""Reads the histories to recommend for: from a file, a table of interactions or a dataset's user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.data.readers import file_kind, read_jsonl
from hafvt.data.schema import read_tables
from hafvt.errors import HafvtError, InputError
from hafvt.files import read_json

MAX_LINE_BYTES = 2**24  # more than a million ids take


class RecommendRequest(NamedTuple):
    """A history and which items are recommended for it.

    Attributes:
        user_id: the user of the history; None if unknown.
        history: item ids, oldest first.
        domain: name of the domain to recommend from.
        k: number of items.
        exclude: ids of items that are not recommended.
    """

    user_id: str | None
    history: list[str]
    domain: str
    k: int
    exclude: list[str]


@dataclass(frozen=True)
class UserHistories:
    """The requests for the users of a table of interactions; can be iterated over several times.

    Attributes:
        users: user_id and item_id, a list of ids, oldest first.
        defaults: domain, k and exclude of all requests.
    """

    users: pl.DataFrame
    defaults: RecommendRequest

    def __iter__(self) -> Iterator[RecommendRequest]:
        """Yields the requests."""
        return (self.defaults._replace(user_id=user, history=ids) for user, ids in self.users.iter_rows())


@dataclass(frozen=True)
class HistoryFile:
    """The requests of a JSONL file, read line by line; can be iterated over several times.

    Attributes:
        path: the file.
        defaults: domain and k of lines without these fields; its `exclude` is added to each request's.
        domains: names of the domains of the model.
    """

    path: Path
    defaults: RecommendRequest
    domains: tuple[str, ...]

    def __iter__(self) -> Iterator[RecommendRequest]:
        """Yields the requests.

        Raises:
            InputError: a line is wrong.
        """
        return (row.request(self.defaults, self.domains) for row in _rows(self.path))


def read_requests(
    source: Any,
    defaults: RecommendRequest,
    domains: tuple[str, ...],
    columns: dict[str, str] | None = None,
) -> Iterable[RecommendRequest]:
    """Returns the requests of a file or a data frame; they can be iterated over several times.

    Args:
        source: JSONL whose first object has a "history"; or a table of interactions, a file or a data frame.
            Users of a table come in the order of their first rows. Rows of equal time stay in their order.
        defaults: domain and k where a line does not give them; its `exclude` is added to each request's.
        domains: names of the domains of the model.
        columns: names of the table's columns, as in `prepare`.

    Raises:
        InputError: a table is wrong. Iteration raises the errors of lines.
        HafvtError: a table comes without a domain, or JSONL of histories with `columns`.
    """
    if isinstance(source, str | Path) and _has_histories(Path(source)):
        if columns:
            raise HafvtError(
                "--columns names the columns of a table, but the file has histories with the fields user_id, "
                "history, domain, k and exclude: leave out --columns"
            )
        return HistoryFile(Path(source), defaults, domains)
    log, _ = read_tables(source, None, columns or {})
    if not defaults.domain:
        raise HafvtError(f"no domain: give --domain, one of {', '.join(domains)}")
    users = log.frame.group_by("user_id", maintain_order=True).agg(
        pl.col("item_id").sort_by("timestamp", maintain_order=True)
    )
    return UserHistories(users, defaults)


def history_of(run: str | Path, user_id: str, data: str | Path | Dataset | None = None) -> list[str]:
    """Returns the whole history of a user of a dataset, item ids, oldest first.

    Args:
        run: the run whose dataset is read if `data` is None.
        user_id: the id of the user.
        data: the dataset.

    Raises:
        HafvtError: there is no such user, or no dataset.
    """
    if not isinstance(data, Dataset):
        data = Dataset.open(data or read_json(Path(run) / "model.json")["data"])
    user = data.user_ids.index_of(user_id)
    if user is None:
        raise HafvtError(f"no user {user_id[:80]!r} in {data.folder}: give one of its users, or a --history")
    items = data.items[data.offsets[user] : data.offsets[user + 1]]
    history: list[str] = data.item_table["item_id"].gather(items).to_list()
    return history


def _has_histories(path: Path) -> bool:
    """Returns whether a file is JSONL whose first object has a history."""
    return file_kind(path) == "jsonl" and "history" in next((row.fields for row in _rows(path)), {})


@dataclass(frozen=True)
class HistoryRow:
    """A line of a JSONL file.

    Attributes:
        file: the file.
        row: number of the line, from 1.
        fields: its JSON object.
    """

    file: Path
    row: int
    fields: dict[str, Any]

    def request(self, defaults: RecommendRequest, domains: tuple[str, ...]) -> RecommendRequest:
        """Returns the request of the line.

        Raises:
            InputError: a field is wrong.
        """
        fields = {name: value for name, value in self.fields.items() if value is not None}
        domain, k = fields.get("domain", defaults.domain), fields.get("k", defaults.k)
        if domain not in domains:
            problem = "no such domain" if domain else "no domain"
            raise self.error("domain", problem, f"Give one of {', '.join(domains)}, here or as --domain")
        if type(k) is not int or k < 1:
            raise self.error("k", "not a number of items", "Give a whole number from 1 on")
        return RecommendRequest(
            user_id=self.id("user_id", fields["user_id"]) if "user_id" in fields else None,
            history=self.ids("history"),
            domain=domain,
            k=k,
            exclude=defaults.exclude + (self.ids("exclude") if "exclude" in fields else []),
        )

    def ids(self, name: str) -> list[str]:
        """Returns the ids of a field."""
        values = self.fields.get(name)
        if not isinstance(values, list):
            raise self.error(name, "not a list of ids", 'Write it as ["id", "id"]')
        return [self.id(name, value) for value in values]

    def id(self, name: str, value: object) -> str:
        """Returns a text or whole number as an id."""
        if type(value) is int:
            return str(value)
        problem = "" if isinstance(value, str) else f"an id cannot be of type {type(value).__name__}"
        if not isinstance(value, str) or not value:
            remedy = "Give text that is not empty, or whole numbers"
            raise self.error(name, problem or "an empty id", remedy)
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.error(name, "half a surrogate pair, which is not text", "Write the id as UTF-8")
        return value

    def error(self, name: str, problem: str, remedy: str) -> InputError:
        """Returns the error for a field."""
        value = self.fields.get(name)
        return InputError(problem, remedy, file=self.file, row=self.row, column=name, value=value)


def _rows(path: Path) -> Iterator[HistoryRow]:
    """Yields the objects of a JSONL file, with one line in memory at a time."""
    return (HistoryRow(path, row, fields) for row, fields in read_jsonl(path, max_bytes=MAX_LINE_BYTES))
