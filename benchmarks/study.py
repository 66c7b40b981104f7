"""Designs of HAF-VT on validation data of the two real data sets: what makes a difference.

    python benchmarks/study.py --shared ../shared/data --work DIR [--only TEXT] [--jobs 2] [--seeds 1]

Trains every variant of `VARIANTS` by the command line, one thread each, with the same number of epochs, rate
and histories, and ranks its validation targets, those of rare items also by themselves. Test targets
are not ranked. `RANKINGS` are not trained: they rank with the trained default and other settings.

A stopped command continues when it is started again. A run's figures are in
results/study/DATA/VARIANT-SEED.json; delete that file to train the run again. results/study.md and .json
contain all these runs.
"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import RESULTS, describe, record, sentence
from real_data import ENCODE, PREPARE, call, make_data, options
from torch import Tensor

from hafvt.data.batches import Batch
from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.ranks import Ranks
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.comparison_runner import slug
from hafvt.files import read_json, write_json
from hafvt.tables import markdown_table
from hafvt.training.run import open_run

EPOCHS = {"movielens-posters": 16, "amazon-food-kitchen": 6}
COMMON = "--learning-rate 0.003 --batch-size 128 --params.max_length 20 --patience 0 --test false --resume"
SASREC = "sasrec --params.width 64"
NARROW = "--params.id_width 64"
VARIANTS = {
    "sasrec": SASREC,
    "default": f"hafvt {NARROW}",
    "unmixed": f"hafvt {NARROW} --params.modality_branches false",
    "ids only": f"hafvt {NARROW} --params.modalities [id]",
    "ids and titles": f"hafvt {NARROW} --params.modalities [id,title]",
    "ids and pictures": f"hafvt {NARROW} --params.modalities [id,image]",
    "merged history alone": f"hafvt {NARROW} --params.hierarchy false",
    "one block": f"hafvt {NARROW} --params.blocks 1",
    "without clusters": f"hafvt {NARROW} --params.cluster_sizes []",
    "no shared parameters": f"hafvt {NARROW} --params.id_shrinkage 0",
    "not averaged": f"hafvt {NARROW} --ema-decay 0",
    "sasrec, not averaged": f"{SASREC} --ema-decay 0",
    "dropout 0.1": f"hafvt {NARROW} --params.dropout 0.1",
    "dropout 0.3": f"hafvt {NARROW} --params.dropout 0.3",
    "temperature 0.07": f"hafvt {NARROW} --params.temperature 0.07",
    "temperature 0.15": f"hafvt {NARROW} --params.temperature 0.15",
    "lambda2 10": f"hafvt {NARROW} --params.lambda2 10",
    "learning rate 0.001": f"hafvt {NARROW} --learning-rate 0.001",
    "batches of 32": f"hafvt {NARROW} --batch-size 32 --learning-rate 0.0015",
    "histories of 50": f"hafvt {NARROW} --params.max_length 50",
    "sasrec, histories of 50": f"{SASREC} --params.max_length 50",
}
PICTURED = {"ids and titles", "ids and pictures"}  # say something where there are pictures beside titles
RANKINGS: dict[str, dict[str, float]] = {
    # fields of the default to rank with; popularity: log of the count, times this, added to scores
    **{f"lambda2 {value} in ranking": {"lambda2": value} for value in (0.3, 1.0, 10.0)},
    "popularity less 0.1 in ranking": {"popularity": -0.1},  # names must differ by letters and digits
    "popularity more 0.1 in ranking": {"popularity": 0.1},
    "popularity more 0.3 in ranking": {"popularity": 0.3},
}


def main() -> None:
    parser = options("Designs of HAF-VT on validation data.")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    for name in PREPARE:
        make_data(arguments.shared / name, arguments.work / "data" / name)
    runs = [
        (data, variant, seed) for seed in range(arguments.seeds) for variant in VARIANTS for data in EPOCHS
    ]
    runs = [run for run in runs if not without_pictures(*run[:2])]
    runs = [run for run in runs if arguments.only in f"{run[0]}/{run[1]}"]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for finished in [pool.submit(train, arguments.work, *run) for run in runs]:
            finished.result()
    for data, variant, seed in runs:
        if (
            variant == "default"
            and (arguments.work / "runs" / data / f"default-{seed}" / "model.json").exists()
        ):
            for ranking, changes in RANKINGS.items():
                rank(arguments.work, data, variant, seed, ranking, changes)
    print(write())


def without_pictures(data: str, variant: str) -> bool:
    """Returns whether a variant does not apply to a data set without pictures."""
    return variant in PICTURED and "image=" not in ENCODE[data]


def selected(data: str, variant: str, seed: int) -> Path:
    """Returns where the figures of a run are."""
    return RESULTS / "study" / data / f"{slug(variant)}-{seed}.json"


def train(work: Path, data: str, variant: str, seed: int) -> None:
    """Trains one run, or goes on with it, and ranks its validation targets, unless it is finished."""
    if selected(data, variant, seed).exists():
        return
    out = work / "runs" / data / selected(data, variant, seed).stem
    model, *settings = VARIANTS[variant].split()
    place = ["--data", str(work / "data" / data), "--out", str(out)]
    command = ["train", model, *place, "--epochs", str(EPOCHS[data]), "--seed", str(seed)]
    call([*command, *COMMON.split(), *settings], out.with_suffix(".log"), 1)
    rank(work, data, variant, seed, variant, {})


def rank(work: Path, data: str, variant: str, seed: int, ranking: str, changes: dict[str, float]) -> None:
    """Ranks the validation targets by a run, with fields of its model changed, unless that is done."""
    path = selected(data, ranking, seed)
    if path.exists():
        return
    run = open_run(work / "runs" / data / selected(data, variant, seed).stem)
    model: Any = run.model
    items, counts = np.asarray(run.data.items), run.data.train_counts()
    changes = dict(changes)
    favor = changes.pop("popularity", 0.0) * torch.from_numpy(counts).float().log1p()
    plain = model.scores

    def scores(batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        of = slice(run.data.domains[domain].start, run.data.domains[domain].stop)
        added: Tensor = favor[of if candidates is None else candidates]
        return plain(batch, domain, candidates) + added

    if ranking != variant:
        model.config, model.scores = model.config.replace(**changes), scores
    figures: dict[str, Any] = {"data": data, "variant": ranking, "seed": seed}
    for protocol in ("full", "sampled-unseen"):
        ranks, _ = rank_targets([model] * len(run.data.domains), run.data, "valid", get_protocol(protocol))
        of_rare = mrr(ranks, rare(counts[items[ranks.positions]]))
        figures |= {protocol: mean_mrr(ranks), f"{protocol}_rare": of_rare}
    figures |= {"epoch": run.manifest["best"]["epoch"], "machine": describe()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures)


def rare(counts: np.ndarray) -> np.ndarray:
    """Returns which targets have fewer than five training interactions, or else the rarest tenth, (n,)."""
    return counts < 5 if (counts < 5).mean() > 0.1 else counts <= np.quantile(counts, 0.1)


def mrr(ranks: Ranks, chosen: np.ndarray) -> float:
    """Returns the MRR of some of the targets."""
    return float((1 / ranks.ranks[chosen]).mean())


def write() -> str:
    """Writes the tables of all finished runs and returns them."""
    results = [read_json(path) for path in sorted(RESULTS.glob("study/*/*.json"))]
    text = [
        "# Designs of HAF-VT",
        "",
        "`python benchmarks/study.py --shared ../shared/data --work DIR`: validation MRR in %, mean of the "
        "domains, best epoch of "
        + " and ".join(f"{epochs} ({data})" for data, epochs in EPOCHS.items())
        + ", width 64, histories of 20 items, batches of 128, learning rate 0.003. Unseen: the "
        "protocol `sampled-unseen`. Rare: targets with fewer than five training interactions, or else the "
        "rarest tenth.",
        "",
        *sorted({sentence(run["machine"]) for run in results}),
    ]
    header = ["variant", "options", "seeds"]
    header += ["MRR", "rare", "unseen MRR", "unseen, rare", "best epoch"]
    for data in EPOCHS:
        rows = []
        labels = VARIANTS | {ranking: f"{changes}" for ranking, changes in RANKINGS.items()}
        for variant, settings in labels.items():
            runs = [run for run in results if run["data"] == data and run["variant"] == variant]
            if runs:
                means = [
                    f"{100 * statistics.mean(run[key] for run in runs):.2f}"
                    for key in ("full", "full_rare", "sampled-unseen", "sampled-unseen_rare")
                ]
                options_text = " ".join(settings.replace(NARROW, "").split())
                epochs = ", ".join(str(run["epoch"]) for run in runs)
                rows.append([variant, f"`{options_text}`", str(len(runs)), *means, epochs])
        text += ["", f"## {data}", "", markdown_table(header, rows, text_columns=2)]
    report = "\n".join(text)
    record("study", report, json.loads(json.dumps({"machine": describe(), "runs": results})))
    return report


if __name__ == "__main__":
    main()
