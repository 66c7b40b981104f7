"""HAF-VT beside a plain PyTorch HAF-VT, which stores its logits and knows no bfloat16.

    python benchmarks/plain.py --shared ../shared/data --work DIR [--passes 1]

Two comparisons, each contestant in a process of its own with all processors: some steps over 64,000 generated
items with a picture and a title each, and whole passes over amazon-food-kitchen, with the quality reached on
its validation targets. The plain model is the same but for its loss, which is written as the equations are.
What is finished is left as it is. Writes results/plain.md and .json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contestants.common import Meter
from machine import describe, record, sentence
from real_data import make_data
from torch import Tensor

from hafvt.data.batches import Batch, TrainBatches
from hafvt.data.dataset import Dataset, Domain
from hafvt.evaluation.metrics import mean_mrr, summarize
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.features.item_features import ItemFeatures, Vectors, load_item_features
from hafvt.files import read_json, write_json
from hafvt.models.configs import HafVtConfig
from hafvt.models.hafvt import HafVt
from hafvt.models.sequences import in_domain, select_items, train_targets
from hafvt.ops.device import compute_dtype
from hafvt.tables import markdown_table

ITEMS, BATCH, LENGTH, STEPS = 64_000, 64, 20, 5
DATA = "amazon-food-kitchen"
CASES = ("steps", "passes")


class PlainHafVt(HafVt):
    """HAF-VT with the loss (9) as it is written: every logit stored, float32, autograd."""

    def loss(self, batch: Batch) -> Tensor:
        """See `HafVt.loss`."""
        sequences = [*(select_items(batch, in_domain(batch.items, domain)) for domain in self.domains), batch]
        embeddings, loss = self.items.input_embeddings(), torch.zeros(())
        for s, sequence in enumerate(sequences):
            t, candidates = train_targets(sequence, self.trained.is_cold), self.trained.ranges[s]
            trained = self.trained.indices[candidates]  # (V',)
            seen = torch.zeros(len(t.targets), len(trained))  # (N, V')
            columns = self.trained.positions[t.seen_items(t.inputs.items)] - candidates.start
            seen.scatter_add_(1, columns.clamp(0, len(trained) - 1), t.is_seen.float())
            targets = self.trained.positions[t.targets] - candidates.start
            states = self.encoders[s](F.embedding(t.inputs.items, embeddings))
            log_p = []
            for m, table in enumerate(self.items.scoring_vectors()):
                h = F.normalize(self.output_projections[s][m](states)[t.mask], dim=1)
                logits = h @ table[trained].T / self.config.temperature + seen * self.log_seen_shares()[0]
                log_p.append(torch.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0])
            mixture = (self.log_modality_weights()[s] + torch.stack(log_p, dim=1)).logsumexp(1)
            weight = self.config.lambda2 if s == len(self.domains) else 1 / len(self.domains)
            loss = loss - weight * mixture.sum() / max(len(mixture), 1)
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(description="HAF-VT beside a plain PyTorch HAF-VT.")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--work", type=Path, required=True, help="folder for the data set and the figures")
    parser.add_argument("--passes", type=int, default=1, help="over the training sequences")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SYSTEM"), help="measure in this process")
    arguments = parser.parse_args()
    if arguments.one:
        case, system = arguments.one
        write_json(
            arguments.work / f"{case}-{system}.json", measure(case, system, arguments.work, arguments.passes)
        )
        return
    make_data(arguments.shared / DATA, arguments.work / DATA)
    measured: dict[str, dict[str, Any]] = {}
    for case in CASES:
        for system in ("hafvt", "plain"):
            path = arguments.work / f"{case}-{system}.json"
            if not path.exists():
                command = [sys.executable, __file__, "--work", arguments.work, "--passes", arguments.passes]
                subprocess.run([*map(str, command), "--one", case, system], check=True)
            measured[f"{case} {system}"] = read_json(path)
            print(case, system, measured[f"{case} {system}"], flush=True)
    write(measured, arguments.passes)


def measure(case: str, system: str, work: Path, passes: int) -> dict[str, Any]:
    """Returns speed, memory above start, share of the time in the softmax and, after passes, quality."""
    torch.manual_seed(0)
    kind = HafVt if system == "hafvt" else PlainHafVt
    if case == "steps":
        domains = (Domain("x", 0, ITEMS // 2), Domain("y", ITEMS // 2, ITEMS))
        here = torch.ones(ITEMS, dtype=torch.bool)
        vectors = {
            name: Vectors(F.normalize(torch.randn(ITEMS, 128), dim=1), here) for name in ("image", "title")
        }
        catalog = ItemFeatures(domains, vectors, torch.ones(ITEMS))
        random = [torch.randint(ITEMS, (BATCH, LENGTH + 1)) for _ in range(STEPS)]
        batches = [Batch(items, torch.full((BATCH,), LENGTH + 1)) for items in random]
    else:
        data = Dataset.open(work / DATA)
        catalog = load_item_features(data)
        order = TrainBatches(data, BATCH, LENGTH + 1, seed=0)
        batches = [batch for number in range(passes) for batch in order.epoch(number)]
    config = HafVtConfig(max_length=LENGTH)
    model = kind(HafVt.prepare_item_features(catalog, config), config)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-3, fused=True)
    bf16 = compute_dtype(torch.device("cpu")) == torch.bfloat16 and system == "hafvt"
    spent = timed_softmax() if system == "hafvt" else [0.0]

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
            loss = model.loss(batch)
        loss.backward()
        optimizer.step()

    if case == "steps":
        with Meter() as first:  # the memory is that of the first step, which makes the optimizer's tables too
            step(batches[0])
    spent[0] = 0.0
    with Meter() as training:
        for batch in batches:
            step(batch)
    targets = sum(int((batch.lengths - 1).sum()) for batch in batches)
    figures = {
        "targets": targets,
        "targets_per_cpu_s": targets / training.cpu_s,
        "wall_s": training.wall_s,
        "ms_per_step": 1000 * training.wall_s / len(batches),
        "gib_above_start": first.above_gib if case == "steps" else training.above_gib,
        "share_in_softmax": spent[0] / training.wall_s if system == "hafvt" else None,
    }
    if case == "passes":
        ranks = rank_positions(model, data, data.valid).half_ties
        results = summarize(ranks, [d.name for d in data.domains], resamples=1)
        figures |= {"valid_mrr": mean_mrr(ranks), "valid_ndcg10": results["overall"]["NDCG@10"].value}
    return figures


def timed_softmax() -> list[float]:
    """Makes the model's softmaxes count the seconds that they take; all their gradients are made there."""
    from hafvt.models.hafvt import softmax

    spent = [0.0]

    def timed(function: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            measured = function(*args, **options)
            spent[0] += time.perf_counter() - start
            return measured

        return run

    for name in ("catalog_nll", "target_log_probabilities"):
        setattr(softmax, name, timed(getattr(softmax, name)))
    return spent


def write(measured: dict[str, dict[str, Any]], passes: int) -> None:
    """Writes the tables."""
    machine, parts = describe(), []
    titles = {
        "steps": f"Steps over {ITEMS:,} generated items: ids, pictures, titles, width 128 each; batches of "
        f"{BATCH} histories of {LENGTH} items",
        "passes": f"{passes} pass(es) over {DATA} (28,095 items; ids and titles, width 128)",
    }
    for case in CASES:
        rows = []
        yardstick = measured[f"{case} plain"]
        for system in ("hafvt", "plain"):
            row = measured[f"{case} {system}"]
            cells = [system, f"{row['ms_per_step']:,.0f}"]
            cells += [f"{yardstick['ms_per_step'] / row['ms_per_step']:.1f}"]
            cells += [f"{row['targets_per_cpu_s']:,.0f}", f"{row['wall_s']:,.1f}"]
            cells += [f"{row['gib_above_start']:.2f}"]
            cells += [f"{100 * row['share_in_softmax']:.0f}" if system == "hafvt" else "–"]
            if case == "passes":
                cells += [f"{100 * row['valid_mrr']:.2f}", f"{100 * row['valid_ndcg10']:.2f}"]
            rows.append(cells)
        header = ["system", "ms per step", "times as fast", "targets per CPU-s", "wall, s"]
        header += ["GiB above start", "of the time in softmaxes, %"]
        header += ["validation MRR, %", "NDCG@10, %"] * (case == "passes")
        parts += [f"## {titles[case]}", "", markdown_table(header, rows), ""]
    text = [
        "# HAF-VT beside a plain PyTorch HAF-VT",
        "",
        "`python benchmarks/plain.py --shared ../shared/data --work DIR`. The plain one stores its logits "
        "and computes in float32; everything but the loss is the same code.",
        "",
        sentence(machine),
        "",
        *parts,
    ]
    record("plain", "\n".join(text), {"machine": machine, "passes": passes, "systems": measured})


if __name__ == "__main__":
    main()
