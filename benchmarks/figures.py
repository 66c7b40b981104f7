"""Writes the tables and figures of README and docs from the results of the benchmarks.

    python benchmarks/figures.py [--check]

A text between `<!-- figures: NAME -->` and `<!-- end of figures -->` is replaced by what the function NAME
below returns. With `--check`, nothing is written, and the exit status is 1 if a text differs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sizing import sizing

from hafvt.files import read_json
from hafvt.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = {"movielens-posters": "films", "amazon-food-kitchen": "goods"}
DESCRIPTIONS = {
    "movielens-posters": "films: MovieLens-1M with titles and posters, split by genre",
    "amazon-food-kitchen": "goods: Amazon's food and kitchen reviews with titles",
}
NAMES = {
    "hafvt": "**HAF-VT**",
    "hafvt ids only": "HAF-VT, ids only",
    "hafvt paper": "HAF-VT, equations as printed (`hafvt-paper`)",
    "hafvt, unmixed": "HAF-VT, preset `unmixed`",
    "hafvt, ids only": "HAF-VT, ids only",
    "hafvt, merged history alone": "HAF-VT, merged sequence only",
    "hafvt, ids, merged history (original)": "HAF-VT, ids and merged sequence only",
    "hafvt, ids and titles": "HAF-VT, ids and titles",
    "hafvt, ids and pictures": "HAF-VT, ids and pictures",
    "sasrec": "SASRec",
    "gru4rec": "GRU4Rec",
    "srgnn": "SR-GNN",
    "pinet": "pi-Net",
    "psjnet": "PSJNet",
    "mifn": "MIFN",
    "tricdr": "Tri-CDR",
    "c2dsr": "C2DSR",
    "item-knn": "item-based nearest neighbors",
    "popularity": "popularity",
    "recent-popularity": "popularity of the last days",
    "hafvt without dates": "HAF-VT without dates",
}


def load(name: str) -> dict[str, Any]:
    """Return the results of a benchmark."""
    return read_json(RESULTS / f"{name}.json")


def percent(value: float, digits: int = 2) -> str:
    """Return a share in %, without the sign."""
    return f"{100 * value:.{digits}f}"


def by_first_column(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows with the highest first figure first; rows without it come last."""
    return sorted(rows, key=lambda row: -float(row[1].rstrip("*† ") or -1))


def compared() -> dict[str, Any]:
    """Return the results beside other libraries, of data sets with at least two finished models."""
    return {data: models for data, models in load("external")["data"].items() if len(models) > 1}


def comparison() -> str:
    """Return the table of HAF-VT and models of other libraries, among unseen items."""
    results = compared()
    header = ["model"]
    for data in results:
        header += [f"{DATA[data]}: MRR", "HR@10"]
    rows = []
    entries = [entry for models in results.values() for entry in models.values()]
    most = max(entry["trials"] for entry in entries)
    for model in dict.fromkeys(name for models in results.values() for name in models):
        row = [NAMES.get(model, model)]
        for models in results.values():
            entry = models.get(model)
            if entry is None:
                row += ["", ""]
                continue
            mark = "*" * (not entry["converged"]) + "†" * (entry["trials"] < most)
            row += [percent(entry["MRR"]) + mark, percent(entry["HR@10"])]
        rows.append(row)
    stopped = any(not entry["converged"] for entry in entries)
    untuned = any(entry["trials"] < most for entry in entries)
    notes = (
        "Test figures in %, mean of two domains, one seed. A target's candidates are all items of its domain "
    )
    notes += f"that the user has not chosen before. Best of {most} settings by validation."
    notes += " † One setting, of width 64." * untuned
    notes += " Goods have dates, which HAF-VT and the popularity of the last days use. Films have none."
    notes += " * The time limit ended this training before it converged." * stopped
    described = "; ".join(DESCRIPTIONS[data] for data in results)
    return f"{markdown_table(header, by_first_column(rows))}\n{described[0].upper()}{described[1:]}. {notes}"


def charts() -> str:
    """Return the charts of quality over processor time."""
    return "\n\n".join(
        f"![Validation MRR over processor seconds of training, {DATA[data]}]"
        f"(../benchmarks/results/external-{data}.svg)"
        for data in compared()
    )


def tuned() -> str:
    """Return the table of the baselines, tuned with the same budget."""
    note = (
        "In the columns `full`, candidates are the items of the domain without those of the history."
        if load("tuned").get("candidates") == "unseen"
        else "In the columns `full`, items of the history are candidates, and much of HAF-VT's lead "
        "comes from its repeat discount: compare the columns `sampled-unseen`. HAF-VT was measured before "
        "it was simplified (CHANGELOG, version 0.2.0)."
    )
    return f"{_tuned_table(lambda label: not label.startswith('hafvt,'))}\n\n{note}"


def parts() -> str:
    """Return the table of HAF-VT's parts."""
    return _tuned_table(lambda label: label.startswith("hafvt"))


def _tuned_table(is_listed: Any) -> str:
    """Return MRR ± standard deviation of tuned models, by data set and protocol."""
    results = load("tuned")["data"]
    columns = [(data, protocol) for data in results for protocol in ("full", "sampled-unseen")]
    rows = []
    for label in dict.fromkeys(label for models in results.values() for label in models):
        if not is_listed(label):
            continue
        row = [NAMES.get(label, label)]
        for data, protocol in columns:
            entry = results[data].get(label, {}).get(protocol)
            spread = (
                "" if entry is None or entry["deviation"] is None else f" ± {percent(entry['deviation'])}"
            )
            row.append("" if entry is None else percent(entry["mrr"]) + spread)
        rows.append(row)
    rows.sort(key=lambda row: -float(row[1].split(" ")[0] or -1))
    return markdown_table(["model", *(f"{DATA[data]}: `{p}`" for data, p in columns)], rows).rstrip()


def defaults() -> str:
    """Return the table of models with default settings, with intervals."""
    runs = load("real_data")["runs"]
    figures = {(run["data"], run["run"]): run["results"]["overall"] for run in runs}
    rows = []
    for name in dict.fromkeys(run["run"] for run in runs):
        row = [NAMES.get(name, name)]
        for data in DATA:
            entry = figures.get((data, name))
            for metric in ("MRR", "HR@10"):
                low_high = (
                    ""
                    if entry is None
                    else f"{percent(entry[metric]['low'])}, {percent(entry[metric]['high'])}"
                )
                row.append("" if entry is None else f"{percent(entry[metric]['value'])} [{low_high}]")
        rows.append(row)
    rows.sort(key=lambda row: -float(row[1].split(" ")[0] or -1))
    header = ["model", *(f"{DATA[data]}: {metric}" for data in DATA for metric in ("MRR", "HR@10"))]
    protocols = {run["protocol"] for run in runs}
    which = "without" if all("without those of the history" in text for text in protocols) else "with"
    dates = sorted({run["made"] for run in runs})
    note = (
        f"Candidates: the items of the domain, {which} those of the history. Measured on {', '.join(dates)}."
    )
    return f"{markdown_table(header, rows)}\n{note}"


def cold() -> str:
    """Return the table of the boost of cold items."""
    rows = []
    for run in load("cold")["runs"]:
        if run["run"] == "hafvt":
            row = [f"{run['new_items']:g}", percent(run["cold"]["overall"]["value"])]
            row += [f"{run['times']['overall']:.1f}", percent(run["warm"]), percent(run["places"], 0)]
            rows.append(row)
    header = ["`cold_item_boost`", "MRR of cold items", "times a random order", "MRR of trained items"]
    return markdown_table([*header, "cold items among the first ten"], rows).rstrip()


def million() -> str:
    """Return the cost of recommendations from a million items."""
    results = load("million")
    served, columns = results["served"], [results[n] for n in ("exact", "indexed", "indexed_of_fewer")]
    rows = [
        ["processor ms per history, batches of 32", *(f"{r['of_32_cpu_ms']:.1f}" for r in columns)],
        ["processor ms for one history", *(f"{r['one_cpu_ms']:.1f}" for r in columns)],
        ["memory of the process, GiB", *(f"{r['gib']:.1f}" for r in columns)],
    ]
    domains = results["index"]["domains"].values()
    recall = " and ".join(f"{percent(domain['recall'], 1)} %" for domain in domains)
    header = ["", "all items scored", "with an index", f"with an index, {results['fewer']:,} items"]
    return (
        f"{markdown_table(header, rows)}\n"
        f"Building the index took {results['index']['seconds']:.0f} s; it has "
        f"{results['index']['mib']:.0f} MiB and a recall@10 of {recall} in the two domains. "
        f"`hafvt serve` answered {served['per_second']:.0f} requests per second of "
        f"{served['clients']} clients on the same machine, 99 % of them within "
        f"{served['milliseconds']['p99']:.0f} ms, with "
        f"{served['server_cores']:.1f} of {results['machine']['cores']} cores and "
        f"{served['cpu_ms']:.1f} ms of processor time for a request."
    )


def processes() -> str:
    """Return the speed of two processes."""
    results = load("processes")
    one, two = (min(processor for _, processor in results["seconds"][n]) for n in ("1", "2"))
    return (
        f"With an exact softmax over {results['items']:,} items, each of two processes with one thread needs "
        f"{two / one:.2f} of the processor seconds per step that a single process needs. "
        f"With a core of its own for each, they are {one / two:.2f} times as fast."
    )


def sharded_catalog() -> str:
    """Return the memory and time of training steps with whole and with sharded tables."""
    rows, one_process = [], 0.0
    for run in load("sharded_catalog")["results"]:
        one_process = run["tables_gib"] if run["processes"] == 1 else one_process
        row = [run["case"], f"{run['items']:,}", str(run["width"]), str(run["processes"])]
        row += ["slices" if run["sharded"] else "whole", f"{run['tables_gib']:.2f}"]
        row += [f"{run['tables_gib'] / one_process:.2f}", f"{run['resident_gib']:.2f}"]
        rows.append([*row, f"{run['processor_ms']:,.0f}"])
    header = ["model", "items", "width", "processes", "tables", "tables, GiB", "of one process's"]
    return markdown_table([*header, "process, GiB", "processor ms per step"], rows).rstrip()


def load_test() -> str:
    """Return what a server answers under load."""
    results = load("load")
    return (
        f"On {results['machine']['cores']} cores, which the clients share, a server answers "
        f"{results['per_second']:.0f} requests per second from {results['clients']} clients, 99 % of them "
        f"within {results['milliseconds']['p99']:.0f} ms, with histories of up to "
        f"{results['run']['config']['max_length']} items and a reload in the middle."
    )


def steps() -> str:
    """Return the training speed of all models."""
    results = load("steps")
    rows = [
        [
            NAMES.get(name, name).strip("*"),
            f"{m['examples per s']:,}",
            f"{m['ms per step']:.0f}",
            f"{m['parameters']:,}",
        ]
        for name, m in sorted(results["models"].items(), key=lambda pair: -pair[1]["examples per s"])
    ]
    return markdown_table(["model", "histories per second", "ms per step", "parameters"], rows).rstrip()


def peers() -> str:
    """Return the speed of SASRec here and in other libraries."""
    rows = []
    for name, system in load("peers")["systems"].items():
        row = [system["version"] if name != "hafvt" else "hafvt", f"{system['train_cpu_s']:,.0f}"]
        row += [f"{system['train_gib_above_start']:.2f}", f"{system['rank_histories_per_cpu_s']:,.0f}"]
        rows.append(row)
    header = ["library", "processor seconds of training", "memory above start, GiB"]
    return markdown_table([*header, "ranked histories per processor second"], rows).rstrip()


def export() -> str:
    """Return the time of recommendations with torch and with an export."""
    ways = {
        "torch": "torch",
        "onnxruntime, baked": "export",
        "onnxruntime, given": "export, `--item-tables inputs`",
    }
    sizes = {"movielens": "965 films", "64,000 items": "32,000 items"}
    rows = []
    for entry in load("export")["found"]:
        row = [sizes[entry["items"]], ways.get(entry["way"], entry["way"])]
        rows.append([*row, f"{entry['one_ms']:.1f}", f"{entry['many_ms']:.0f}"])
    return markdown_table(
        ["items of the domain", "computed by", "one history, ms", "64 histories, ms"], rows
    ).rstrip()


FIGURES = {
    function.__name__: function
    for function in (
        comparison, charts, tuned, parts, defaults, cold, million, processes, sharded_catalog, load_test,
        steps, peers, export, sizing,
    )
}  # fmt: skip
BLOCK = re.compile(r"<!-- figures: (\w+) -->\n.*?<!-- end of figures -->", re.DOTALL)


def replace_figures(text: str) -> str:
    """Return a text with the figures of the present results."""
    return BLOCK.sub(
        lambda m: f"<!-- figures: {m[1]} -->\n{FIGURES[m[1]]().strip()}\n<!-- end of figures -->", text
    )


def main() -> None:
    """Write or check all figures."""
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if (replaced := replace_figures(text)) != text:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.write_text(replaced, encoding="utf-8")
    if "--check" in sys.argv and stale:
        raise SystemExit(f"stale figures in {', '.join(stale)}: run make figures")
    print(f"{len(stale)} files changed" if stale else "all figures are those of benchmarks/results")


if __name__ == "__main__":
    main()
