"""`hafvt recommend`: histories in, recommendations out, a batch at a time."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.files import atomic_file
from hafvt.inference.histories import Asked, history_of, read_histories
from hafvt.inference.recommender import Recommendations, Recommender
from hafvt.progress import console, progress

BATCH = 1024  # histories that are read, ranked and written together
IDS = 200_000  # ids in and out of a batch, so that long histories and a large k come in smaller ones
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
SCHEMA = {
    "number": pl.Int64,
    "user_id": pl.String,
    "domain": pl.String,
    "rank": pl.Int64,
    "item_id": pl.String,
    "title": pl.String,
    "score": pl.Float64,
    "by": pl.String,
    "unknown": pl.Int64,
}
UNSEEN = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # could steer a terminal or end a line


@dataclass
class BatchSummary:
    """What `recommend` did.

    Attributes:
        out: the file; None where it all went to stdout.
        histories: how many.
        popular: of them without a known item, so that popularity decided.
        troubled: of them with an unknown id.
        unknown: unknown ids in all of them; they were skipped.
        examples: the first of these.
    """

    out: Path | None
    histories: int = 0
    popular: int = 0
    troubled: int = 0
    unknown: int = 0
    examples: tuple[str, ...] = ()

    def add(self, answer: Recommendations) -> None:
        """Counts an answer."""
        self.histories += 1
        self.popular += answer.by == "popularity"
        self.troubled += bool(answer.unknown)
        self.unknown += len(answer.unknown)
        self.examples = (*self.examples, *answer.unknown[:3])[:3]

    @property
    def trouble(self) -> str:
        """A line about unknown ids; empty where there were none."""
        if not self.unknown:
            return ""
        first = ", ".join(repr(item_id[:80]) for item_id in self.examples)
        return (
            f"skipped {self.unknown:,} unknown ids in {self.troubled:,} of {self.histories:,} histories, "
            f"such as {first}"
        )

    def __str__(self) -> str:
        """Where it all is; empty where it is on stdout."""
        if self.out is None:
            return ""
        popular = f" ({self.popular:,} without a known item, by popularity)" if self.popular else ""
        return f"wrote recommendations for {self.histories:,} histories{popular} to {self.out}"


def recommend(
    run: str | Path,
    *,
    histories: str | Path | Any | None = None,
    history: list[str] | None = None,
    user: str | None = None,
    domain: str | None = None,
    k: int = 10,
    out: str | Path | None = None,
    seen: bool = False,
    exclude: list[str] | None = None,
    columns: dict[str, str] | None = None,
    data: str | Path | Dataset | None = None,
) -> BatchSummary:
    """Recommends the best items of a domain to each history, by exact scores of all its items.

    Histories may mix domains, and be of people whom training never met. Ids are text always: "007" is not
    "7". Unknown ids are skipped and told of; where no known one is left, popularity in the domain decides,
    and `by` says so. All of the input is checked before the work begins; `out` appears whole or not at all.

    JSONL has one object for each history: number (from 1, in the order of the input), user_id, domain, by,
    items (rank, item_id, title, score) and unknown (ids). CSV and Parquet have one row for each item, and in
    `unknown` how many ids of the history were.

    Example: hafvt recommend runs/hafvt --histories histories.jsonl --domain drama --k 10 --out top.parquet

    Args:
        run: the folder of a finished run or of an export.
        histories: a file: JSONL (also as .gz or .zst) of objects with a history, a list of ids, oldest first,
            and optionally user_id, domain, k, and exclude, ids beside those of --exclude; or a table of
            interactions (user_id, item_id, timestamp) of any type that prepare reads, or a data frame.
        history: in place of a file, one history: ids, oldest first; none are an empty history.
        user: in place of a file, a user of the dataset, with all that it knows of them.
        domain: whose items; needed unless each history says so, or there is one only.
        k: how many for each history.
        out: the file to write or to replace: .jsonl, .csv or .parquet; default: stdout, of a file as JSONL.
        seen: recommend items of the history again.
        exclude: ids never to recommend.
        columns: our names and the table's names where they differ, such as user_id=customer.
        data: the dataset, where it has moved since training.

    Raises:
        InputError: the input is wrong; names file, row, field, value and remedy.
        HafvtError: a setting is wrong, or there is no finished run, or `out` cannot be written.
    """
    if sum(given is not None for given in (histories, history, user)) != 1:
        raise HafvtError(
            "whose recommendations? give one of --histories FILE, --history ID ID ... and --user USER"
        )
    if k < 1:
        raise HafvtError(f"--k {k}: give 1 or more")
    target = None if out is None else Path(out)
    if target is not None and (target.suffix.lower() not in SUFFIXES or target.is_dir()):
        raise HafvtError(f"--out {target}: name a file .jsonl, .csv or .parquet")
    if (
        target is not None
        and isinstance(histories, str | Path)
        and target.resolve() == Path(histories).resolve()
    ):
        raise HafvtError(f"--out {target} holds the histories: name another file")
    recommender = Recommender.open(run, data)
    domains = recommender.domains
    if domain is not None:
        recommender.catalog.domain_number(domain)
    usual = Asked(user, [], domain or (domains[0] if len(domains) == 1 else ""), k, exclude or [])
    if histories is not None:
        ask = read_histories(histories, usual, domains, columns)
    else:
        if not usual.domain:
            raise HafvtError(f"no domain: say --domain, one of {', '.join(domains)}")
        one = usual._replace(history=history_of(run, user, data) if user is not None else history or [])

        def ask() -> Iterator[Asked]:
            yield one

    done = BatchSummary(target)
    total = sum(1 for _ in ask())
    with _writer(target) as write, progress("recommend", total, "histories") as advance:
        for batch in _batches(ask()):
            answers = _answers(recommender, batch, seen)
            objects = []
            for asked, answer in zip(batch, answers, strict=True):
                done.add(answer)
                objects.append(_object(done.histories, asked, answer))
            if histories is None and target is None:
                print(answers[0])
            else:
                write(objects)
            advance(len(batch))
    if done.unknown and (histories is not None or target is not None):
        console.print(done.trouble, markup=False, highlight=False, soft_wrap=True)
    return done


def _batches(asked: Iterable[Asked]) -> Iterator[list[Asked]]:
    batch: list[Asked] = []
    ids = 0
    for one in asked:
        batch.append(one)
        ids += len(one.history) + one.k
        if len(batch) == BATCH or ids >= IDS:
            yield batch
            batch, ids = [], 0
    if batch:
        yield batch


def _answers(recommender: Recommender, batch: list[Asked], seen: bool) -> list[Recommendations]:
    """Returns the answers in the order of the batch; equal domains and k are ranked together."""
    groups: dict[tuple[str, int], list[int]] = {}
    for row, one in enumerate(batch):
        groups.setdefault((one.domain, one.k), []).append(row)
    found: dict[int, Recommendations] = {}
    for (domain, k), rows in groups.items():
        histories, exclude = [batch[row].history for row in rows], [batch[row].exclude for row in rows]
        answers = recommender.recommend(histories, domain, k, exclude=exclude, seen=seen)
        found.update(zip(rows, answers, strict=True))
    return [found[row] for row in range(len(batch))]


def _object(number: int, asked: Asked, answer: Recommendations) -> dict[str, Any]:
    """Returns what JSONL says of a history."""
    items = [
        {"rank": rank, "item_id": one.item.item_id, "title": one.item.title, "score": one.score}
        for rank, one in enumerate(answer.items, start=1)
    ]
    return {
        "number": number,
        "user_id": asked.user_id,
        "domain": asked.domain,
        "by": answer.by,
        "items": items,
        "unknown": list(answer.unknown),
    }


def _line(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def _table(objects: list[dict[str, Any]]) -> pl.DataFrame:
    """Returns a row for each item."""
    rows = [{**one, "unknown": len(one["unknown"]), **item} for one in objects for item in one["items"]]
    return pl.DataFrame(rows, schema=SCHEMA)


@contextmanager
def _writer(out: Path | None) -> Iterator[Callable[[list[dict[str, Any]]], object]]:
    """Yields what writes some objects to a file of the type that its name says, or to stdout."""
    if out is None:
        yield lambda objects: sys.stdout.writelines(map(_line, objects))
        return
    try:
        with atomic_file(out) as temporary:
            if out.suffix.lower() == ".parquet":
                # Polars appends to no Parquet file: each batch becomes a small one, and they are joined.
                with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
                    parts: list[Path] = []

                    def write(objects: list[dict[str, Any]]) -> None:
                        parts.append(Path(folder) / f"{len(parts)}.parquet")
                        _table(objects).write_parquet(parts[-1])

                    yield write
                    pl.scan_parquet(parts, glob=False).sink_parquet(temporary)
            elif out.suffix.lower() == ".csv":
                with temporary.open("wb") as file:
                    pl.DataFrame(schema=SCHEMA).write_csv(file)
                    yield lambda objects: _table(objects).write_csv(file, include_header=False)
            else:
                with temporary.open("w", encoding="utf-8") as lines:
                    yield lambda objects: lines.writelines(map(_line, objects))
    except OSError as error:
        remedy = "make room or choose another place with --out"
        raise HafvtError(f"{out} cannot be written ({error.strerror or error}): {remedy}") from None
