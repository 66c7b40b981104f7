"""Lines of text files: plain, gzip or zstd; the only reader of text lines in the package."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple

import polars as pl

from hafvt.data.table_options import UTF8
from hafvt.errors import InputError
from hafvt.progress import available_bytes

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD, GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"  # the first bytes of compressed files
SKIPPABLE = b"\x2a\x4d\x18"  # after one byte: the start of a zstd frame without text
BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 2**20
MAX_LINE_BYTES = 2**24
BYTES_PER_ROW = 64  # memory of a row while a table is read, besides twice its text
READ_ERRORS = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    EOFError,
    zlib.error,
    zstd.ZstdError,
)
SURROGATE = re.compile("[\ud800-\udfff]")
NOT_ASCII = re.compile("[^\0-\x7f\udc80-\udcff]")
# The letters and signs of cp1252 that texts of Western Europe have, and hardly any other text.
WESTERN = frozenset(
    "€‚„…‰Š‹ŒŽ‘’“”•–—™š›œžŸ\xa0¡£§©«®°±²³´µ·»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖ×ØÙÚÛÜß"
    "àáâãäåæçèéêëìíîïñòóôõöøùúûü".encode("cp1252")
)
NOT_UTF8 = ("not UTF-8 text", "Save it as UTF-8")  # problem and remedy


def read_lines(
    path: Path,
    *,
    max_bytes: int = MAX_LINE_BYTES,
    advance: Callable[[int], None] | None = None,
    encoding: str = UTF8,
) -> Iterator[tuple[int, bytes]]:
    """Yield row number (from 1) and bytes of each line of a text file: plain, gzip or zstd.

    Line ends and a byte order mark are removed. Only a chunk of the file is in memory at a time.

    Args:
        path: the file; its first bytes decide whether it is compressed.
        max_bytes: a longer line is cut, but stays longer than `max_bytes`, so that callers can refuse it.
        advance: receives how many MiB of the file, as stored, have been read since its last call.
        encoding: of the file; the lines become UTF-8.

    Raises:
        InputError: the file is damaged, or not of this encoding.
    """
    row, rest = 1, b""
    try:
        for chunk in _chunks(path, advance, encoding):
            if len(rest) > max_bytes and b"\n" not in chunk:
                continue
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield row, line.removesuffix(b"\r")
                row += 1
            rest = rest[: max_bytes + 1]
        if rest:
            yield row, rest.removesuffix(b"\r")
    except READ_ERRORS as error:
        raise unreadable(path, error, row) from None


def _chunks(
    path: Path, advance: Callable[[int], None] | None = None, encoding: str = UTF8
) -> Iterator[bytes]:
    """Yield the text of a file in pieces, unpacked and without a byte order mark, see `read_lines`."""
    if encoding != UTF8:
        yield from _utf8_chunks(path, advance, encoding)
        return
    with path.open("rb") as stored:
        magic = stored.read(4)
        stored.seek(0)
        is_first, is_mac = True, False
        for chunk in _stored_chunks(stored, magic, advance):
            if is_first:
                chunk, is_mac = chunk.removeprefix(BOM), b"\r" in chunk and b"\n" not in chunk
                is_first = False
            yield chunk.replace(b"\r", b"\n") if is_mac else chunk


def _unpacked(stored: BinaryIO, magic: bytes) -> BinaryIO | gzip.GzipFile | zstd.ZstdFile:
    """Return a file whose first bytes are `magic`, from its beginning; if compressed, as unpacked."""
    if magic == ZSTD:
        return zstd.ZstdFile(stored)
    return gzip.GzipFile(fileobj=stored) if magic.startswith(GZIP) else stored


def _stored_chunks(stored: BinaryIO, magic: bytes, advance: Callable[[int], None] | None) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, unpacked."""
    file = _unpacked(stored, magic)
    mib = 0
    while chunk := file.read(CHUNK_BYTES):
        if advance:
            advance((stored.tell() >> 20) - mib)
            mib = stored.tell() >> 20
        yield chunk


def _utf8_chunks(path: Path, advance: Callable[[int], None] | None, encoding: str) -> Iterator[bytes]:
    """Yield the text of a file of another encoding as UTF-8, see `_chunks`."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("rb") as stored:
        magic = stored.read(4)
        stored.seek(0)
        try:
            for chunk in _stored_chunks(stored, magic, advance):
                yield decoder.decode(chunk).encode()
            yield decoder.decode(b"", final=True).encode()
        except UnicodeError:
            raise InputError(f"not {encoding} text", "Name its encoding by --encoding", file=path) from None


@contextmanager
def utf8_file(path: Path, encoding: str) -> Iterator[Path]:
    """Yield the path of a text file in UTF-8: its own, or that of a copy while the block runs."""
    if encoding == UTF8:
        yield path
        return
    with TemporaryDirectory(prefix="hafvt-") as folder:
        copy = Path(folder, "table.csv")
        with copy.open("wb") as file:
            file.writelines(_utf8_chunks(path, None, encoding))
        yield copy


@contextmanager
def hidden_panics() -> Iterator[None]:
    """Hide the traceback that Rust prints on stderr before an exception of Python reports its panic."""
    stderr = None
    with suppress(OSError), Path(os.devnull).open("wb") as nothing:  # a process may have no stderr
        stderr = os.dup(2)
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        if stderr is not None:
            os.dup2(stderr, 2)
            os.close(stderr)


def scan_lines(path: Path) -> pl.LazyFrame:
    """Return a query with a column "line" of the lines of a text file."""
    return pl.scan_csv(
        path,
        has_header=False,
        schema={"line": pl.String},
        separator="\0",  # occurs in no text, so that each line is one field
        quote_char=None,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        glob=False,
    )


def read_jsonl(
    path: Path, names: Collection[str] = (), *, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield row number (from 1) and object of each line of a JSONL file that is not blank.

    Args:
        path: the file: plain, gzip or zstd.
        names: the fields that are used; a line that has one of them twice is refused.
        max_bytes: longer lines are refused, so that one line cannot fill the memory.

    Raises:
        InputError: the file is damaged, or a line is too long, not UTF-8 text, not a JSON object, or has a
            field twice.
    """
    keys: list[str] = []

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal keys
        keys = [key for key, _ in pairs]  # at the end, those of the outermost object
        return dict(pairs)

    for row, line in read_lines(path, max_bytes=max_bytes):
        problem, remedy, fields = "not a JSON object", "Write one object per line", None
        if len(line) > max_bytes:
            problem, remedy = f"a line of more than {max_bytes:,} bytes", "Shorten the line"
        else:
            try:
                text = line.decode()
                if not text.strip():
                    continue
                fields = json.loads(text, object_pairs_hook=as_object)
            except UnicodeDecodeError:
                problem, remedy = NOT_UTF8
            except (ValueError, RecursionError):
                pass
        if not isinstance(fields, dict):
            raise InputError(problem, remedy, file=path, row=row, value=line[:400].decode(errors="replace"))
        if len(keys) > len(fields) and (repeated := [name for name in names if keys.count(name) > 1]):
            raise InputError(
                "the line has this field twice", "Keep one", file=path, row=row, column=repeated[0]
            )
        yield row, fields


class TextTraits(NamedTuple):
    """What a text file holds.

    Attributes:
        has_quotes: quotes.
        has_returns: carriage returns that no line feed follows.
        is_western: bytes that are not UTF-8, but letters and signs of cp1252, and none that only UTF-8 has.
    """

    has_quotes: bool
    has_returns: bool
    is_western: bool


def has_utf16_mark(path: Path) -> bool:
    """Return whether a file begins with the byte order mark of UTF-16."""
    with path.open("rb") as stored:
        magic = stored.read(4)
        stored.seek(0)
        return _unpacked(stored, magic).read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_text(path: Path, encoding: str = UTF8, *, is_whole: bool = True) -> TextTraits:
    """Return what a text file holds; `is_whole` says that the table will be in memory as a whole.

    Raises:
        InputError: a line is too long or has a null character, or the table does not fit into memory.
    """
    num_bytes = num_lines = line_bytes = 0
    has_quotes = has_returns = ends_in_return = has_utf8 = False
    decoder, wrong_bytes = codecs.getincrementaldecoder(UTF8)("surrogateescape"), set[str]()
    for chunk in _chunks(path, encoding=encoding):
        if not chunk.isascii() and len(wrong_bytes) < len(WESTERN):
            text = decoder.decode(chunk)
            try:
                text.encode()  # faster than a search
                has_utf8 |= not text.isascii()
            except UnicodeEncodeError:
                wrong_bytes |= set(SURROGATE.findall(text))
                has_utf8 |= NOT_ASCII.search(text) is not None
        if (position := chunk.find(b"\0")) >= 0:
            row = num_lines + chunk.count(b"\n", 0, position) + 1
            raise InputError(*NOT_UTF8, file=path, row=row)
        num_bytes += len(chunk)
        num_lines += (line_ends := chunk.count(b"\n"))
        line_bytes = len(chunk) - chunk.rfind(b"\n") - 1 if line_ends else line_bytes + len(chunk)
        if line_bytes > MAX_LINE_BYTES:
            problem = f"a line of more than {MAX_LINE_BYTES:,} bytes"
            raise InputError(problem, "Shorten the line", file=path, row=num_lines + 1)
        if is_whole and num_bytes >> 26 > (num_bytes - len(chunk)) >> 26:  # every 64 MiB
            check_memory(path, num_bytes, num_lines)
        has_quotes |= b'"' in chunk
        num_returns = ends_in_return + chunk.count(b"\r") - chunk.endswith(b"\r")
        num_pairs = chunk.count(b"\r\n") + (ends_in_return and chunk.startswith(b"\n"))
        has_returns |= num_returns > num_pairs
        ends_in_return = chunk.endswith(b"\r")
    if is_whole:
        check_memory(path, num_bytes, num_lines)
    wrong_bytes |= set(decoder.decode(b"", final=True))
    has_western = bool(wrong_bytes) and {ord(letter) & 0xFF for letter in wrong_bytes} <= WESTERN
    return TextTraits(has_quotes, has_returns or ends_in_return, has_western and not has_utf8)


def check_memory(path: Path, num_bytes: int, num_rows: int) -> None:
    """Raise InputError if a table of this unpacked size is too large for the memory of the machine."""
    needed, available = 2 * num_bytes + BYTES_PER_ROW * num_rows, available_bytes()
    if needed > available:
        table = f"{num_rows:,} or more rows take" if num_rows else "its text takes"
        sizes = f"{needed / 2**30:.1f} GiB of memory or more, but {available / 2**30:.1f} GiB are free"
        raise InputError(f"{table} {sizes}", "Keep fewer rows, or use a machine with more memory", file=path)


def unreadable(path: Path, error: Exception, row: int | None = None) -> InputError:
    """Return the error for a file that raised one of `READ_ERRORS`, at `row` if that is known."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    reason = "damaged" if isinstance(error, pl.exceptions.PanicException) else reason
    remedy = "Check it, or download or write it again"
    return InputError(f"it cannot be read ({reason})", remedy, file=path, row=row)
