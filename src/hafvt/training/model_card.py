"""Model cards: a README.md about a run, with the metadata of the Hugging Face Hub."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from hafvt.evaluation.results import read_description, read_results
from hafvt.evaluation.tables import results_markdown
from hafvt.tables import markdown_table
from hafvt.training.config import validation_key
from hafvt.training.run import Run

TAGS = ["hafvt", "recommender-system", "sequential-recommendation", "cross-domain", "multimodal"]
SHOWN_SETTINGS = (
    *("epochs", "batch_size", "learning_rate", "schedule", "warmup_steps", "weight_decay", "ema_decay"),
    *("protocol", "candidates", "metric", "patience", "seed", "precision"),
)


def model_card(run: Run, repository: str = "", license_name: str = "") -> str:
    """Return the model card of a run as Markdown.

    Args:
        run: the run.
        repository: of the Hugging Face Hub, such as "owner/name", for the lines that load the model.
        license_name: of the model; "" leaves the license out.
    """
    manifest, data = run.manifest, run.data
    dataset = Path(manifest["training"].get("data") or "dataset").name
    has_results = (run.folder / "results.json").exists()
    results = read_results(run.folder) if has_results else {}
    metadata: dict[str, Any] = {"library_name": "hafvt", "tags": TAGS}
    if license_name:
        metadata["license"] = license_name
    if values := _index_values(results):
        result = {
            "task": {"type": "recommendation", "name": "Next-item recommendation"},
            "dataset": {"type": "private", "name": dataset},
            "metrics": values,
        }
        metadata["model-index"] = [{"name": repository or run.folder.name, "results": [result]}]
    counts = data.train_counts()
    rows = [[d.name, f"{len(d):,}", f"{int(counts[d.start : d.stop].sum()):,}"] for d in data.domains]
    metric, best = manifest["training"].get("metric", "MRR"), manifest["best"]
    settings = {name: manifest["training"].get(name) for name in SHOWN_SETTINGS}
    settings |= {f"params.{name}": value for name, value in manifest["config"].items()}
    place = f"hf://{repository}" if repository else run.folder.name
    lines = [
        f"# {run.name} on {dataset}",
        "",
        "A model of [hafvt](https://hafvt.readthedocs.io), which recommends next items across domains.",
        f"It has {manifest['parameters']:,} parameters. hafvt {manifest['versions']['hafvt']} trained it.",
        "",
        "## Use",
        "",
        "```python",
        "import hafvt",
        "",
        f'recommender = hafvt.Recommender.open("{place}")',
        f'recommender.recommend([["ITEM_ID", "ITEM_ID"]], domain="{data.domains[0].name}", k=10)',
        "```",
        "",
        "## Data",
        "",
        markdown_table(["domain", "items", "training interactions"], rows),
        "The model holds the items of its catalog. It holds no histories of users.",
        "",
        "## Results",
        "",
        *_result_lines(run, results),
        f"Best epoch: {best['epoch']} of {best['epochs']}, "
        f"validation {metric} {best[validation_key(metric)]:.2%}.",
        "",
        "## Settings",
        "",
        markdown_table(["setting", "value"], [[name, str(value)] for name, value in settings.items()], 2),
        "## License",
        "",
        license_name or "The authors of this model have not stated a license.",
    ]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _index_values(results: Any) -> list[dict[str, Any]]:
    """Return the overall metrics in the form of the Hub's model index."""
    return [
        {"type": name.lower(), "name": f"{name} (overall, %)", "value": round(100 * metric.value, 2)}
        for name, metric in results.get("overall", {}).items()
        if math.isfinite(metric.value)
    ]


def _result_lines(run: Run, results: Any) -> list[str]:
    """Return the table of the test targets with a sentence on what was ranked; a sentence without any."""
    if not results:
        return ["The test targets were not ranked.", ""]
    return [results_markdown({run.name: results}), f"{read_description(run.folder)}.", ""]
