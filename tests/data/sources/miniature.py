"""Miniature dumps of Amazon's reviews and products, byte for byte in the formats of 2014, 2018 and 2023."""

from __future__ import annotations

import gzip
import io
import json
import random
from datetime import UTC, datetime

from PIL import Image

DAY = 86_400
START = 1_356_998_400  # 2013-01-01
CATEGORIES = {"food": "Grocery_and_Gourmet_Food", "kitchen": "Home_and_Kitchen"}
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")  # the last is none that we take


def reviews(seed: int = 0, *, users: int = 60, items: int = 24) -> dict[str, list[tuple[str, str, int]]]:
    """Returns user, item and day of each review, by domain; every user is busy in both, in two bouts."""
    source = random.Random(seed)
    log: dict[str, list[tuple[str, str, int]]] = {name: [] for name in CATEGORIES}
    for number in range(users):
        user = f"A{number:04}USER" if number else "#oc-R1USER"
        for name in CATEGORIES:
            chosen = source.sample(range(items), 10)
            for place, item in enumerate(chosen):
                day = source.randint(0, 200) + (600 if place >= 5 else 0)
                log[name].append((user, asin(name, item), START + DAY * day))
    log["food"] += [(f"ALONE{number:04}", asin("food", 0), START) for number in range(20)]
    for rows in log.values():
        source.shuffle(rows)
    return log


def asin(name: str, number: int) -> str:
    return f"B{name[:2].upper()}{number:07}"


def gzipped(lines: list[str]) -> bytes:
    return gzip.compress(("\n".join(lines) + "\n").encode())


def review_lines(year: int, rows: list[tuple[str, str, int]], seed: int = 0) -> list[str]:
    """Returns the lines of a file of reviews, one duplicated and one broken among them."""
    source, lines = random.Random(seed), []
    for user, item, time in rows:
        when = datetime.fromtimestamp(time, UTC)
        if year == 2023:
            fields = {
                "rating": 5.0,
                "title": "Good",
                "text": "It&#39;s “good”",
                "images": [],
                "asin": f"{item}V",
                "parent_asin": item,
                "user_id": user,
                "timestamp": time * 1000 + 7,
                "helpful_vote": 0,
                "verified_purchase": True,
            }
        elif year == 2018:
            fields = {
                "overall": 5.0,
                "verified": True,
                "reviewTime": f"{when:%m %d, %Y}",
                "reviewerID": user,
                "asin": item,
                "style": {"Size:": " Large"},
                "reviewerName": 'Ann "A" B',
                "reviewText": "x",
                "summary": "y",
                "unixReviewTime": time,
            }
        else:
            fields = {
                "reviewerID": user,
                "asin": item,
                "reviewerName": "J. McAuley",
                "helpful": [2, 3],
                "reviewText": "I bought this for {my} husband\u2028",
                "overall": 5.0,
                "summary": "Heavenly",
                "unixReviewTime": time,
                "reviewTime": f"{when:%m %d, %Y}",
            }
        names = list(fields)
        source.shuffle(names)  # in any order of columns
        lines.append(json.dumps({name: fields[name] for name in names}, ensure_ascii=source.random() < 0.5))
    lines.insert(7, lines[3])
    lines.insert(11, lines[5][: len(lines[5]) // 2])
    return lines


def ratings(year: int, rows: list[tuple[str, str, int]]) -> str:
    """Returns a file of ratings; the order of its columns depends on the year."""
    if year == 2023:
        return "user_id,parent_asin,rating,timestamp\n" + "".join(f"{u},{i},5.0,{t}000\n" for u, i, t in rows)
    order = "{0},{1},5.0,{2}\n" if year == 2014 else "{1},{0},5.0,{2}\n"
    return "".join(order.format(*row) for row in rows)


def product_lines(year: int, name: str, base: str, *, items: int = 24) -> list[str]:
    """Returns the lines of a file of products, whose pictures lie under `base`; some lack a title or more."""
    lines = []
    for number in range(items):
        item, other = asin(name, number), [asin(name, (number + 1) % items)]
        url, title = f"{base}/{item}.jpg", f"{name.title()} &amp; more no. {number}"
        if year == 2023:
            fields = {
                "main_category": name,
                "title": title,
                "average_rating": 4.5,
                "features": [],
                "price": None,
                "images": [
                    {"thumb": "x", "large": f"{base}/no.jpg", "variant": "PT01", "hi_res": None},
                    {"thumb": "x", "large": url, "variant": "MAIN", "hi_res": None},
                ],
                "videos": [],
                "store": "Acme",
                "categories": ["All", name],
                "details": {"Brand": "Acme"},
                "parent_asin": item,
                "bought_together": None,
            }
        elif year == 2018:
            fields = {
                "category": ["All", name],
                "title": title,
                "also_buy": other,
                "also_view": [],
                "brand": "Acme",
                "rank": "1 in All",
                "image": [f"{base}/thumb.jpg"],
                "imageURLHighRes": [url],
                "asin": item,
                "price": "$1",
                "details": {},
            }
        else:
            related = {"also_bought": other, "buy_after_viewing": other, "bought_together": other}
            fields = {
                "asin": item,
                "title": title,
                "price": 3.17,
                "imUrl": url,
                "related": related,
                "salesRank": {"Toys & Games": 211836},
                "brand": "Acme",
                "categories": [["All", name], ["All"]],
            }
        if number % 8 == 1:
            del fields["title"]
        if number % 8 == 2:
            fields["title"] = "<script>getTime()</script>" if year == 2018 else 'It\'s a "q"'
        lines.append(repr(fields) if year == 2014 else json.dumps(fields))
    lines.insert(4, lines[2])
    lines.insert(9, lines[2][:40])
    return lines


def picture(number: int) -> bytes:
    """Returns a picture, of another kind each."""
    stream = io.BytesIO()
    color = tuple(random.Random(number).randbytes(3))
    Image.new("RGB", (40, 40), color).save(stream, KINDS[number % len(KINDS)])
    return stream.getvalue()


def dump(year: int, base: str, seed: int = 0) -> dict[str, bytes]:
    """Returns the files of a publisher by their addresses below his own, and the pictures below `p`."""
    names = {
        2014: ("reviews_{}.json.gz", "meta_{}.json.gz"),
        2018: ("categoryFiles/{}.json.gz", "metaFiles2/meta_{}.json.gz"),
        2023: ("raw/review_categories/{}.jsonl.gz", "raw/meta_categories/meta_{}.jsonl.gz"),
    }[year]
    files = {}
    for name, rows in reviews(seed).items():
        category = CATEGORIES[name]
        files[names[0].format(category)] = gzipped(review_lines(year, rows))
        files[names[1].format(category)] = gzipped(product_lines(year, name, f"{base}/p"))
        files |= {f"p/{asin(name, n)}.jpg": picture(n) for n in range(23)}  # the last is dead
    return files
