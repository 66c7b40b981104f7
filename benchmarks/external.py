"""Models of other libraries beside ours, trained to convergence on the same logs and targets.

    python benchmarks/external.py --shared ../shared/data --work DIR [--only TEXT] [--trials 3] [--jobs 2]

Each library has a virtual environment of its own, which the first call makes. A trial is a process with one
thread: it reads the training interactions alone, has the validation targets ranked by `hafvt.evaluation`
after each epoch, ends when their MRR no longer rises, and ranks the test targets once, by the weights of its
best epoch. All models have equally many trials of settings (rivals.py); the best by validation MRR enters the
table. Candidates are all items of the target's domain that the user has not had.

What a trial found is kept in results/external/DATA/MODEL-NUMBER.json, the ranks of the test targets beside it
in .npz, and a trial that is there is not made again. The tables results/external.md and .json and the charts
results/external-DATA.svg are made of the trials alone; `--only` with a text that fits none makes just them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from environments import interpreter
from machine import RESULTS, describe, record, sentence
from real_data import make_data, options
from rivals import LENGTHS, OURS, RIVALS
from time_to_quality import chart

import hafvt
from hafvt.evaluation.metrics import METRICS
from hafvt.evaluation.significance import holm, paired_test
from hafvt.experiments.comparison_runner import slug
from hafvt.files import atomic_file, read_json, write_json
from hafvt.tables import ABSENT, markdown_table, percent

CONTESTANTS = Path(__file__).resolve().parent / "contestants"
SOURCE = Path(hafvt.__file__).resolve().parents[1]


class Limits(NamedTuple):
    """When a trial ends: see `contestants/convergence.py`."""

    epochs: int
    patience: int
    cpu_s: float


LIMITS = {"movielens-posters": Limits(60, 5, 1800), "amazon-food-kitchen": Limits(30, 3, 900)}


@dataclass(frozen=True)
class FinishedTrial:
    """What a trial of a model found.

    Attributes:
        facts: version, settings, parameters, curve (epoch, processor seconds, validation MRR), machine.
        ranks: (n,) of the test targets.
        domains: (n,) the domain of each target.
    """

    facts: dict[str, Any]
    ranks: np.ndarray
    domains: np.ndarray

    @property
    def best(self) -> tuple[int, float, float]:
        """The first point of the curve with the highest validation MRR."""
        epoch, seconds, mrr = max(self.facts["curve"], key=lambda point: point[2])
        return epoch, seconds, mrr

    def seconds_to(self, mrr: float) -> float | None:
        """Return the processor seconds after which the validation MRR is at least `mrr`, None if never."""
        return next((seconds for _, seconds, value in self.facts["curve"] if value >= mrr), None)

    def gains(self, metric: str) -> np.ndarray:
        """Return what each target adds to a metric averaged over domains, (n,); their mean is the metric."""
        sizes = np.bincount(self.domains)
        values = METRICS[metric](self.ranks.astype(np.float64))
        return values * len(values) / (sizes[self.domains] * len(sizes))


def main() -> None:
    parser = options("Models of other libraries, trained to convergence.")
    parser.add_argument("--trials", type=int, default=3, help="of each model, at most 3")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    jobs = [
        (data, name, number)
        for data in LENGTHS
        for number in range(arguments.trials)
        for name, rival in RIVALS.items()
        if number < len(rival.trials[data])
        and arguments.only in f"{data}/{name}"
        and not place(data, name, number).with_suffix(".npz").exists()
    ]
    for data in dict.fromkeys(data for data, _, _ in jobs):
        make_data(arguments.shared / data, work / "data" / data)
    for library in dict.fromkeys(RIVALS[name].library for _, name, _ in jobs):
        interpreter(library, work)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for finished in [pool.submit(run_trial, work, *job) for job in jobs]:
            finished.result()
            write()
    print(write())


def place(data: str, name: str, number: int) -> Path:
    """Return where what a trial found is kept."""
    return RESULTS / "external" / data / f"{slug(name)}-{number}.json"


def run_trial(work: Path, data: str, name: str, number: int) -> None:
    """Train and rank in a process, and keep what it found."""
    rival, path = RIVALS[name], place(data, name, number)
    settings = {**rival.trials[data][number], "max_length": LENGTHS[data]}
    out = work / "external" / data / path.stem
    shutil.rmtree(out, ignore_errors=True)  # of a trial that was stopped
    command = run_command(work, rival.library, work / "data" / data, settings, LIMITS[data], out)
    with (out / "log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, cwd=out, env=environment())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"data": data, "model": name, **read_json(out / "trial.json"), "machine": describe()})
    with atomic_file(path.with_suffix(".npz")) as temporary:
        shutil.copyfile(out / "ranks.npz", temporary)


def run_command(
    work: Path, library: str, data: Path, settings: dict[str, Any], limits: Limits, out: Path
) -> list[str]:
    """Return the command line of a contestant; makes the folder `out`."""
    out.mkdir(parents=True)
    command = [interpreter(library, work), CONTESTANTS / f"{library}_converged.py", "--data", data]
    command += ["--settings", json.dumps(settings), "--out", out, "--epochs", limits.epochs]
    return [*map(str, command), "--patience", str(limits.patience), "--cpu-s", str(limits.cpu_s)]


def environment() -> dict[str, str]:
    """Return the variables of a contestant's process: one thread, our sources, and memory that is kept.

    With glibc's defaults, large tensors are returned to the system and fetched again at each step.
    """
    keep = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **keep, **threads, "PYTHONPATH": str(SOURCE)}


def read(data: str) -> dict[str, list[FinishedTrial]]:
    """Return the finished trials on a data set, by model."""
    trials: dict[str, list[FinishedTrial]] = {}
    for name, rival in RIVALS.items():
        for number in range(len(rival.trials[data])):
            path = place(data, name, number)
            if path.with_suffix(".npz").exists():
                saved = np.load(path.with_suffix(".npz"))
                trials.setdefault(name, []).append(
                    FinishedTrial(read_json(path), saved["ranks"], saved["domains"])
                )
    return trials


def write() -> str:
    """Write the tables and charts of all finished trials and return the tables."""
    text = ["# Models of other libraries", ""]
    text += [
        "`python benchmarks/external.py --shared ../shared/data --work DIR`: each model with the best of its "
        "trials by validation MRR, trained with one thread until "
        + " or ".join(f"{limits.patience} epochs ({data})" for data, limits in LIMITS.items())
        + " bring no higher one. Candidates: all items of the domain that the user has not had. Metrics in "
        "%, mean of the domains, one seed. CPU: processor seconds of training until the best epoch, without "
        "validation. A star marks trainings that used up their processor time ("
        + ", ".join(f"{limits.cpu_s:.0f} s, {data}" for data, limits in LIMITS.items())
        + ") or epochs before they converged. p: that the difference to hafvt is chance, by bootstrap or "
        "Wilcoxon over users, the larger, after Holm's correction. "
        "Last columns: processor seconds in which hafvt reaches the validation MRR of the model's best "
        "epoch, and their ratio to the model's own.",
        "",
    ]
    facts: dict[str, Any] = {}
    for data in LENGTHS:
        trials = read(data)
        if trials:
            finished, planned = (sum(map(len, part)) for part in (trials.values(), planned_trials(data)))
            text += [
                f"## {data}",
                "",
                f"{finished} of {planned} trials are finished.",
                "",
                *table(trials),
                f"![time to quality](external-{data}.svg)",
                "",
            ]
            machines = {f"{sentence(t.facts['machine'])}" for part in trials.values() for t in part}
            text += [*sorted(machines), "", "All trials:", "", all_trials(trials)]
            best = {name: best_trial(part) for name, part in trials.items()}
            facts[data] = {
                name: {"trials": len(trials[name]), **summary(trial, best.get(OURS))}
                for name, trial in best.items()
            }
            with atomic_file(RESULTS / f"external-{data}.svg") as path:
                curves = {name: trial.facts["curve"] for name, trial in best.items()}
                path.write_text(chart(f"Validation MRR (%) of {data}", curves), encoding="utf-8")
    tables = "\n".join(text)
    record("external", tables, {"data": facts})
    return tables


def planned_trials(data: str) -> list[list[dict[str, Any]]]:
    """Return the settings of all trials on a data set, by model."""
    return [rival.trials[data] for rival in RIVALS.values()]


def best_trial(trials: list[FinishedTrial]) -> FinishedTrial:
    """Return the trial with the highest validation MRR."""
    return max(trials, key=lambda trial: trial.best[2])


def summary(trial: FinishedTrial, ours: FinishedTrial | None) -> dict[str, Any]:
    """Return the figures of a model's best trial; `ours` is the best trial of HAF-VT."""
    epoch, seconds, mrr = trial.best
    row = {name: float(trial.gains(name).mean()) for name in ("MRR", "HR@10", "NDCG@10")}
    row |= {"valid_mrr": mrr, "epoch": epoch, "cpu_s": seconds, **trial.facts}
    if ours is not None and ours is not trial:
        test = paired_test(ours.gains("MRR") - trial.gains("MRR"), resamples=20_000)
        row |= {"above": float(ours.gains("MRR").mean() / trial.gains("MRR").mean() - 1)}
        row |= {"bootstrap": test.bootstrap, "wilcoxon": test.wilcoxon, "ours_cpu_s": ours.seconds_to(mrr)}
    return row


def table(trials: dict[str, list[FinishedTrial]]) -> list[str]:
    """Return the table of the best trials, best validation MRR first."""
    best = {name: best_trial(part) for name, part in trials.items()}
    rows = {name: summary(trial, best.get(OURS)) for name, trial in best.items()}
    others = [row for row in rows.values() if "above" in row]
    corrected = [holm([row[name] for row in others]) for name in ("bootstrap", "wilcoxon")]
    for row, *values in zip(others, *corrected, strict=True):
        row["p"] = max(values)
    cells = []
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["valid_mrr"]):
        star = "" if row["converged"] else "*"
        one = [name, row["version"], str(len(trials[name])), f"{row['parameters']:,}"]
        one += [f"{row['epoch']}{star}", f"{row['cpu_s']:,.0f}"]
        one += [percent(row[metric]) for metric in ("valid_mrr", "MRR", "HR@10", "NDCG@10")]
        one += [f"{row['above']:+.1%}", f"{row['p']:.1g}"] if "p" in row else ["", ""]
        seconds = row.get("ours_cpu_s")
        one += [f"{seconds:,.0f}", f"{seconds / row['cpu_s']:.2f}"] if seconds else [ABSENT, ABSENT]
        cells.append(one)
    header = ["model", "library", "trials", "parameters", "best epoch", "CPU, s", "validation MRR", "MRR"]
    header += ["HR@10", "NDCG@10", "hafvt is above by", "p", "hafvt as good after, s", "of its time"]
    return [markdown_table(header, cells, text_columns=2)]


def all_trials(trials: dict[str, list[FinishedTrial]]) -> str:
    """Return the table of the settings of all trials."""
    cells = [
        [
            name,
            f"`{json.dumps(trial.facts['settings'])}`",
            f"{trial.best[0]} of {trial.facts['curve'][-1][0]}{'' if trial.facts['converged'] else '*'}",
            f"{trial.facts['curve'][-1][1]:,.0f}",
            percent(trial.best[2]),
        ]
        for name, part in trials.items()
        for trial in part
    ]
    header = ["model", "settings", "best epoch", "CPU of all epochs, s", "validation MRR"]
    return markdown_table(header, cells, text_columns=2)


if __name__ == "__main__":
    main()
