"""Collect the content of report.html from finished runs: metrics, training curves and user examples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from hafvt.data.batches import history_batch
from hafvt.data.dataset import Dataset
from hafvt.data.repeats import CandidateRule
from hafvt.evaluation.results import (
    OTHER_CANDIDATES,
    read_description,
    read_list_results,
    read_other_results,
    read_results,
    read_results_by_novelty,
)
from hafvt.evaluation.target_ranking import seen_columns
from hafvt.features.images import thumbnail_data_uri
from hafvt.files import explained_read_errors, read_json
from hafvt.models.base import Model
from hafvt.ops import ranking
from hafvt.ops.top_k import top_k_columns
from hafvt.reports.charts import CurvePoint
from hafvt.reports.page import ItemCard, RankedItem, UserExample, write_page
from hafvt.training.run import Run
from hafvt.training.tracking import send_files

NUM_USERS = 6
NUM_RECOMMENDATIONS = 10
THUMBNAIL_PIXELS = 112  # longest side

RERANK_CURVES = "rerank_curve.json"
NO_PILLOW = "Without pictures, as the package pillow is missing: pip install 'hafvt[classic]'"


def write_run_report(
    run: Run,
    folder: Path | None = None,
    candidates: CandidateRule | None = None,
    *,
    path: Path | None = None,
    with_users: bool = True,
) -> Path:
    """Write report.html of one evaluated run and return its path.

    Args:
        run: the run.
        folder: the folder with results.json, where the report is written; default: that of the run.
        candidates: rule for items of the history in the user examples; default: that of the training.
        path: of the report; default: report.html in `folder`.
        with_users: whether to show users with their histories.
    """
    folder = folder or run.folder
    path = path or folder / "report.html"
    notes = [read_description(folder), *run.model.notes]
    write_report(path, {run.name: run}, notes, {run.name: folder}, candidates, with_users=with_users)
    return path


def send_run_report(run: Run) -> None:
    """Send the report, without histories of users, to the loggers of the training that returned a run."""
    with TemporaryDirectory() as folder:
        send_files(run, [write_run_report(run, path=Path(folder) / "report.html", with_users=False)])


def write_report(
    path: str | Path,
    runs: Mapping[str, Run],
    notes: Sequence[str] = (),
    result_folders: Mapping[str, Path] | None = None,
    candidates: CandidateRule | None = None,
    *,
    with_users: bool = True,
) -> None:
    """Write one self-contained page about one run or several runs on the same dataset.

    Args:
        path: of the page.
        runs: by name; the first run recommends items to the user examples.
        notes: lines of the footer.
        result_folders: by name, the folder with results.json; default: the folder of the run.
        candidates: see `write_run_report`.
        with_users: see `write_run_report`.
    """
    first = next(iter(runs.values()))
    data = first.data
    folders = result_folders or {name: run.folder for name, run in runs.items()}
    rule = data.exclude_seen(candidates or first.candidates)
    pictures_missing = with_users and data.image_root is not None and find_spec("PIL") is None
    write_page(
        path,
        title=f"{' and '.join(domain.name for domain in data.domains)}: {', '.join(runs)}",
        results={name: read_results(folder) for name, folder in folders.items()},
        subset_results={
            f"{name}, {subset}": results
            for name, folder in folders.items()
            for subset, results in {
                OTHER_CANDIDATES: read_other_results(folder),
                **read_results_by_novelty(folder),
            }.items()
            if results
        },
        list_results={name: read_list_results(folder) for name, folder in folders.items()},
        curves={name: read_curve(run.folder / "metrics.jsonl") for name, run in runs.items()},
        users=user_examples(first.models, data, rule) if with_users else [],
        notes=[*notes, *([NO_PILLOW] if pictures_missing else [])],
        rerank_curves=read_rerank_curves(first.folder),
    )


def read_rerank_curves(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Return the curves that `rerank_curve` wrote for a run by name; none where it has written none."""
    path = folder / RERANK_CURVES
    if not path.exists():
        return {}
    remedy = "remove it, or run hafvt rerank-curve again"
    with explained_read_errors(path, remedy):
        content = read_json(path, remedy)["curves"]
        return {
            str(name): [{key: float(value) for key, value in row.items()} for row in rows]
            for name, rows in content.items()
        }


def read_curve(path: Path) -> list[CurvePoint]:
    """Return the epochs in a metrics.jsonl; none where the file does not exist."""
    if not path.exists():
        return []
    with explained_read_errors(path, "remove it, and the report has no training curve"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            CurvePoint(
                int(row["epoch"]), float(row["loss"]), float(row["valid_mrr"]) if "valid_mrr" in row else None
            )
            for row in rows
        ]


def user_examples(
    models: Sequence[Model], data: Dataset, exclude_seen: tuple[bool, ...]
) -> list[UserExample]:
    """Return random test users with their histories and the recommendations of the model of each domain.

    The selection of users is the same for all models. `exclude_seen` says for each domain whether items of
    the history are left out.
    """
    random = np.random.default_rng(0)
    positions = random.choice(np.asarray(data.test), size=min(NUM_USERS, len(data.test)), replace=False)
    return [user_example(models, data, int(position), exclude_seen) for position in positions]


def user_example(
    models: Sequence[Model], data: Dataset, position: int, exclude_seen: tuple[bool, ...]
) -> UserExample:
    """Return the user of the test target at a position of `data.items`; the history ends right before it."""
    user = int(data.users_at(np.array([position]))[0])
    target = int(data.items[position])
    number = int(data.domains_of(target))
    domain, model = data.domains[number], models[number].eval()
    start = max(int(data.offsets[user]), position - model.max_length)
    with torch.inference_mode():
        batch = history_batch(data, np.array([position]), model.max_length)
        scores = model.scores(batch, number)  # (1, C)
        seen = seen_columns(data, np.array([position]), domain)[:, : None if exclude_seen[number] else 0]
        excluded = seen[seen >= 0].numpy()
        column = target - domain.start
        rank = float(ranking.ranks(scores, torch.tensor([column]), seen)[0])
        rank = math.inf if column in excluded else rank
        columns = top_k_columns(scores[0].numpy(), NUM_RECOMMENDATIONS, excluded)
        items = torch.from_numpy(columns)[None] + domain.start  # (1, k)
        shares: list[dict[tuple[str, str], float]] = [{} for _ in range(items.shape[1])]
        reasons: list[tuple[ItemCard, float] | None] = [None] * items.shape[1]
        if model.can_explain:
            (contributions,), (attention,) = model.explain(batch, number, items)  # (k, S, M), (S, M, T)
            keys = list(product(model.sequence_names, model.modalities))
            shares = [dict(zip(keys, row.flatten().tolist(), strict=True)) for row in contributions]
            weights, slots = torch.einsum("ksm,smt->kt", contributions, attention).max(1)
            reasons = [
                (item_card(data, int(data.items[start + slot])), weight)
                for slot, weight in zip(slots.tolist(), weights.tolist(), strict=True)
            ]
    ranked = zip(items[0].tolist(), scores[0, columns].tolist(), shares, reasons, strict=True)
    return UserExample(
        user_id=str(data.user_ids[user]),
        domain=domain.name,
        history=tuple(item_card(data, int(item)) for item in data.items[start:position]),
        target=item_card(data, target),
        target_rank=rank,
        recommendations=tuple(
            RankedItem(item_card(data, item), float(score), item_shares, item == target, reason)
            for item, score, item_shares, reason in ranked
        ),
    )


def item_card(data: Dataset, item: int) -> ItemCard:
    """Return an item of a dataset with a thumbnail of its picture, if it has one and Pillow is installed."""
    row = data.item_table.row(item, named=True)
    picture = None
    if row["image"] and data.image_root is not None and find_spec("PIL") is not None:
        picture = thumbnail_data_uri(data.image_root, row["image"], THUMBNAIL_PIXELS)
    return ItemCard(item_id=row["item_id"], domain=row["domain"], title=row["title"], picture=picture)
