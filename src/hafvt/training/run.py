"""A run: the folder that training leaves behind, and how to read it back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.results import read_results
from hafvt.evaluation.tables import plain_table
from hafvt.features.item_features import ItemFeatures, SimilarItems, load_item_features
from hafvt.files import read_json, sha256
from hafvt.models import MODELS, build_model, config_modalities
from hafvt.models.base import Model
from hafvt.models.hyperparameters import validate_config
from hafvt.models.item_tables import saved_similarity
from hafvt.training.checkpoint import load, unpack


@dataclass(frozen=True)
class Run:
    """A trained model and what it was trained on.

    Attributes:
        folder: config.yaml, metrics.jsonl, model.json, model.safetensors, checkpoint/.
        name: of the model.
        config: its hyperparameters, the dataclass beside the model.
        models: one for each domain, with the weights of the best validation, in evaluation mode: the same for
            all, save under the protocol c2dsr, where each domain has its own best epoch.
        data: the dataset.
        about: everything that model.json says.
    """

    folder: Path
    name: str
    config: Any
    models: tuple[Model, ...]
    data: Dataset
    about: dict[str, Any]

    @property
    def model(self) -> Model:
        """The model of the first domain, which is that of all save under the protocol c2dsr."""
        return self.models[0]

    def __str__(self) -> str:
        """How long it trained, the table of the test targets in per cent, and where everything is."""
        best, lines = self.about["best"], []
        if self.about["parameters"]:
            lines.append(
                f"best epoch {best['epoch']} of {best['epochs']}, validation MRR {best['valid_mrr']:.2%}, "
                f"{self.about['parameters']:,} parameters, {best['seconds']:,.0f} s"
            )
        if (self.folder / "results.json").exists():
            lines.append(plain_table({self.name: read_results(self.folder)}))
        return "\n".join([*lines, f"wrote weights, ranks and report.html to {self.folder}"])


def fingerprint(data: Dataset) -> str:
    """Returns a hash that changes with the histories, the catalog or the split."""
    hashes = data.manifest["sha256"]
    return "-".join(hashes[name][:12] for name in ("items.npy", "items.parquet", "train_lengths.npy"))


def feature_hashes(data: Dataset, modalities: tuple[str, ...]) -> dict[str, str]:
    """Returns a hash of the frozen vectors of each modality."""
    return {name: sha256(data.folder / "features" / name / "rows.npy")[:12] for name in modalities}


def weight_files(count: int) -> list[str]:
    """Returns the names of the files of weights, one for all domains or one for each."""
    return [f"model{number or ''}.safetensors" for number in range(count)]


def model_item_features(data: Dataset, model: str, config: Any) -> ItemFeatures:
    """Reads what a model in a configuration wants to know of a dataset's items.

    Raises:
        HafvtError: a modality is not encoded.
    """
    return load_item_features(
        data, config_modalities(config), relations=MODELS[model].model_class.uses_relations
    )


def links_in(tensors: dict[str, Tensor]) -> dict[str, SimilarItems]:
    """Returns what a training found its items to be linked to, from the file of its weights."""
    of_items = "model.items."
    return saved_similarity(
        {n.removeprefix(of_items): t for n, t in tensors.items() if n.startswith(of_items)}
    )


def open_run(folder: str | Path, data: str | Path | Dataset | None = None) -> Run:
    """Opens a finished run.

    Args:
        folder: what `train` wrote.
        data: the dataset, where it is no longer in the place that the run remembers.

    Raises:
        HafvtError: the run is unfinished or damaged, or the dataset is not the one it was trained on.
    """
    folder = Path(folder)
    if not (folder / "model.json").exists():
        unfinished = (folder / "checkpoint").exists()
        remedy = (
            "finish it with hafvt train ... --resume true" if unfinished else "train a model into it first"
        )
        raise HafvtError(f"{folder} holds no finished run: {remedy}")
    about = read_json(folder / "model.json")
    if not isinstance(data, Dataset):
        data = Dataset.open(data or about["data"])
    if fingerprint(data) != about["dataset"]:
        raise HafvtError(
            f"{data.folder} is not the dataset that {folder} was trained on: name the right one with --data"
        )
    if feature_hashes(data, tuple(about["training"]["features"])) != about["training"]["features"]:
        raise HafvtError(
            f"{data.folder}: features were encoded anew since {folder} was trained: train it anew"
        )
    kind, values = MODELS[about["model"]].config_class, about["config"]
    if strange := set(values) - set(kind.model_fields):
        raise HafvtError(
            f"{folder} was trained with {min(strange)}, which this version does not know: train it anew"
        )
    config = validate_config(f"{folder}: {about['model']}", kind, values)
    catalog = model_item_features(data, about["model"], config)
    found = []
    for name in weight_files(len(data.domains) if (folder / weight_files(2)[1]).exists() else 1):
        tensors, _ = load(folder / name)
        try:
            model = build_model(about["model"], replace(catalog, similar_items=links_in(tensors)), config)
            unpack(tensors, model)
        except HafvtError as error:
            raise HafvtError(f"{folder / name}: {error}") from None
        found.append(model.eval())
    models = found if len(found) > 1 else found * len(data.domains)
    return Run(folder, about["model"], config, tuple(models), data, about)


def describe(
    name: str, model: Model, config: Any, training: dict[str, Any], best: dict[str, Any]
) -> dict[str, Any]:
    """Returns what model.json says of a finished run."""
    return {
        "model": name,
        "config": config.model_dump(mode="json"),
        "data": str(Path(training["data"]).resolve()),
        "dataset": training["dataset"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": training,
        "best": best,
        "versions": {"hafvt": version("hafvt"), "torch": torch.__version__},
    }
