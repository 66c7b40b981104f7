"""report.html of one run, or of several side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from hafvt.data.batches import collate
from hafvt.data.dataset import Dataset
from hafvt.evaluation.metrics import Results
from hafvt.evaluation.protocols import FULL, Protocol
from hafvt.evaluation.ranks import Ranks
from hafvt.evaluation.results import read_description, write_results
from hafvt.features.images import thumbnail_data_uri
from hafvt.models.base import Model
from hafvt.models.hafvt import HafVt
from hafvt.ops import ranking
from hafvt.reports.page import CurvePoint, ItemCard, Recommendation, UserExample, write_page

PEOPLE = 6
LISTED = 10
THUMBNAIL = 112  # pixels a side


def write_report(
    path: str | Path,
    runs: Mapping[str, tuple[Sequence[Model], Results, Path]],
    data: Dataset,
    notes: Sequence[str] = (),
) -> None:
    """Writes one self-contained page.

    Args:
        path: of the page.
        runs: by name: the model of each domain, its results, and its folder for the training curve. What
            people are recommended is what the first says.
        data: the dataset.
        notes: lines below the table.
    """
    models = next(iter(runs.values()))[0]
    write_page(
        path,
        title=f"{' and '.join(d.name for d in data.domains)}: {', '.join(runs)}",
        results={name: results for name, (_, results, _) in runs.items()},
        curves={name: read_curve(folder / "metrics.jsonl") for name, (_, _, folder) in runs.items()},
        people=people(models, data),
        notes=notes,
    )


def report(
    folder: Path,
    name: str,
    models: Sequence[Model],
    data: Dataset,
    ranks: Ranks,
    what: str = "test targets",
    protocol: Protocol = FULL,
) -> Results:
    """Writes ranks.parquet, results.json and report.html of one model's ranks.

    Args:
        folder: where to; the training curve is looked for in its metrics.jsonl.
        name: of the model.
        models: that of each domain, for the examples on the page.
        data: the dataset.
        ranks: of the targets.
        what: the targets, in words.
        protocol: how they were ranked.

    Returns:
        The metrics per domain and overall.
    """
    results = write_results(folder, data, ranks, protocol, what)
    notes = [read_description(folder), *models[0].notes]
    write_report(folder / "report.html", {name: (models, results, folder)}, data, notes)
    return results


def read_curve(path: Path) -> list[CurvePoint]:
    """Returns the points of metrics.jsonl; none where there is no such file."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [CurvePoint(line["epoch"], line["loss"], line.get("valid_mrr")) for line in lines]


def people(models: Sequence[Model], data: Dataset, seed: int = 0) -> list[UserExample]:
    """Returns test users, drawn by the seed alone, with histories and what the model recommends them."""
    random = np.random.default_rng(seed)
    chosen = random.choice(np.asarray(data.test), size=min(PEOPLE, len(data.test)), replace=False)
    return [person(models, data, int(position)) for position in chosen]


def person(models: Sequence[Model], data: Dataset, position: int) -> UserExample:
    """Returns one user, as of right before the target at a position."""
    user = int(data.users_at(np.array([position]))[0])
    target = int(data.items[position])
    number, domain = next((n, d) for n, d in enumerate(data.domains) if d.start <= target < d.stop)
    model = models[number].eval()
    start = max(int(data.offsets[user]), position - model.max_length)
    with torch.inference_mode():
        batch = collate(data.items, np.array([start]), np.array([position]))
        scores = model.scores(batch, number)  # (1, C)
        rank = float(ranking.ranks(scores, torch.tensor([target - domain.start]))[0])
        best, columns = ranking.top_k(scores, min(LISTED, len(domain)))
        items = columns + domain.start  # (1, k)
        shares: list[dict[tuple[str, str], float]] = [{} for _ in range(items.shape[1])]
        if isinstance(model, HafVt):
            parts = model.shares(batch, number, items)[0]  # (k, sequences, M)
            names = [f"{d.name} history" for d in data.domains] + ["merged history"]
            sequences = [names[number] for number in model.used]
            for row, share in enumerate(shares):
                for s, sequence in enumerate(sequences):
                    for m, modality in enumerate(model.modalities):
                        share[sequence, modality] = float(parts[row, s, m])
    listed = [
        Recommendation(item=shown(data, item), score=float(score), shares=share, hit=item == target)
        for item, score, share in zip(items[0].tolist(), best[0].tolist(), shares, strict=True)
    ]
    return UserExample(
        user_id=str(data.user_ids[user]),
        domain=domain.name,
        history=tuple(shown(data, int(item)) for item in data.items[start:position]),
        target=shown(data, target),
        target_rank=rank,
        recommendations=tuple(listed),
    )


def shown(data: Dataset, item: int) -> ItemCard:
    """Returns an item as the page shows it."""
    row = data.item_table.row(item, named=True)
    picture = None
    if row["image"] and data.image_root is not None:
        picture = thumbnail_data_uri(data.image_root, row["image"], THUMBNAIL)
    return ItemCard(item_id=row["item_id"], domain=row["domain"], title=row["title"], picture=picture)
