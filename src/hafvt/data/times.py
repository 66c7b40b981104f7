"""Times of interactions: numbers of any unit, or dates, parsed without loss of order."""

from __future__ import annotations

from typing import Literal, NamedTuple

import polars as pl

DATE = r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?$"
MAX_TIME = 9e18  # so that times fit 64 bits
UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
TICKS_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}
EXACT_INTEGERS = {"Float16": 2**11, "Float32": 2**24, "Float64": 2**53}
"""The largest number up to which a type of floats holds every whole number."""
FLOAT_DIGITS = 17  # a 64-bit float holds no more digits
UNIX_SECONDS = (10**8, 4 * 10**9)  # 1973 to 2096


class Times(NamedTuple):
    """Parsed times.

    Attributes:
        values: Int64, or Float64 if any has a fraction; null where a value is not a time.
        ticks_per_second: 1, or for dates and decimals with fractions of seconds the unit of `values`.
    """

    values: pl.Series
    ticks_per_second: int = 1


def unix_ticks(first: int, last: int) -> int | None:
    """Return the ticks per second of times from `first` to `last`; None if they do not count from 1970."""
    low, high = UNIX_SECONDS
    units = (1, *TICKS_PER_SECOND.values())
    return next((ticks for ticks in units if low * ticks <= first and last <= high * ticks), None)


def parse_times(column: pl.Series) -> Times:
    """Parse times: numbers keep their unit, dates become seconds since 1970, UTC unless they name a zone."""
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        return _parse_text(column.cast(pl.String).str.strip_chars())
    if column.dtype.is_integer() or (isinstance(column.dtype, pl.Decimal) and not column.dtype.scale):
        return Times(column.cast(pl.Int64, strict=False))
    if column.dtype.is_float() or column.dtype.is_decimal():
        exact = _nanoseconds(column) if column.dtype.is_decimal() else None
        return exact or Times(_finite(column.cast(pl.Float64)))
    if column.dtype == pl.Date:
        return _whole_or_ticks(column.cast(pl.Datetime("us")))
    if isinstance(column.dtype, pl.Datetime):
        return _whole_or_ticks(column)
    return Times(pl.repeat(None, len(column), dtype=pl.Int64, eager=True).alias(column.name))


def _parse_text(column: pl.Series) -> Times:
    """Parse text as the kind of time that fits most rows, so that an odd row is the error."""
    integers = column.cast(pl.Int64, strict=False)
    if integers.null_count() == 0:
        return Times(integers)
    if (column.str.len_bytes() > FLOAT_DIGITS).any() and (exact := _nanoseconds(column)):
        return exact
    floats = _finite(column.cast(pl.Float64, strict=False))
    kinds = [Times(integers), Times(floats), _whole_or_ticks(_datetimes(column))]
    return min(kinds, key=lambda times: times.values.null_count())


def _nanoseconds(column: pl.Series) -> Times | None:
    """Return decimal seconds as nanoseconds, None if one of them is something else."""
    decimals = column.cast(pl.Decimal(38, 9), strict=False)
    is_in_range = decimals.null_count() == 0 and (decimals.abs() < MAX_TIME / 10**9).all()
    return Times((decimals * 10**9).cast(pl.Int64), 10**9) if is_in_range else None


def _whole_or_ticks(times: pl.Series) -> Times:
    """Return datetimes as seconds, or as ticks of their own unit if any has a fraction of a second."""
    assert isinstance(times.dtype, pl.Datetime)
    ticks, per_second = times.to_physical(), TICKS_PER_SECOND[times.dtype.time_unit]
    has_fraction = (ticks % per_second != 0).any()
    return Times(ticks, per_second) if has_fraction else Times(ticks // per_second)


def _finite(column: pl.Series) -> pl.Series:
    """Return floats with nulls for NaN, infinities and values beyond 64-bit integers."""
    return column.set(~(column.abs() < MAX_TIME).fill_null(False), None)


def _datetimes(column: pl.Series) -> pl.Series:
    """Return ISO 8601 text as UTC datetimes, null where it is not ISO 8601."""
    parts = pl.col(column.name).str.extract_groups(DATE)
    day, minute, second, fraction, zone = (parts.struct.field(str(n)) for n in range(1, 6))
    full = pl.concat_str(
        day,
        pl.lit("T"),
        minute.fill_null("00:00"),
        second.fill_null(":00"),
        fraction.fill_null(".0"),
        zone.replace("Z", "+00:00").fill_null("+00:00"),
    )
    is_nanosecond_range = column.str.slice(0, 4).is_between(pl.lit("1678"), pl.lit("2261")).all()
    has_nanoseconds = is_nanosecond_range and column.str.contains(r"\.\d{7}").any()
    unit: Literal["ns", "us"] = "ns" if has_nanoseconds else "us"
    parsed = full.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit=unit, strict=False)
    return column.to_frame().select(parsed.alias(column.name))[column.name]


def is_imprecise(column: pl.Series, times: pl.Series) -> pl.Series:
    """Return which times lost digits: they are floats that are too large to hold every whole number.

    Args:
        column: the times of the input.
        times: the times as `parse_times` returns them.
    """
    dtype = column.dtype if column.dtype.is_float() else times.dtype
    return times.abs() > EXACT_INTEGERS.get(str(dtype), 2**63 - 1)


def other_unit(times: pl.Series) -> tuple[pl.Series, str, str] | None:
    """Find numbers of another unit than most, such as milliseconds among seconds since 1970.

    Returns:
        Mask of the times in the rarer unit, its name, and the name of the other unit; None if there is one
        unit, or if times between the two units show that the numbers are of neither.
    """
    digits = (times.cast(pl.Float64).abs() + 0.5).log10().floor().cast(pl.Int64)  # 9: from 10**9 on
    counts = [digits.is_in([8 + 3 * n, 9 + 3 * n]).sum() for n in range(len(UNITS))]
    between = [(digits == 10 + 3 * n).any() for n in range(len(UNITS))]
    present = [n for n, count in enumerate(counts) if count]
    if len(present) < 2 or any(between):
        return None
    common = max(present, key=counts.__getitem__)
    rare = min(present, key=counts.__getitem__)
    rare = rare if rare != common else present[-1]
    return digits.is_in([8 + 3 * rare, 9 + 3 * rare]), UNITS[rare], UNITS[common]
