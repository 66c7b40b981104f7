"""Runs: the folders that `train` writes, and how to open them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hafvt.data.dataset import RUN_CATALOG, Dataset
from hafvt.data.dates import date_gain
from hafvt.data.repeats import CandidateRule
from hafvt.errors import ArgumentError, HafvtError
from hafvt.evaluation.protocols import Protocol, get_protocol
from hafvt.evaluation.results import (
    OTHER_CANDIDATES,
    read_notes,
    read_other_results,
    read_results,
    read_results_by_novelty,
)
from hafvt.evaluation.tables import plain_table
from hafvt.features.item_features import ItemFeatures, load_item_features
from hafvt.features.table import FeatureTable
from hafvt.files import explained_read_errors, read_json, verify_files, verify_json
from hafvt.folders import FolderKind, recover_folder
from hafvt.models import MODELS, build_model, config_modalities
from hafvt.models.base import Model
from hafvt.models.hyperparameters import ModelConfig, validate_config
from hafvt.ops.shards import Shard
from hafvt.settings import Folder
from hafvt.training.checkpoint import load_checkpoint, unpack
from hafvt.training.config import RUN_FILES, validation_key
from hafvt.training.hub_download import local_folder

FORMAT = 3
"""Number of the run format, in model.json and config.yaml."""
RENAMED_PARAMETERS = {"request_time": "use_request_date"}
"""Hyperparameters of runs of format 2 with their new names."""
REMEDY = "continue the training with hafvt train ... --resume, or train the model again in another folder"

# An interrupted training has no model.json.
RUN_FOLDER = FolderKind("a run", "", ("model.json", "model*.safetensors", *RUN_FILES))
"""What commands write into the folder of a run."""


@dataclass(frozen=True)
class Run:
    """A trained model and the dataset that it was trained on.

    Attributes:
        folder: holds config.yaml, metrics.jsonl, model.json, model.safetensors and checkpoint/.
        name: of the model.
        config: hyperparameters of the model.
        models: the model of each domain with its best weights, in evaluation mode. All domains share one
            model, except under a protocol where each domain keeps its own best checkpoint. Empty in
            processes other than 0 after a training with a sharded catalog.
        data: the dataset; where it was removed or prepared again, the run's catalog, see
            `Dataset.is_catalog`.
        manifest: content of model.json.
        loggers: names of the loggers of the training that returned this run.
    """

    folder: Path
    name: str
    config: ModelConfig
    models: tuple[Model, ...]
    data: Dataset
    manifest: dict[str, Any]
    loggers: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Folder, data: str | Path | Dataset | None = None) -> Run:
        """Open a finished run; arguments and errors are those of `open_run`."""
        return open_run(folder, data)

    def __fspath__(self) -> str:
        """Return the folder: functions that take the folder of a run take the run, too."""
        return str(self.folder)

    @property
    def model(self) -> Model:
        """The model of the first domain; in most runs that of all domains.

        Raises:
            HafvtError: the run was returned by a training with a sharded catalog.
        """
        if not self.models:
            raise HafvtError(
                f"{self.folder}: its models are not in memory: open them with hafvt.Recommender.open"
            )
        return self.models[0]

    @property
    def candidates(self) -> CandidateRule:
        """Which items the training ranked; the default where a run does not record it."""
        candidates: CandidateRule = self.manifest["training"].get("candidates", "auto")
        return candidates

    @property
    def protocol(self) -> Protocol:
        """The protocol of the training's validation and test."""
        return get_protocol(self.manifest["training"]["protocol"], self.candidates)

    def __str__(self) -> str:
        """Return the length of the training, the metrics of the test targets in percent, and the folder."""
        best, lines = self.manifest["best"], []
        metric = self.manifest["training"].get("metric", "MRR")
        if self.manifest["parameters"]:
            lines.append(
                f"best epoch {best['epoch']} of {best['epochs']}, validation {metric} "
                f"{best[validation_key(metric)]:.2%}, "
                f"{self.manifest['parameters']:,} parameters, {best['seconds']:,.0f} s"
            )
            settings = self.manifest["training"]
            if best["epochs"] < settings["epochs"]:
                lines.append(
                    f"stopped early, after {best['epochs']} of at most {settings['epochs']} epochs: "
                    f"{settings['patience']} validations in a row brought no improvement"
                )
        if (self.folder / "results.json").exists():
            rows = {self.name: read_results(self.folder)}
            if other_results := read_other_results(self.folder):
                rows[f"{self.name}, {OTHER_CANDIDATES}"] = other_results
            rows |= read_results_by_novelty(self.folder)
            lines += [plain_table(rows, mark_best=False), *read_notes(self.folder)]
        return "\n".join([*lines, f"wrote the run to {self.folder}"])


def fingerprint(data: Dataset) -> str:
    """Return a hash that changes with the histories, the catalog or the split of a dataset."""
    if data.is_catalog:
        return str(data.manifest["catalog_of"])
    hashes = data.manifest["sha256"]
    names = ["items.npy", "items.parquet", "train_lengths.npy"] + ["weights.npy"] * ("weights.npy" in hashes)
    return "-".join(hashes[name][:12] for name in names)


def feature_hashes(data: Dataset, modalities: Sequence[str]) -> dict[str, str]:
    """Return a hash of the frozen feature vectors of each modality, after a check of their files."""
    tables = {name: FeatureTable.open(data.folder / "features" / name) for name in modalities}
    return {name: table.metadata["sha256"]["rows.npy"][:12] for name, table in tables.items()}


def weight_files(count: int) -> list[str]:
    """Return the names of a run's weight files: one for all domains, or one per domain."""
    return [f"model{number or ''}.safetensors" for number in range(count)]


def model_item_features(
    data: Dataset, model: str, config: ModelConfig, *, for_training: bool = True, shard: Shard | None = None
) -> ItemFeatures:
    """Load the features of a dataset's items that a model, by name, uses with its hyperparameters.

    Without `for_training`, what a run's weights replace is left out, see `Model.restore_features`. With
    a `shard`, this process holds slices of the tables.

    Raises:
        HafvtError: a modality is not encoded.
    """
    model_class = MODELS[model].model_class
    item_features = load_item_features(
        data,
        config_modalities(config),
        relations=model_class.uses_relations,
        interactions=for_training and model_class.uses_interactions,
        times=_uses_dates(data, config) and for_training,
        # Sampled softmaxes and slices read few rows.
        memory_map=shard is not None or getattr(config, "num_negatives", 0) > 0,
    )
    return replace(item_features, shard=shard)


def _uses_dates(data: Dataset, config: ModelConfig) -> bool:
    """Return whether states depend on the date of the request, see `HafVtConfig.use_request_date`."""
    decided: bool | None = getattr(config, "use_request_date", False)
    if decided and data.seconds is None and not data.is_catalog:
        raise HafvtError(
            f"{data.folder} has no dates (all times must lie after March 1973): leave out use_request_date"
        )
    return (date_gain(data) or 0.0) > 0 if decided is None else decided


def current_format(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a run's model.json or config.yaml in the current format.

    Raises:
        HafvtError: it has neither this format nor the one before.
    """
    if content.get("format") not in (FORMAT, FORMAT - 1):
        raise HafvtError(
            f"{folder} is a run of format {content.get('format', 1)}, this version reads format {FORMAT}: "
            "train the model again, or use the hafvt version that trained it"
        )
    config = {RENAMED_PARAMETERS.get(name, name): value for name, value in content["config"].items()}
    return content | {"format": FORMAT, "config": config}


def read_model_file(folder: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """Return the content of a run's model.json.

    Raises:
        HafvtError: it is missing, damaged or of another format.
    """
    path = folder / "model.json"
    manifest: dict[str, Any] = read_json(path, remedy)
    with explained_read_errors(path, remedy):
        verify_json(path, manifest, remedy)
        return current_format(folder, manifest)


def open_run(
    folder: Folder, data: str | Path | Dataset | None = None, models: Sequence[Model] | None = None
) -> Run:
    """Open a finished run.

    Args:
        folder: that `train` wrote, or an address on the Hugging Face Hub, such as "hf://owner/name".
        data: the dataset, if it is no longer where it was during the training.
        models: those of the domains with the run's weights, where they are in memory; () to open none.

    Returns:
        The run. Its `data` is the dataset or, where that was removed or prepared again, the run's catalog.

    Raises:
        HafvtError: the run is unfinished, damaged or of another format; or it has no catalog, and the dataset
            is not the one that it was trained on.
    """
    folder = local_folder(folder)
    path = folder / "model.json"
    if not path.exists():
        raise HafvtError(f"{folder} {_reason_without_model(folder)}")
    manifest = read_model_file(folder)
    with explained_read_errors(path, REMEDY):
        name, values = manifest["model"], manifest["config"]
        features, dataset = manifest["training"]["features"], manifest["dataset"]
        hashes = manifest.get("sha256", {})
        data = data or manifest["data"] or Dataset.open(folder / RUN_CATALOG, catalog=True)
    if name not in MODELS:
        raise HafvtError(
            f"{folder} is a run of the model {name!r}, which is not in hafvt.models.MODELS: import the "
            "module that adds it, or name this module with --model-module"
        )
    config_class = MODELS[name].config_class
    data = _training_data(folder, data, dataset, features)
    if unknown := set(values) - set(config_class.model_fields):
        raise HafvtError(
            f"{folder} was trained with {min(unknown)}, which this version does not know: train it again"
        )
    try:
        config = validate_config(f"{folder}: {name}", config_class, values)
    except ArgumentError as error:  # of the folder, not of a command
        raise HafvtError(str(error)) from None
    verify_files(folder, hashes, REMEDY)
    if models is not None:
        return Run(folder, name, config, tuple(models), data, manifest)
    item_features, models = model_item_features(data, name, config, for_training=False), []
    for file in weight_files(len(data.domains) if (folder / weight_files(2)[1]).exists() else 1):
        tensors, _ = load_checkpoint(folder / file, REMEDY)
        weights = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
        try:
            restored = MODELS[name].model_class.restore_features(item_features, weights)
            model = build_model(name, restored, config)
            unpack(tensors, model)
        except HafvtError as error:
            raise HafvtError(f"{folder / file}: {error}") from None
        models.append(model.eval())
    models = models if len(models) > 1 else models * len(data.domains)
    return Run(folder, name, config, tuple(models), data, manifest)


def _training_data(
    folder: Path, data: str | Path | Dataset, trained_on: str, features: dict[str, str]
) -> Dataset:
    """Return the dataset of a run if it is unchanged, or else the run's catalog.

    Args:
        folder: of the run.
        data: the dataset.
        trained_on: its fingerprint in the training.
        features: its `feature_hashes` in the training.
    """
    has_catalog = (folder / RUN_CATALOG).exists()
    if not isinstance(data, Dataset):
        recover_folder(data)
        if has_catalog and not Path(data).exists():
            return Dataset.open(folder / RUN_CATALOG, catalog=True)
        data = Dataset.open(data)
    is_same = fingerprint(data) == trained_on
    if is_same and feature_hashes(data, list(features)) == features:
        return data
    if has_catalog:
        return Dataset.open(folder / RUN_CATALOG, catalog=True)
    if is_same:
        raise HafvtError(f"{data.folder}: its features changed since {folder} was trained: train it again")
    raise HafvtError(
        f"{data.folder} is not the dataset that {folder} was trained on: name the right one with --data"
    )


def histories_of(run: Run, data: str | Path | Dataset | None = None) -> Dataset:
    """Return the dataset of a run with its histories: a newer one where it was prepared again.

    Args:
        run: the opened run.
        data: the dataset, if it is no longer where it was during the training.

    Raises:
        HafvtError: there is no dataset.
    """
    if not run.data.is_catalog:
        return run.data
    data = data or run.manifest["data"]
    if data is None:
        raise HafvtError(f"{run.folder} is a run without dataset: name one with --data")
    return data if isinstance(data, Dataset) else Dataset.open(data)


def _reason_without_model(folder: Path) -> str:
    """Return in words what a folder without model.json is, and what to do."""
    if (folder / "export.json").exists():
        return "is an export, for recommend, explain and serve: name the run that it was made from"
    remedy = "train a model into it first"
    if (folder / "config.yaml").exists():
        remedy = "finish it with hafvt train ... --resume"
    return f"holds no finished run: {remedy}"
