"""People on the page: what they chose before, what a model recommends them, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from hafvt.reports.charts import SHADES, color, stacked_bar

RECENT = 12  # items of a history that are always in sight; earlier ones are unfolded
PICTURE = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class ItemCard:
    """An item as the page shows it.

    Attributes:
        item_id: its id.
        domain: name of its domain.
        title: its title; None where it has none. It is shown as text whatever it holds.
        picture: a data: URI of a JPEG or PNG in base64; None, or anything else, shows a placeholder.
    """

    item_id: str
    domain: str
    title: str | None
    picture: str | None

    @property
    def name(self) -> str:
        """The title, or else the id."""
        return (self.title or "").strip() or f"item {self.item_id}"


@dataclass(frozen=True)
class Recommendation:
    """A recommended item.

    Attributes:
        item: which.
        score: of the model.
        shares: what part of the score each branch and modality gave, summing to 1; empty where unknown.
        hit: whether it is the item really chosen.
    """

    item: ItemCard
    score: float
    shares: dict[tuple[str, str], float] = field(repr=False)
    hit: bool


@dataclass(frozen=True)
class UserExample:
    """A person as of right before a choice.

    Attributes:
        user_id: the person's id.
        domain: domain of the choice.
        history: items chosen before, oldest first.
        target: the item really chosen.
        target_rank: its rank among all items of the domain, 1 is best; a tie counts half.
        recommendations: best first.
    """

    user_id: str
    domain: str
    history: tuple[ItemCard, ...]
    target: ItemCard
    target_rank: float
    recommendations: tuple[Recommendation, ...]


def text(value: str) -> str:
    """Returns foreign text as HTML that neither acts as markup nor turns its surroundings' direction."""
    return f'<bdi dir="auto">{escape(value)}</bdi>'


def people_section(people: Sequence[UserExample], domains: Mapping[str, int]) -> str:
    """Returns the people, one after the other.

    Args:
        people: whom.
        domains: number of the color of each domain.
    """
    pairs = [
        pair for person in people for recommended in person.recommendations for pair in recommended.shares
    ]
    branches = {name: number for number, name in enumerate(dict.fromkeys(branch for branch, _ in pairs))}
    modalities = {
        name: number for number, name in enumerate(dict.fromkeys(modality for _, modality in pairs))
    }
    legend = _legend(branches, modalities) if pairs else ""
    return legend + "".join(
        _person(number, person, domains, branches, modalities) for number, person in enumerate(people, 1)
    )


def _legend(branches: Mapping[str, int], modalities: Mapping[str, int]) -> str:
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in modalities)
    rows = []
    for branch, hue in branches.items():
        cells = "".join(
            '<td><svg class="swatch" viewBox="0 0 28 14" role="img" '
            f'aria-label="{escape(branch)}, {escape(modality)}">'
            f'<rect class="{color(hue)} m{shade % SHADES}" width="28" height="14"/></svg></td>'
            for modality, shade in modalities.items()
        )
        rows.append(f'<tr><th scope="row">{text(branch)}</th>{cells}</tr>')
    return (
        '<div class="how"><p>The bar below each suggestion shows where its score comes from: the color '
        "tells which history spoke for it, the shade what the items were known by. Open <b>Why?</b> for the "
        "figures.</p>"
        '<table class="legend-table"><caption>Colors of the bars</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _person(
    number: int,
    person: UserExample,
    domains: Mapping[str, int],
    branches: Mapping[str, int],
    modalities: Mapping[str, int],
) -> str:
    earlier, recent = person.history[:-RECENT], person.history[-RECENT:]
    tiles = "".join(_tile(item, domains) for item in recent)
    target = _tile(person.target, domains, "Chosen next")
    unfolded = (
        f'<details class="earlier"><summary>{len(earlier)} earlier</summary><ol class="timeline">'
        f"{''.join(_tile(item, domains) for item in earlier)}</ol></details>"
        if earlier
        else ""
    )
    listed = len(person.recommendations)
    found = any(recommended.hit for recommended in person.recommendations)
    verdict = f"The item really chosen was number <b>{person.target_rank:g}</b> on the model's list"
    verdict += "." if found or not listed else f", beyond the {listed} shown here."
    cards = "".join(
        _card(rank, recommended, domains, branches, modalities)
        for rank, recommended in enumerate(person.recommendations, 1)
    )
    return (
        f'<article class="person" aria-labelledby="person-{number}">'
        f'<header><h3 id="person-{number}">Person {text(person.user_id)}</h3>'
        f"<p>What comes next in {_chip(person.domain, domains)}? {verdict}</p></header>"
        f'<h4>Chosen so far <span class="soft">oldest first</span></h4>{unfolded}'
        f'<ol class="timeline">{tiles}{target}</ol>'
        f'<h4>Suggested <span class="soft">best first</span></h4><ol class="cards">{cards}</ol></article>'
    )


def _chip(domain: str, domains: Mapping[str, int]) -> str:
    return f'<span class="chip {color(domains[domain])}">{text(domain)}</span>'


def _picture(item: ItemCard) -> str:
    if item.picture and PICTURE.fullmatch(item.picture):
        return f'<img src="{item.picture}" alt="{escape(item.name)}">'
    return '<span class="blank">no picture</span>'


def _tile(item: ItemCard, domains: Mapping[str, int], label: str = "") -> str:
    flag = f'<span class="flag">{label}</span>' if label else ""
    kind = "tile target" if label else "tile"
    return (
        f'<li class="{kind} {color(domains[item.domain])}">{flag}{_picture(item)}'
        f'{_chip(item.domain, domains)}<span class="name">{text(item.name)}</span></li>'
    )


def _card(
    rank: int,
    recommended: Recommendation,
    domains: Mapping[str, int],
    branches: Mapping[str, int],
    modalities: Mapping[str, int],
) -> str:
    item = recommended.item
    badge = '<span class="badge">★ really chosen</span>' if recommended.hit else ""
    return (
        f'<li class="card{" hit" if recommended.hit else ""}"><span class="rank">{rank}</span>{badge}'
        f'{_picture(item)}<span class="name">{text(item.name)}</span>'
        f'<span class="meta">{_chip(item.domain, domains)}<span>score {recommended.score:.3g}</span></span>'
        f"{_why(item, recommended.shares, branches, modalities)}</li>"
    )


def _why(
    item: ItemCard,
    shares: Mapping[tuple[str, str], float],
    branches: Mapping[str, int],
    modalities: Mapping[str, int],
) -> str:
    """Returns the bar of the shares and a table to unfold: branches down, modalities across."""
    if not shares:
        return ""
    ordered = sorted(shares.items(), key=lambda entry: (branches[entry[0][0]], modalities[entry[0][1]]))
    segments = [(f"{b}, {m}", branches[b], modalities[m], share) for (b, m), share in ordered]
    most = max(segments, key=lambda segment: segment[3])
    bar = stacked_bar(segments, f"Shares of the score; most from {most[0]}: {100 * most[3]:.0f} %")
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in modalities)
    rows = []
    for branch in branches:
        cells = [shares.get((branch, modality), 0.0) for modality in modalities]
        figures = "".join(f"<td>{100 * share:.1f}</td>" for share in (*cells, sum(cells)))
        heading = f'<th colspan="{len(modalities) + 1}" scope="rowgroup">{text(branch)}</th>'
        rows.append(f"<tbody><tr>{heading}</tr><tr>{figures}</tr></tbody>")
    return (
        f"{bar}<details><summary><b>Why?</b> <span>{text(most[0])} {100 * most[3]:.0f} %</span></summary>"
        f'<p>{text(item.name)} <span class="soft">({text(item.item_id)})</span></p>'
        f"<table><caption>Share of the score, %</caption><thead><tr>{head}"
        f'<th scope="col">all</th></tr></thead>{"".join(rows)}</table></details>'
    )
