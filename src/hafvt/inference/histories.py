"""Who asks for what: histories in a file, or those of a dataset's users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.data.readers import file_kind, read_jsonl
from hafvt.data.schema import read_tables
from hafvt.errors import HafvtError, InputError
from hafvt.files import read_json

MAX_LINE_BYTES = 2**24  # a million ids take fewer


class Asked(NamedTuple):
    """What somebody asks for.

    Attributes:
        user_id: whose history it is; None where nobody says.
        history: item ids, oldest first.
        domain: whose items are wanted.
        k: how many.
        exclude: ids never to recommend.
    """

    user_id: str | None
    history: list[str]
    domain: str
    k: int
    exclude: list[str]


def read_histories(
    source: Any, usual: Asked, domains: tuple[str, ...], columns: dict[str, str] | None = None
) -> Callable[[], Iterator[Asked]]:
    """Returns what yields everybody who asks, from the start again at each call.

    Args:
        source: JSONL (also as .gz or .zst) whose first object has a "history", which is read line by line;
            or a table of interactions, a file or a data frame, which is read whole. Its users come in the
            order of their first rows; rows of the same time stay in the order of the table.
        usual: what holds where a line says nothing else: domain and k; its `exclude` always holds.
        domains: the names to choose from.
        columns: names of the table's columns, as `prepare` takes them.

    Raises:
        InputError: a table is wrong. That a line is wrong shows when it is reached.
        HafvtError: a table comes without a domain, or JSONL with `columns`.
    """
    if isinstance(source, str | Path) and _holds_histories(Path(source)):
        if columns:
            raise HafvtError(
                "--columns names columns of a table; histories have user_id, history, domain, k, exclude: "
                "leave it out"
            )
        return lambda: (line.asked(usual, domains) for line in _lines(Path(source)))
    log, _ = read_tables(source, None, columns or {})
    if not usual.domain:
        raise HafvtError(f"no domain: say --domain, one of {', '.join(domains)}")
    users = log.frame.group_by("user_id", maintain_order=True).agg(
        pl.col("item_id").sort_by("timestamp", maintain_order=True)
    )
    return lambda: (usual._replace(user_id=user, history=items) for user, items in users.iter_rows())


def history_of(run: str | Path, user: str, data: str | Path | Dataset | None = None) -> list[str]:
    """Returns the whole history of a user of a dataset, item ids, oldest first.

    Args:
        run: whose dataset it is, where `data` is None.
        user: their own id.
        data: the dataset.

    Raises:
        HafvtError: there is no such user, or no dataset.
    """
    if not isinstance(data, Dataset):
        data = Dataset.open(data or read_json(Path(run) / "model.json")["data"])
    number = data.user_ids.index_of(user)
    if number is None:
        raise HafvtError(f"no user {user[:80]!r} in {data.folder}: name one of it, or give a --history")
    items = data.items[data.offsets[number] : data.offsets[number + 1]]
    history: list[str] = data.item_table["item_id"].gather(items).to_list()
    return history


def _holds_histories(path: Path) -> bool:
    """Returns whether a file is JSONL whose first object has a history."""
    return file_kind(path) == "jsonl" and "history" in next((line.fields for line in _lines(path)), {})


@dataclass(frozen=True)
class HistoryRow:
    """A line of a JSONL file: its number, as a person counts, and its object."""

    file: Path
    row: int
    fields: dict[str, Any]

    def asked(self, usual: Asked, domains: tuple[str, ...]) -> Asked:
        """Returns who asks for what."""
        given = {name: value for name, value in self.fields.items() if value is not None}
        domain, k = given.get("domain", usual.domain), given.get("k", usual.k)
        if domain not in domains:
            problem = "no such domain" if domain else "no domain"
            raise self.error("domain", problem, f"Give one of {', '.join(domains)}, here or as --domain")
        if type(k) is not int or k < 1:
            raise self.error("k", "not a number of items", "Give a whole number from 1 on")
        return Asked(
            user_id=self.id("user_id", given["user_id"]) if "user_id" in given else None,
            history=self.ids("history"),
            domain=domain,
            k=k,
            exclude=usual.exclude + (self.ids("exclude") if "exclude" in given else []),
        )

    def ids(self, name: str) -> list[str]:
        """Returns the field of this name, a list of ids."""
        values = self.fields.get(name)
        if not isinstance(values, list):
            raise self.error(name, "not a list of ids", 'Write it as ["id", "id"]')
        return [self.id(name, value) for value in values]

    def id(self, name: str, value: object) -> str:
        """Returns an id as text, as tables have it: whole numbers by their digits, no other types."""
        if type(value) is int:
            return str(value)
        problem = "" if isinstance(value, str) else f"an id cannot be of type {type(value).__name__}"
        if not isinstance(value, str) or not value:
            remedy = "Give text that is not empty, or whole numbers"
            raise self.error(name, problem or "an empty id", remedy)
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.error(name, "half a surrogate pair, which is no text", "Write the id as UTF-8")
        return value

    def error(self, name: str, problem: str, remedy: str) -> InputError:
        """Returns the error for a field."""
        value = self.fields.get(name)
        return InputError(problem, remedy, file=self.file, row=self.row, column=name, value=value)


def _lines(path: Path) -> Iterator[HistoryRow]:
    """Yield the objects of a JSONL file, one line in memory at a time."""
    for row, fields in read_jsonl(path, max_bytes=MAX_LINE_BYTES):
        yield HistoryRow(path, row, fields)
