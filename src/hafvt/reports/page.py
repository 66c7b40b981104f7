"""One self-contained HTML page: figures, training curves, and people with what is recommended to them.

The page asks nothing of the network: no script, one style sheet named by its hash in a content security
policy that forbids everything else, pictures as data: URIs. All text from outside is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from hafvt.evaluation.metrics import MetricValue, Results
from hafvt.evaluation.tables import best_models, domains_of, interval, metrics_of
from hafvt.files import atomic_file
from hafvt.reports.charts import CurvePoint, curve_charts, interval_bar
from hafvt.reports.people import ItemCard, Recommendation, UserExample, people_section, text
from hafvt.tables import percent

__all__ = ["CurvePoint", "ItemCard", "Recommendation", "UserExample", "write_page"]

MEANINGS = {
    "MRR": "mean reciprocal rank: 100 if the item really chosen always came first, 50 if always second",
    "NDCG": "like a hit rate, but a place further down counts less",
    "HR": "hit rate: how often, of 100 times, the item really chosen was among the first so many",
}


def write_page(
    path: str | Path,
    *,
    title: str,
    results: Mapping[str, Results],
    curves: Mapping[str, Sequence[CurvePoint]],
    people: Sequence[UserExample],
    notes: Sequence[str] = (),
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: where to.
        title: heading of the page.
        results: by model: per domain and "overall", each metric.
        curves: by model: its epochs; may be empty, as may each curve.
        people: examples; may be empty.
        notes: lines at the foot: how it was measured, date, versions.
    """
    style = _asset("templates/page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = Template(_asset("templates/page.html")).substitute(
        title=escape(title),
        style=style,
        style_hash=f"sha256-{digest}",
        sections=_results(results) + _training(curves) + _people(people, results),
        footer=_footer(notes),
    )
    with atomic_file(path) as temporary:
        # A lone surrogate in a title cannot be written; as a reference the browser shows it as U+FFFD.
        temporary.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))


def _asset(name: str) -> str:
    return files("hafvt.reports").joinpath(name).read_text(encoding="utf-8").strip()


def _results(results: Mapping[str, Results]) -> str:
    if not domains_of(results):
        return ""
    metrics = metrics_of(results)
    head = "".join(f'<th scope="col">{escape(metric)}</th>' for metric in metrics)
    bodies = "".join(_domain(results, domain, metrics) for domain in domains_of(results))
    meanings = "".join(
        f"<dt>{name}</dt><dd>{meaning}</dd>"
        for name, meaning in MEANINGS.items()
        if any(metric.split("@")[0] == name for metric in metrics)
    )
    best = "; the best is marked" if len(results) > 1 else ""
    return (
        f'<section aria-labelledby="results"><h2 id="results">Results</h2>{_headline(results)}'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="results"><table class="results">'
        f"<caption>In %, with 95 % intervals{best}</caption>"
        f'<thead><tr><th scope="col">Model</th><td class="plot"></td>{head}</tr></thead>{bodies}'
        f"</table></div><details><summary>What the figures mean</summary><dl>{meanings}"
        "<dt>[low, high]</dt><dd>95 % interval: how far chance alone may have moved the figure</dd></dl>"
        "</details></section>"
    )


def _headline(results: Mapping[str, Results]) -> str:
    """Says in words how good the model with the best MRR is, over all domains or in the first."""
    domains = domains_of(results)
    domain = "overall" if "overall" in domains else domains[0]
    known = {
        name: result[domain]
        for name, result in results.items()
        if "MRR" in result.get(domain, {}) and math.isfinite(result[domain]["MRR"].value)
    }
    if not known:
        return ""
    names = sorted(known, key=lambda name: -known[name]["MRR"].value)
    first = known[names[0]]
    where = "over all domains" if domain == "overall" else f"in {text(domain)}"
    tiles = [(percent(first["MRR"].value), "%", f"MRR of {text(names[0])} {where}")]
    if "HR@10" in first:
        often = f"{100 * first['HR@10'].value:.0f}"
        tiles.append((often, "in 100", "times, the item really chosen was among the first ten"))
    if len(names) > 1 and known[names[1]]["MRR"].value > 0:
        gain = first["MRR"].value / known[names[1]]["MRR"].value - 1
        tiles.append((f"{100 * gain:+.0f}", "%", f"MRR compared with {text(names[1])}, the next best"))
    shown = "".join(
        f'<li><b>{value}<span class="unit"> {unit}</span></b><span>{what}</span></li>'
        for value, unit, what in tiles
    )
    return f'<ul class="tiles">{shown}</ul>'


def _domain(results: Mapping[str, Results], domain: str, metrics: Sequence[str]) -> str:
    rows = {name: result[domain] for name, result in results.items() if domain in result}
    missing = MetricValue(math.nan)
    mrr = [row.get("MRR", missing) for row in rows.values()]
    bounds = [bound for figure in mrr for bound in (figure.value, figure.high) if bound is not None]
    largest = max((bound for bound in bounds if math.isfinite(bound)), default=0.0)
    winners = {metric: best_models(results, domain, metric) for metric in metrics}
    lines = []
    for name, row in rows.items():
        cells = [f'<td class="plot">{interval_bar(row.get("MRR", missing), largest)}</td>']
        for metric in metrics:
            figure = row.get(metric, missing)
            best = name in winners[metric]
            mark = '<span class="hidden"> best</span>' if best else ""
            cells.append(
                f"{'<td class=best>' if best else '<td>'}<b>{percent(figure.value)}</b>{mark}"
                f"<small>{interval(figure)}</small></td>"
            )
        lines.append(f'<tr><th scope="row">{text(name)}</th>{"".join(cells)}</tr>')
    heading = f'<tr><th class="group" colspan="{len(metrics) + 2}" scope="rowgroup">{text(domain)}</th></tr>'
    return f"<tbody>{heading}{''.join(lines)}</tbody>"


def _training(curves: Mapping[str, Sequence[CurvePoint]]) -> str:
    charts = curve_charts(curves)
    if not charts:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{point.epoch}</td><td>{point.loss:.4f}</td>'
        f"<td>{percent(point.valid_mrr)}</td></tr>"
        for name, points in curves.items()
        for point in points
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Model", "Epoch", "Loss", "Validation MRR, %"))
    return (
        '<section aria-labelledby="training"><h2 id="training">Training</h2>'
        f'<div class="charts">{charts}</div>'
        '<p class="soft">Losses of different models are not comparable; their MRR is.</p>'
        "<details><summary>The figures behind the curves</summary>"
        '<div class="scroll tall" tabindex="0" role="region" aria-labelledby="training">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details></section>"
    )


def _people(people: Sequence[UserExample], results: Mapping[str, Results]) -> str:
    if not people:
        return ""
    shown = [item for p in people for item in (*p.history, p.target, *(r.item for r in p.recommendations))]
    names = [*domains_of(results), *(p.domain for p in people), *(item.domain for item in shown)]
    domains = {
        name: number for number, name in enumerate(name for name in dict.fromkeys(names) if name != "overall")
    }
    return (
        '<section aria-labelledby="people"><h2 id="people">People</h2>'
        f"{people_section(people, domains)}</section>"
    )


def _footer(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f"<footer><ul>{lines}</ul></footer>" if notes else ""
