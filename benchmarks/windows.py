"""How well the rule of `prepare-amazon` cuts histories as C2DSR's release does.

    python benchmarks/windows.py ../shared/data/c2dsr-food-kitchen

Only users whose sequences are all at hand can be compared: their events are joined, cut anew, and the sets of
items held against the release's.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from hafvt.data.sources.amazon import WINDOW_DAYS, cut_blocks
from hafvt.data.sources.c2dsr import prepare_c2dsr

LONGEST, SHARE = 15, 3


def main() -> None:
    """Prints how many users agree, by how many sequences they have and whether any is full."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_c2dsr(sys.argv[1], Path(folder) / "data").dataset
    days = WINDOW_DAYS["year"] if data.domains[0].name == "food" else WINDOW_DAYS["month"]
    start = data.domains[1].start
    people: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row, name in enumerate(data.user_ids):
        user, _, number = name.rpartition("#")
        people[user].append((int(number), row))
    # sequences are numbered user after user, and each user's last one is always at hand
    last, agree, count = -1, defaultdict(int), defaultdict(int)
    for user in sorted(people, key=lambda user: max(people[user])):
        of, before = sorted(people[user]), last
        last = of[-1][0]
        if len(of) != last - before or len(of) < 2:
            continue
        events, results = set(), set()
        for _, row in of:
            part = slice(data.offsets[row], data.offsets[row + 1])
            events |= set(zip(data.times[part].tolist(), data.items[part].tolist(), strict=True))
            results.add(frozenset(data.items[part].tolist()))
        times, items = map(np.array, zip(*sorted(events), strict=True))
        starts, stops = cut_blocks(np.zeros(len(times), dtype=np.int32), times, days, LONGEST)
        parts = [items[a:b] for a, b in zip(starts, stops, strict=True)]
        fresh_rows = {
            frozenset(part.tolist())
            for part in parts
            if min((part < start).sum(), (part >= start).sum()) >= SHARE
        }
        kind = f"{len(of)} sequences, {'some' if any(len(f) == LONGEST for f in results) else 'none'} full"
        count[kind] += 1
        agree[kind] += fresh_rows == results
    for kind in sorted(count, key=lambda kind: int(re.match(r"\d+", kind)[0])):
        print(f"{kind}: {agree[kind]:,} of {count[kind]:,} users")
    print(f"all: {sum(agree.values()) / sum(count.values()):.1%} of {sum(count.values()):,} users")


if __name__ == "__main__":
    main()
