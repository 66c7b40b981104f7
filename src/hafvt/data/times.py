"""Times of interactions: numbers of any unit, or dates, parsed without loss of order."""

from __future__ import annotations

from datetime import date
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from hafvt.errors import ArgumentError

DATE = r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?$"
LOCAL_DATE = (
    r"^(\d{1,4})([./-])(\d{1,2})[./-](\d{4}|\d{1,2})"
    r"(?:[T ,]+(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?(?: ?([AaPp])\.?[Mm]\.?)?)?$"
)
"""A date such as 31.12.2025, with or without a time such as 14:05, 14:05:59 or 2:05 PM."""
MAX_TIME = 9e18  # so that times fit 64 bits
UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
TICKS_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}
EXACT_INTEGERS = {"Float16": 2**11, "Float32": 2**24, "Float64": 2**53}
"""The largest number up to which a type of floats holds every whole number."""
FLOAT_DIGITS = 17  # a 64-bit float holds no more digits
UNIX_SECONDS = (10**8, 4 * 10**9)  # 1973 to 2096
YEAR_9999 = range(253_370_764_800, 253_402_300_800)
TimeLike = str | int | float | date | np.datetime64 | None
"""The time of a request, see `parse_request_time`."""


class Times(NamedTuple):
    """Parsed times.

    Attributes:
        values: Int64, or Float64 if any has a fraction; null where a value is not a time.
        ticks_per_second: 1, or for dates and decimals with fractions of seconds the unit of `values`.
        time_format: the format of dates that was guessed; empty for numbers and ISO 8601.
    """

    values: pl.Series
    ticks_per_second: int = 1
    time_format: str = ""


def unix_ticks(first: int, last: int) -> int | None:
    """Return the ticks per second of times from `first` to `last`; None if they do not count from 1970."""
    low, high = UNIX_SECONDS
    units = (1, *TICKS_PER_SECOND.values())
    return next((ticks for ticks in units if low * ticks <= first and last <= high * ticks), None)


def parse_times(column: pl.Series, time_format: str | None = None, time_zone: str = "UTC") -> Times:
    """Parse times: numbers keep their unit, dates become seconds since 1970.

    Args:
        column: numbers, dates, or text of one of these.
        time_format: of dates in text and numbers; None takes ISO 8601, or the format of `guess_time_format`.
        time_zone: of dates that name no zone.
    """
    if time_format is not None and column.dtype.is_numeric():  # such as 20241231 and %Y%m%d
        column = column.cast(pl.Int64, strict=False).cast(pl.String)
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        return _parse_text(column.cast(pl.String).str.strip_chars(), time_format, time_zone)
    if column.dtype.is_integer() or (isinstance(column.dtype, pl.Decimal) and not column.dtype.scale):
        return Times(column.cast(pl.Int64, strict=False))
    if column.dtype.is_float() or column.dtype.is_decimal():
        exact = _nanoseconds(column) if column.dtype.is_decimal() else None
        return exact or Times(_finite(column.cast(pl.Float64)))
    if column.dtype == pl.Date:
        return _whole_or_ticks(_in_zone(column.cast(pl.Datetime("us")), time_zone))
    if isinstance(column.dtype, pl.Datetime):
        return _whole_or_ticks(column if column.dtype.time_zone else _in_zone(column, time_zone))
    return Times(pl.repeat(None, len(column), dtype=pl.Int64, eager=True).alias(column.name))


def parse_request_time(time: TimeLike, time_format: str | None = None, time_zone: str = "UTC") -> int | None:
    """Return the time of a request as seconds since 1970; None, which stands for now, stays None.

    Args:
        time: a date, with or without a time, as text of `time_format`, of ISO 8601 or such as 31.12.2025, or
            as an object of Python, NumPy or pandas; or seconds since 1970. All within `UNIX_SECONDS`.
        time_format: of dates in text and numbers.
        time_zone: of dates that name no zone.

    Raises:
        ArgumentError: it is something else, such as a year or milliseconds.
    """
    if time is None:
        return None
    wrong = ArgumentError(
        f"{str(time)[:80]!r} is no time of a request: give a date of 1973 to 2096 such as 2026-12-24, or "
        "seconds since 1970"
    )
    try:
        value: object = time.astype("datetime64[us]").item() if isinstance(time, np.datetime64) else time
        column = pl.Series([value])
    except (TypeError, OverflowError, UnicodeError, pl.exceptions.PolarsError):
        raise wrong from None
    times = Times(pl.Series([None]))
    if time_format and not column.dtype.is_temporal():
        times = parse_times(column, time_format, time_zone)
    if times.values[0] is None:
        try:  # RFC 3339 also has letters in lower case
            upper = column.str.to_uppercase() if column.dtype == pl.String else column
            times = parse_times(upper, None, time_zone)
        except ArgumentError:  # the guess of a format
            raise ArgumentError(
                f"{str(time)[:80]!r} may begin with the day or the month: write the time as 2026-12-24"
            ) from None
    seconds = -1 if times.values[0] is None else int(times.values[0] // times.ticks_per_second)
    if UNIX_SECONDS[0] <= seconds <= UNIX_SECONDS[1]:
        return seconds
    raise wrong


def _parse_text(column: pl.Series, time_format: str | None, time_zone: str) -> Times:
    """Parse text as the kind of time that fits most rows, so that an odd row is the error."""
    if time_format is not None:
        return _whole_or_ticks(_formatted(column, time_format, time_zone))
    integers = column.cast(pl.Int64, strict=False)
    if integers.null_count() == 0:
        return Times(integers)
    if (column.str.len_bytes() > FLOAT_DIGITS).any() and (exact := _nanoseconds(column)):
        return exact
    floats = _finite(column.cast(pl.Float64, strict=False))
    kinds = [Times(integers), Times(floats), _whole_or_ticks(_datetimes(column, time_zone))]
    best = min(kinds, key=lambda times: times.values.null_count())
    if best.values.null_count() and (guess := guess_time_format(column)):
        local = _whole_or_ticks(_in_zone(_local_datetimes(column, guess), time_zone))
        if local.values.null_count() < best.values.null_count():
            return local._replace(time_format=str(guess))
    return best


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


def _in_zone(times: pl.Series, time_zone: str) -> pl.Series:
    """Return naive datetimes of a zone in UTC: of two equal ones the first, in a gap one hour later."""
    if time_zone == "UTC":
        return times
    zoned = times.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    later = times.dt.offset_by("1h").dt.replace_time_zone(
        time_zone, ambiguous="earliest", non_existent="null"
    )
    zoned = zoned.zip_with(zoned.is_not_null() | times.is_null(), later)
    return zoned.dt.convert_time_zone("UTC").dt.replace_time_zone(None)


def _formatted(column: pl.Series, time_format: str, time_zone: str) -> pl.Series:
    """Return text of a format as UTC datetimes, null where it has another."""
    try:
        times = column.str.to_datetime(time_format, strict=False, time_unit="us")
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"--time-format {time_format}: {reason}: write it as %d.%m.%Y %H:%M") from None
    return times if times.dtype.time_zone else _in_zone(times, time_zone)  # type: ignore[attr-defined]


class TimeFormat(NamedTuple):
    """The order of year, month and day in a date such as 31.12.2025; the time of the day may follow."""

    order: Literal["dmy", "mdy", "ymd"]
    separator: str

    def __str__(self) -> str:
        """Return the format as that of `strptime`."""
        parts = {"d": "%d", "m": "%m", "y": "%Y"}
        return self.separator.join(parts[part] for part in self.order)


def guess_time_format(column: pl.Series) -> TimeFormat | None:
    """Return the format of dates in text, such as 31.12.2025 14:05; None if most of them have none.

    Raises:
        ArgumentError: the first number of all dates may be the day or the month, as in 01/02/2025.
    """
    parts = _date_parts(column)
    first, second, separator = parts["first"], parts["second"], parts["separator"].drop_nulls()
    if 2 * len(separator) < len(column):
        return None
    sign = separator.mode().sort()[0]
    if (first > 31).sum() * 2 > len(separator):
        return TimeFormat("ymd", sign)
    if sign != ".":  # with points, the day is first
        day_first, month_first = (second <= 12).sum(), (first <= 12).sum()
        if day_first == month_first == len(separator) and (first != second).any():
            month_format, day_format = TimeFormat("mdy", sign), TimeFormat("dmy", sign)
            raise ArgumentError(
                f"{column.drop_nulls()[0]!r} in column {column.name!r} may begin with the day or the month: "
                f"give --time-format '{day_format}' or '{month_format}', with %H:%M if it has a time"
            )
        return TimeFormat("mdy" if month_first > day_first else "dmy", sign)
    return TimeFormat("dmy", sign)


def _date_parts(column: pl.Series) -> pl.DataFrame:
    """Return the numbers of dates such as 31.12.2025 14:05 as columns, null where text is no such date."""
    names = ("first", "separator", "second", "third", "hour", "minute", "second_of", "fraction", "half")
    groups = column.to_frame("text").select(pl.col("text").str.extract_groups(LOCAL_DATE)).to_series().struct
    frame = groups.unnest().rename(dict(zip(map(str, range(1, 10)), names, strict=True)))
    return frame.with_columns(pl.col("first", "second", "third", "hour").cast(pl.Int32, strict=False))


def _local_datetimes(column: pl.Series, time_format: TimeFormat) -> pl.Series:
    """Return text of a guessed format as naive datetimes, null where it has another."""
    day, month, year = ({"d": "dmy", "m": "mdy", "y": "ymd"}[time_format.order[0]].index(p) for p in "dmy")
    numbers = [pl.col(name) for name in ("first", "second", "third")]
    century = pl.when(numbers[year] < 69).then(2000).when(numbers[year] < 100).then(1900).otherwise(0)
    noon = pl.col("half").str.to_lowercase()
    hour = pl.col("hour").fill_null(0)
    hour = pl.when(noon == "p").then(hour % 12 + 12).when(noon == "a").then(hour % 12).otherwise(hour)
    two = [part.cast(pl.String).str.zfill(2) for part in (numbers[month], numbers[day], hour)]
    text = pl.concat_str(
        (numbers[year] + century).cast(pl.String),
        pl.lit("-"),
        two[0],
        pl.lit("-"),
        two[1],
        pl.lit("T"),
        two[2],
        pl.lit(":"),
        pl.col("minute").fill_null("00"),
        pl.lit(":"),
        pl.col("second_of").fill_null("00"),
        pl.lit(".") + pl.col("fraction").fill_null("0"),
    )
    parsed = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    return _date_parts(column).select(parsed.alias(column.name)).to_series()


def _datetimes(column: pl.Series, time_zone: str) -> pl.Series:
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
    times = column.to_frame().select(parsed.alias(column.name))[column.name]
    if time_zone == "UTC":
        return times
    has_zone = column.str.contains("(Z|[+-]\\d\\d:?\\d\\d)$").fill_null(False)
    local = _in_zone(times.dt.replace_time_zone(None), time_zone)
    return times.zip_with(has_zone, local.dt.replace_time_zone("UTC"))


def is_imprecise(column: pl.Series, times: pl.Series) -> pl.Series:
    """Return which times lost digits: they are floats that are too large to hold every whole number.

    Args:
        column: the times of the input.
        times: the times as `parse_times` returns them.
    """
    dtype = column.dtype if column.dtype.is_float() else times.dtype
    return times.abs() > EXACT_INTEGERS.get(str(dtype), 2**63 - 1)


def is_placeholder(column: pl.Series, times: pl.Series, unit: str) -> bool:
    """Return whether the first of some times is a far date, or a number of the year 9999 in a unit.

    Args:
        column: the times of the input.
        times: the same times as numbers.
        unit: one of `UNITS`.
    """
    is_date = column.dtype.is_temporal() or column.head(1).cast(pl.Float64, strict=False)[0] is None
    return is_date or times[0] // 1000 ** UNITS.index(unit) in YEAR_9999


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
