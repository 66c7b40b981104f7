import base64
import hashlib
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hafvt.evaluation.metrics import MetricValue
from hafvt.reports.charts import CurvePoint, axis_ticks
from hafvt.reports.page import ItemCard, RankedItem, UserExample, write_page

PIXEL = "data:image/png;base64,iVBORw0KGgo="
MARKUP = "<script>alert(1)</script><img src=https://evil.example/x onerror='alert(2)'>\"$title"
VOID = {"meta", "img", "br", "hr", "link", "input"}
SELF_CLOSED = {"path", "rect", "line", "circle", "polyline"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str, css: str = "") -> list["Element"]:
        elements = [
            e for e in self.children if e.tag == tag and css in (e.attributes.get("class") or "").split(" ")
        ]
        if not css:
            elements = [e for e in self.children if e.tag == tag]
        return elements + [e for child in self.children for e in child.all(tag, css)]

    def words(self) -> str:
        return " ".join([self.text, *(child.words() for child in self.children)]).strip()


class Tree(HTMLParser):
    """Builds the tree and fails where elements do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), attrs
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SELF_CLOSED
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].text += data


def item_card(number: int, domain: str = "food", **changes: str | None) -> ItemCard:
    return ItemCard(
        **{"item_id": f"i{number}", "domain": domain, "title": f"Title {number}", "picture": PIXEL, **changes}
    )  # type: ignore[arg-type]


def user_example(
    name: str = "ann", shares: dict[tuple[str, str], float] | None = None, **target: str | None
) -> UserExample:
    if shares is None:
        shares = {
            ("own", "id"): 0.5,
            ("own", "image"): 0.125,
            ("merged", "id"): 0.25,
            ("merged", "image"): 0.125,
        }
    items = [item_card(number) for number in range(10)]
    if target:
        items[2] = item_card(2, **target)
    return UserExample(
        user_id=name,
        domain="food",
        history=tuple(item_card(100 + n, "food" if n % 2 else "kitchen") for n in range(15)),
        target=items[2],
        target_rank=3.0,
        recommendations=tuple(RankedItem(i, 1.0, shares, n == 2) for n, i in enumerate(items)),
    )


RESULTS = {
    name: {
        domain: {
            metric: MetricValue(value, value - 0.01, value + 0.01) for metric in ("MRR", "NDCG@10", "HR@10")
        }
        for domain in ("food", "kitchen", "overall")
    }
    for name, value in {"ours": 0.12, "theirs": 0.1}.items()
}
CURVES = {
    "ours": [CurvePoint(e, 5.0 / e, 0.02 * e if e % 2 == 0 else None) for e in range(1, 9)],
    "popularity": [CurvePoint(1, 0.0, 0.01)],
}


def build(path: Path, **changes: object) -> tuple[str, Element]:
    arguments: dict[str, object] = {
        "title": "food and kitchen",
        "results": RESULTS,
        "curves": CURVES,
        "users": [user_example()],
        "notes": ["hafvt 0.1.0"],
    }
    write_page(path / "page.html", **{**arguments, **changes})  # type: ignore[arg-type]
    page = (path / "page.html").read_text(encoding="utf-8")
    return page, Tree(page).root


def assert_self_contained(page: str, root: Element) -> None:
    """No script, no handler, no style attribute, no reference but data: URIs."""

    def walk(element: Element) -> None:
        assert element.tag not in {"script", "link", "iframe", "object", "embed", "base", "a", "form"}
        for name, value in element.attributes.items():
            assert not name.startswith("on"), name
            assert name not in {"href", "xlink:href", "srcset", "style", "action", "background"}
            if name == "src":
                assert re.match(r"data:image/(jpeg|png);base64,", value or "")
        for child in element.children:
            walk(child)

    walk(root)
    style = root.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style


def test_write_page_is_self_contained_with_a_strict_policy(tmp_path: Path) -> None:
    page, root = build(tmp_path)
    assert_self_contained(page, root)
    assert "http://" not in page
    assert "https://" not in page
    policy = next(m.attributes["content"] for m in root.all("meta") if "http-equiv" in m.attributes)
    digest = base64.b64encode(hashlib.sha256(root.all("style")[0].text.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("place", ["title", "model", "domain", "user", "item", "item id", "branch", "note"])
def test_write_page_with_markup_in_text_escapes_it(tmp_path: Path, place: str) -> None:
    user = user_example(MARKUP if place == "user" else "ann")
    if place in ("item", "item id", "domain"):
        user = user_example(**{{"item": "title", "item id": "item_id"}.get(place, place): MARKUP})
    if place == "branch":
        user = user_example(shares={(MARKUP, MARKUP): 1.0})
    _, plain = build(tmp_path / "plain")
    page, root = build(
        tmp_path,
        title=MARKUP if place == "title" else "t",
        results={MARKUP if place == "model" else "ours": RESULTS["ours"]},
        curves={MARKUP if place == "model" else "ours": CURVES["ours"]},
        users=[user],
        notes=[MARKUP if place == "note" else "n"],
    )
    assert_self_contained(page, root)
    assert len(root.all("img")) == len(plain.all("img"))
    assert MARKUP in root.words()


@pytest.mark.parametrize(
    "picture",
    [
        None,
        "https://evil.example/x.png",
        "javascript:alert(1)",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html;base64,AAAA",
        'data:image/png;base64,AAAA" onerror="alert(1)',
        PIXEL + "\n",
    ],
)
def test_write_page_with_another_picture_uri_shows_a_placeholder(tmp_path: Path, picture: str | None) -> None:
    page, root = build(tmp_path, users=[user_example(picture=picture)])
    assert_self_contained(page, root)
    # The item stands among the recommendations and as the one chosen next.
    assert [e.words() for e in root.all("span", "blank")] == ["no picture"] * 2


@pytest.mark.parametrize(
    "title", ["x" * 5000, "سجادة حمراء", "👩‍👩‍👧‍👦🫖", "\u202egnirts", "lone \ud800 surrogate", "nul \0 byte"]
)
def test_write_page_with_unusual_titles_stays_well_formed(tmp_path: Path, title: str) -> None:
    page, root = build(tmp_path, users=[user_example(title=title)])
    assert_self_contained(page, root)
    assert "Title 9" in root.words()
    assert all(e.attributes.get("dir") == "auto" for e in root.all("bdi") if "red" in e.text)


@pytest.mark.parametrize("title", [None, "", "  "])
def test_write_page_with_items_without_title_shows_their_id(tmp_path: Path, title: str | None) -> None:
    _, root = build(tmp_path, users=[user_example(title=title)])
    assert root.all("li", "hit")[0].all("span", "name")[0].words() == "item i2"


def test_write_page_shows_every_user_with_history_target_and_recommendations(tmp_path: Path) -> None:
    _, root = build(tmp_path, users=[user_example("ann"), user_example("bob")])
    users = root.all("article", "user")
    assert [p.all("h3")[0].words().split()[-1] for p in users] == ["ann", "bob"]
    for user in users:
        assert [c.all("span", "rank")[0].text for c in user.all("li", "card")] == [
            str(n) for n in range(1, 11)
        ]
        assert len(user.all("li", "tile")) == 15 + 1
        assert len(user.all("li", "target")) == 1
        hits = user.all("li", "hit")
        assert len(hits) == 1
        assert "chosen next" in hits[0].words()
        for tile in user.all("li", "tile"):
            assert tile.all("span", "chip")[0].words() in ("food", "kitchen")  # by name, not by color alone
        assert all(image.attributes["alt"] for image in user.all("img"))
        assert user.all("h4")[0].words().startswith("History")


def test_write_page_shares_fill_the_bar_and_sum_to_100(tmp_path: Path) -> None:
    thirds = {
        (branch, part): 1 / 9 for branch in ("own", "other", "both") for part in ("id", "image", "title")
    }
    _, root = build(tmp_path, users=[user_example(), user_example(shares=thirds)])
    cards = root.all("li", "card")
    assert len(cards) == 20
    for number, card in enumerate(cards):
        rects = card.all("svg", "bar")[0].all("rect")
        assert sum(float(r.attributes["width"] or 0) for r in rects) == pytest.approx(200, abs=0.1)
        rows = [[float(cell.text) for cell in row.all("td")] for row in card.all("tr") if row.all("td")]
        figures = [value for row in rows for value in row[:-1]]
        assert sum(figures) == pytest.approx(100, abs=0.05 * len(figures))
        assert sum(row[-1] for row in rows) == pytest.approx(100, abs=0.05 * len(rows))
        if number < 10:  # `own` has no title, which stands as 0 where others have one
            assert rows[0] == [50.0, 12.5, 0.0, 62.5]


def test_write_page_without_shares_has_no_bar_and_no_legend(tmp_path: Path) -> None:
    _, root = build(tmp_path, users=[user_example(shares={})])
    assert len(root.all("li", "card")) == 10
    assert not root.all("svg", "bar")
    assert not root.all("table", "legend-table")


def test_write_page_with_two_models_marks_the_best(tmp_path: Path) -> None:
    _, root = build(tmp_path)
    table = root.all("table", "results")[0]
    rows = {row.all("th")[0].words(): row for row in table.all("tr")}
    assert len(table.all("tbody")) == 3
    assert [cell.words().split()[:2] for cell in rows["ours"].all("td", "best")] == [
        ["12.00", "best"]
    ] * 3 or [
        "12.00" in cell.words() and "best" in cell.words() for cell in rows["ours"].all("td", "best")
    ] == [True] * 3
    assert "[11.00, 13.00]" in rows["ours"].words()
    assert not rows["theirs"].all("td", "best")
    assert [h.text for h in table.all("thead")[0].all("th")] == ["Model", "MRR", "NDCG@10", "HR@10"]
    assert "+20" in root.all("ul", "tiles")[0].words()


def test_write_page_opens_with_the_hits_of_all_models(tmp_path: Path) -> None:
    page, _ = build(tmp_path)
    text = " ".join(re.sub(r"<[^>]*>", "", page).split())
    assert re.search(r"In \d+ of 100 cases, the item chosen next was among the first ten that ours", text)
    assert re.search(r"recommends; \d+ with theirs\.", text)


def test_write_page_curves_lie_inside_the_chart(tmp_path: Path) -> None:
    _, root = build(tmp_path)
    charts = root.all("figure", "chart")
    assert [c.all("figcaption")[0].text for c in charts] == ["Validation MRR, %", "Training loss"]
    for chart, count in zip(charts, (4, 8), strict=True):
        lines = chart.all("polyline", "curve")
        assert len(lines) == 1  # one epoch is no curve
        points = [tuple(map(float, p.split(","))) for p in (lines[0].attributes["points"] or "").split()]
        assert len(points) == count
        assert all(0 <= x <= 460 and 0 <= y <= 260 for x, y in points)
        assert [x for x, _ in points] == sorted(x for x, _ in points)
    falling = [
        float(p.split(",")[1]) for p in (charts[1].all("polyline")[0].attributes["points"] or "").split()
    ]
    assert falling == sorted(falling)  # down the page


@pytest.mark.parametrize(
    "points",
    [
        [CurvePoint(e, math.nan if e == 2 else math.inf if e == 3 else 1.0, None) for e in range(1, 6)],
        [CurvePoint(e, 0.0, 0.0) for e in range(1, 3)],
        [CurvePoint(e, 1e-12 * e, math.nan) for e in range(1, 200)],
        [CurvePoint(7, 1.0, 0.1), CurvePoint(7, 1.0, 0.1)],
        [],
    ],
)
def test_write_page_with_degenerate_curves_has_finite_coordinates(
    tmp_path: Path, points: list[CurvePoint]
) -> None:
    page, _ = build(tmp_path, curves={"ours": points})
    assert not re.search(r'(points|cx|cy|[xy][12]?|d)="[^"]*(nan|inf)', page)


def test_write_page_of_one_model_without_users_curves_or_notes_has_only_results(tmp_path: Path) -> None:
    page, root = build(
        tmp_path, results={"ours": {"food": {"MRR": MetricValue(0.1)}}}, curves={}, users=[], notes=[]
    )
    assert_self_contained(page, root)
    assert [h.text for h in root.all("h2")] == ["Results"]
    assert not root.all("td", "best")
    assert not root.all("footer")
    assert build(tmp_path, results={}, curves={}, users=[], notes=[])[1].all("h1")


def test_write_page_with_many_domains_branches_and_modalities_repeats_colors(tmp_path: Path) -> None:
    shares = {(f"b{b}", f"m{m}"): 1 / 77 for b in range(11) for m in range(7)}
    users = [user_example(domain=f"domain {n}", shares=shares) for n in range(4)]
    results = {f"model {m}": {f"domain {d}": {"MRR": MetricValue(0.1)} for d in range(12)} for m in range(9)}
    page, root = build(
        tmp_path, results=results, curves={f"model {m}": CURVES["ours"] for m in range(9)}, users=users
    )
    assert_self_contained(page, root)
    assert len(root.all("table", "results")[0].all("tbody")) == 12
    style = root.all("style")[0].text
    for used in set(
        re.findall(r"\bk\d+\b|\bm\d\b|\bdash[1-9]\b", " ".join(re.findall(r'class="([^"]*)"', page)))
    ):
        assert f".{used} " in style


def test_axis_ticks_enclose_the_range() -> None:
    for low, high in ((0, 1), (3.2, 17.9), (-5, 5), (0.0101, 0.0109), (2, 2), (0, 0)):
        marks = axis_ticks(low, high)
        assert marks[0] <= low
        assert marks[-1] >= high
        assert 2 <= len(marks) <= 9
