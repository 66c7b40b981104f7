"""All models, each tuned with the same budget and trained with three seeds: test figures and paired tests.

    python benchmarks/tuned.py --shared ../shared/data --work DIR [--only TEXT] [--jobs 2]

For each model and data set `hafvt tune` searches on validation data: the same number of trials for all
models, the default settings first, the default ranges, batch sizes included, each trial until its validation
MRR no longer rises. `hafvt train` then trains the best settings and the default settings with every seed, and
the test targets are ranked, among the items of their domain (`full`) and among 999 that the user never had
(`sampled-unseen`). Where the default settings have the better mean validation MRR, the table is refused.
Parts of HAF-VT are trained with its settings, without a search of their own.

It takes many hours, so it is done in pieces: what a model found is kept in results/tuned/DATA/MODEL.json, the
rank of every test target under each seed beside it in MODEL.npz, and a piece that is there is not made again.
Delete MODEL.npz to train and rank anew with the settings that were found, both to search anew. The tables,
results/tuned.md and .json, are made of the pieces alone; `--only` with a text that fits none makes just them.
"""

from __future__ import annotations

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine import RESULTS, describe, record, sentence
from real_data import call, make_data, options
from study import rare, without_pictures

from hafvt.errors import HafvtError
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.significance import holm, paired_test
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.comparison_runner import require_tuned_is_best, slug
from hafvt.experiments.search_space import TRAINING_OPTIONS
from hafvt.files import atomic_file, read_json, write_json
from hafvt.models import MODELS as MODEL_TABLE
from hafvt.tables import markdown_table
from hafvt.training.run import open_run

SEEDS = 3
TRIALS = 16  # of each model; the first has the default settings
DATA = ("movielens-posters", "amazon-food-kitchen")
PROTOCOLS = ("full", "sampled-unseen")
OURS = "hafvt"
PARTS = {  # of HAF-VT, by what differs from it; Table 4 of the paper, and what this project added
    "hafvt, unmixed": "--params.modality_branches false",
    "hafvt, ids only": "--params.modalities [id]",
    "hafvt, merged history alone": "--params.hierarchy false",
    "hafvt, ids, merged history (original)": "--params.modalities [id] --params.hierarchy false",
    "hafvt without clusters": "--params.cluster_sizes []",
    "hafvt, no shared parameters": "--params.id_shrinkage 0",
    "hafvt, ids and titles": "--params.modalities [id,title]",
    "hafvt, ids and pictures": "--params.modalities [id,image]",
}
BASELINES = [name for name, entry in MODEL_TABLE.items() if not entry.has_weights]
MODELS = [OURS, "sasrec", "gru4rec", "c2dsr", "srgnn", "pinet", "psjnet", "mifn", "tricdr", *BASELINES]


@dataclass(frozen=True)
class Piece:
    """What was found for a model on a data set.

    Attributes:
        told: settings, search, epochs, time and machine.
        ranks: (2, seeds, n) of the test targets, by protocol.
        domains: (n,) the domain of each target.
        met: (n,) its training interactions.
    """

    entry: dict[str, Any]
    ranks: np.ndarray
    domains: np.ndarray
    counts: np.ndarray

    def gains(self, protocol: str, of_rare: bool = False) -> np.ndarray:
        """Returns what each target adds to the MRR averaged over domains, (n,), the mean over the seeds.

        Their mean is that MRR; of rare targets alone, the others add nothing and domains are not told apart.
        """
        reciprocal = (1 / self.ranks[PROTOCOLS.index(protocol)].astype(np.float64)).mean(0)
        if of_rare:
            return reciprocal[rare(self.counts)]
        sizes = np.bincount(self.domains)
        return reciprocal * len(reciprocal) / (sizes[self.domains] * len(sizes))

    def mrrs(self, protocol: str) -> np.ndarray:
        """Returns the MRR averaged over domains, of each seed, (seeds,)."""
        reciprocal = 1 / self.ranks[PROTOCOLS.index(protocol)].astype(np.float64)
        return np.mean([reciprocal[:, self.domains == d].mean(1) for d in np.unique(self.domains)], axis=0)


def main() -> None:
    arguments = options("Tuned models on the real data sets, three seeds each.").parse_args()
    wanted = [(data, label) for label in [*MODELS, *PARTS] for data in DATA]
    for data, label in wanted:
        apart = without_pictures(data, label.removeprefix("hafvt, "))
        if not apart and arguments.only in f"{data}/{label}" and not ranks_of(data, label).exists():
            make_data(arguments.shared / data, arguments.work / "data" / data)
            make(arguments.work, data, label, arguments.jobs)
            write()
    print(write())


def place(data: str, label: str) -> Path:
    """Returns where what was found for a piece is kept."""
    return RESULTS / "tuned" / data / f"{slug(label)}.json"


def ranks_of(data: str, label: str) -> Path:
    """Returns where the ranks of its test targets are."""
    return place(data, label).with_suffix(".npz")


def make(work: Path, data: str, label: str, jobs: int) -> None:
    """Searches, trains and ranks, or goes on with it; writes the piece.

    It does not search where settings were found already, nor for a part, which takes those of the whole.
    """
    folder = work / data / slug(label)
    model = OURS if label in PARTS else label
    command = ["train", model, "--data", str(work / "data" / data), "--test", "false", "--resume"]
    default_command = list(command)
    entry: dict[str, Any] = {"data": data, "label": label, "model": model}
    known = place(data, model)
    if label in PARTS:
        entry["change"] = PARTS[label]
    if label in PARTS or known.exists():
        selected = read_json(known)
        entry |= {name: selected[name] for name in ("settings", "search", "defaults") if name in selected}
    elif model != "popularity":
        search = folder / "search"
        tune(work / "data" / data, model, search, jobs)
        best = yaml.safe_load((search / "best.yaml").read_text(encoding="utf-8"))
        entry["settings"] = {name: best[name] for name in (*TRAINING_OPTIONS, "params") if name in best}
        entry["search"] = read_json(search / "settings.json")["budget"]
    if "settings" in entry:
        settings = folder / "settings.yaml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(yaml.safe_dump(entry["settings"]), encoding="utf-8")
        command[2:2] = ["--config", str(settings)]  # later options win
        command += PARTS.get(label, "").split()

    def one(name: str, seed: int, arguments: list[str]) -> None:
        out = folder / f"{name}{seed}"
        if not (out / "model.json").exists():
            call([*arguments, "--out", str(out), "--seed", str(seed)], out.with_suffix(".log"), 1)

    seeds = range(SEEDS if MODEL_TABLE[model].has_weights else 1)
    trainings = [("seed", seed, command) for seed in seeds]
    if label not in PARTS and "settings" in entry and "defaults" not in entry:
        trainings += [("default", seed, default_command) for seed in seeds]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda training: one(*training), trainings))
    runs = [open_run(folder / f"seed{seed}") for seed in seeds]
    entry["runs"] = [run.manifest["best"] for run in runs]
    if len(trainings) > len(seeds):
        defaults = [open_run(folder / f"default{seed}").manifest["best"] for seed in seeds]
        entry["defaults"] = [best["valid_mrr"] for best in defaults]
    entry |= {"parameters": runs[0].manifest["parameters"], "machine": describe()}
    results = {
        p: [rank_targets(run.models, run.data, "test", get_protocol(p)).half_ties for run in runs]
        for p in PROTOCOLS
    }
    first = results["full"][0]
    counts = runs[0].data.train_counts()[np.asarray(runs[0].data.items)[first.positions]]
    path = ranks_of(data, label)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(place(data, label), json.loads(json.dumps(entry)))
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            ranks=np.array([[one.ranks for one in results[p]] for p in PROTOCOLS], dtype=np.float32),
            domains=first.domains.astype(np.int8),
            train_counts=counts.astype(np.int32),
        )


def tune(data: Path, model: str, out: Path, jobs: int) -> None:
    """Searches the settings of a model, or goes on with it."""
    command = ["tune", model, "--data", str(data), "--out", str(out), "--trials", str(TRIALS)]
    call([*command, "--jobs", str(jobs)], out.with_suffix(".log"), 1)


def read() -> dict[str, dict[str, Piece]]:
    """Returns the pieces there are, by data set and model."""
    results: dict[str, dict[str, Piece]] = {}
    for data in DATA:
        for label in [*MODELS, *PARTS]:
            path = ranks_of(data, label)
            if path.exists():
                try:
                    previous = np.load(path)
                except (OSError, zipfile.BadZipFile):
                    raise SystemExit(f"{path} is damaged: delete it, and it is made again") from None
                piece = Piece(
                    read_json(place(data, label)),
                    previous["ranks"],
                    previous["domains"],
                    previous["train_counts"],
                )
                results.setdefault(data, {})[label] = piece
    return results


def write() -> str:
    """Writes the tables of all pieces and returns them."""
    machine, facts = describe(), {}
    text = [
        "# Tuned models",
        "",
        "`python benchmarks/tuned.py --shared ../shared/data --work DIR`: each model with the best of "
        f"{TRIALS} settings by validation MRR (`hafvt tune` with its default ranges, the default settings "
        f"first), {SEEDS} seeds, each until the validation MRR no longer rises. Test MRR in %, mean of the "
        "domains, ± standard deviation over the seeds: among all items of the domain and "
        "under the protocol `sampled-unseen`. Rare: targets with fewer than five training interactions, or "
        "the rarest tenth. p: "
        "that the difference to `hafvt` is chance, by bootstrap or Wilcoxon over users, the larger, after "
        "Holm's correction for all rows.",
        "",
    ]
    for data, pieces in read().items():
        require_tuned_pieces(pieces)
        rows = table(pieces)
        facts[data] = rows
        header = ["model", "seeds", "MRR", "hafvt is above by", "p"]
        header += ["unseen MRR", "hafvt is above by", "p", "unseen, rare", "hafvt is above by", "p"]
        header += ["epochs", "minutes a training"]
        cells = []
        for label, row in rows.items():
            mine = [label, str(row["seeds"])]
            for column in ("full", "sampled-unseen", "rare"):
                one = row[column]
                spread = "" if one["deviation"] is None else f" ± {100 * one['deviation']:.2f}"
                mine += [f"{100 * one['mrr']:.2f}{spread}"]
                mine += [f"{one['above']:+.1%}", f"{one['p']:.1g}"] if "p" in one else ["", ""]
            epochs = ", ".join(str(run["epoch"]) for run in pieces[label].entry["runs"])
            minutes = np.mean([run["seconds"] for run in pieces[label].entry["runs"]]) / 60
            cells.append([*mine, epochs, f"{minutes:.1f}"])
        n = len(next(iter(pieces.values())).counts)
        text += [f"## {data}", "", f"{n:,} test targets.", "", markdown_table(header, cells)]
        machines = {sentence(piece.entry["machine"]) for piece in pieces.values()}
        text += [*sorted(machines), "", "Settings, as the searches found them:", ""]
        settings = [
            [label, f"`{json.dumps(piece.entry['settings'])}`", piece.entry["search"]]
            for label, piece in pieces.items()
            if label not in PARTS and "settings" in piece.entry
        ]
        text += [markdown_table(["model", "settings", "search"], settings, text_columns=3)]
    entry = "\n".join(text)
    record("tuned", entry, {"machine": machine, "candidates": "unseen", "data": facts})
    return entry


def require_tuned_pieces(pieces: dict[str, Piece]) -> None:
    """Stops with a message if a model's tuned settings are worse in validation than its default ones."""
    for label, piece in pieces.items():
        if label in PARTS or "settings" not in piece.entry:
            continue
        if "defaults" not in piece.entry:
            path = place(piece.entry["data"], label)
            raise SystemExit(
                f"{path}: made without its default settings: delete it and its .npz, and make it again"
            )
        try:
            mrrs = [run["valid_mrr"] for run in piece.entry["runs"]]
            require_tuned_is_best(f"{label} on {piece.entry['data']}", mrrs, piece.entry["defaults"])
        except HafvtError as error:
            raise SystemExit(str(error)) from None


def table(pieces: dict[str, Piece]) -> dict[str, Any]:
    """Returns, by model, MRRs and how far HAF-VT is above, with p-values."""
    ours, results = pieces.get(OURS), {}
    for label, piece in pieces.items():
        row: dict[str, Any] = {"seeds": piece.ranks.shape[1]}
        for column in ("full", "sampled-unseen", "rare"):
            protocol = "sampled-unseen" if column == "rare" else column
            gains = piece.gains(protocol, of_rare=column == "rare")
            deviation = None
            if len(piece.mrrs(protocol)) > 1 and column != "rare":
                deviation = float(piece.mrrs(protocol).std(ddof=1))
            row[column] = {"mrr": float(gains.mean()), "deviation": deviation}
            if ours is not None and label != OURS:
                mine = ours.gains(protocol, of_rare=column == "rare")
                test = paired_test(mine - gains, resamples=20_000)  # p-values down to 1e-4
                row[column] |= {"above": float(mine.mean() / gains.mean() - 1)}
                row[column] |= {"bootstrap": test.bootstrap, "wilcoxon": test.wilcoxon}
        results[label] = row
    for column in ("full", "sampled-unseen", "rare"):
        entry = [row[column] for row in results.values() if "above" in row[column]]
        corrected = [holm([one[name] for one in entry]) for name in ("bootstrap", "wilcoxon")]
        for one, *values in zip(entry, *corrected, strict=True):
            one["p"] = max(values)
    return results


if __name__ == "__main__":
    main()
