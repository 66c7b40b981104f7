"""Times at which histories are cut: dates, or numbers in the unit of the interactions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import numpy.typing as npt

from hafvt.data.times import parse_request_time, unix_ticks
from hafvt.errors import ArgumentError


@dataclass(frozen=True)
class TimeScale:
    """The unit and the range of the times of interactions.

    Attributes:
        first: earliest time.
        last: latest time.
        ticks_per_second: of times since 1970; None for numbers of another kind.
    """

    first: int
    last: int
    ticks_per_second: int | None

    @classmethod
    def of(cls, times: npt.NDArray[Any], ticks_per_second: int = 1) -> Self:
        """Return the scale of times; `ticks_per_second` above 1 is that of dates with fractions."""
        first, last = int(times.min()), int(times.max())
        return cls(first, last, ticks_per_second if ticks_per_second > 1 else unix_ticks(first, last))

    def parse(
        self, option: str, value: object, time_format: str | None = None, time_zone: str = "UTC"
    ) -> int:
        """Return a time of an option, a date or a number, in the unit of the interactions.

        Raises:
            ArgumentError: it is neither, or it is a date, but the times of the interactions are none.
        """
        text = str(value).strip()
        if time_format is None and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            return int(text)
        try:
            seconds = parse_request_time(text, time_format, time_zone)
        except ArgumentError:
            seconds = None
        if seconds is None:
            raise ArgumentError(f"{option} {text[:80]}: give a date such as 2026-12-24, or a whole number")
        if self.ticks_per_second is None:
            raise ArgumentError(
                f"{option} {text}: the times of the interactions are no dates since 1973, but numbers from "
                f"{self.first:,} to {self.last:,}: give such a number"
            )
        return seconds * self.ticks_per_second

    def format(self, time: int) -> str:
        """Return a time as text: a date, with the time of the day unless it is midnight UTC, or a number."""
        if self.ticks_per_second is None:
            return f"{time}"
        date = datetime.fromtimestamp(time // self.ticks_per_second, UTC)
        return f"{date:%Y-%m-%d}" if date.time() == datetime.min.time() else f"{date:%Y-%m-%dT%H:%M:%S}"
