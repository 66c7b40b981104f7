"""The models by name. To add a model, of this package or of your own, add its entry to `MODELS`.

This module imports no torch: a model's class is imported when it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from hafvt.errors import ArgumentError, HafvtError
from hafvt.models import configs
from hafvt.models.hyperparameters import Hyperparameter, ModelConfig, describe_config, validate_config
from hafvt.progress import available_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from hafvt.features.item_features import ItemFeatures
    from hafvt.models.base import Model

DEFAULT_ONLY: Mapping[str, dict[str, Any]] = MappingProxyType({"default": {}})


class ModelEntry(NamedTuple):
    """A model and its named presets.

    Example:
        MODELS["mine"] = ModelEntry("my_package.my_model:Mine", {"default": {}, "small": {"width": 16}})
    """

    path: str
    """The model's class, as "module:class"."""
    presets: Mapping[str, dict[str, Any]] = DEFAULT_ONLY
    """By name, the hyperparameters that differ from the defaults."""
    learning_rate: float = 1e-3
    """Default of Adam's learning rate."""
    has_weights: bool = True
    """Whether the model has weights to train; else it is ready after one pass without steps."""

    @property
    def module(self) -> str:
        """Return the name of the module of the model's class."""
        return self.path.partition(":")[0]

    @property
    def model_class(self) -> type[Model]:
        """Import and return the model's class."""
        model_class: type[Model] = resolve_name(self.path)
        return model_class

    @property
    def config_class(self) -> type[ModelConfig]:
        """Return the class of its hyperparameters, "Config" after the name of the model's class.

        It is in the module of the model's class or, of models of this package, in `configs.py`.
        """
        name = self.path.partition(":")[2] + "Config"
        config_class = getattr(configs, name, None) if self.module.startswith("hafvt.") else None
        return config_class or cast(type[ModelConfig], resolve_name(f"{self.path}Config"))


MIN_INTERACTIONS_FOR_GATES = 100_000

MODELS: dict[str, ModelEntry] = {
    "hafvt": ModelEntry(
        "hafvt.models.hafvt:HafVt", {"default": {}, "unmixed": {"modality_branches": False}}, 3e-3
    ),
    "hafvt-paper": ModelEntry("hafvt.models.hafvt_paper:HafVtPaper"),
    "gru4rec": ModelEntry("hafvt.models.gru4rec:Gru4Rec"),
    "sasrec": ModelEntry("hafvt.models.sasrec:SasRec", {"default": {}, "paper": configs.SASREC_PAPER}),
    "srgnn": ModelEntry("hafvt.models.srgnn:SrGnn"),
    "pinet": ModelEntry("hafvt.models.pinet:PiNet"),
    "psjnet": ModelEntry("hafvt.models.psjnet:PsjNet"),
    "mifn": ModelEntry("hafvt.models.mifn:Mifn"),
    "tricdr": ModelEntry("hafvt.models.tricdr:TriCdr"),
    "c2dsr": ModelEntry("hafvt.models.c2dsr:C2dsr"),
    "item-knn": ModelEntry("hafvt.models.item_knn:ItemKnn", has_weights=False),
    "popularity": ModelEntry("hafvt.models.popularity:Popularity", has_weights=False),
    "recent-popularity": ModelEntry("hafvt.models.recent_popularity:RecentPopularity", has_weights=False),
    "seasonal-popularity": ModelEntry(
        "hafvt.models.seasonal_popularity:SeasonalPopularity", has_weights=False
    ),
}


def import_models(module: str) -> None:
    """Import a module that adds its own models to `MODELS`; it may be in the current folder.

    Raises:
        HafvtError: it cannot be imported.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        import_module(module)
    except Exception as error:  # of code that is not ours
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArgumentError(
            f"--model-module {module} cannot be imported ({reason}): install it, or start the command in its "
            "folder"
        ) from error


def find_model(name: str) -> ModelEntry:
    """Return the entry of a model.

    Raises:
        HafvtError: there is no model of this name.
    """
    if name not in MODELS:
        raise ArgumentError(
            f"no model {name!r}: choose one of {', '.join(MODELS)}, or name the module that adds it with "
            "--model-module"
        )
    return MODELS[name]


def configure(name: str, preset: str = "default", params: Mapping[str, Any] | None = None) -> ModelConfig:
    """Return a model's hyperparameters, validated: those of a preset with the changes `params`.

    Raises:
        HafvtError: an unknown model, preset or parameter, or a value of a wrong type or range.
    """
    entry = find_model(name)
    if preset not in entry.presets:
        raise ArgumentError(f"{name} has no preset {preset!r}: choose one of {', '.join(entry.presets)}")
    return validate_config(name, entry.config_class, {**entry.presets[preset], **(params or {})})


def describe_parameters(name: str) -> list[Hyperparameter]:
    """Return name, type, range, default and description of each hyperparameter of a model."""
    return describe_config(configure(name))


def build_model(name: str, item_features: ItemFeatures, config: ModelConfig, *, copies: int = 1) -> Model:
    """Return a new model with random weights; `copies` of them, as a training makes, must fit in memory.

    Raises:
        HafvtError: the weights do not fit in memory; they are not allocated.
    """
    from torch.nn.modules import module  # not at the top: the help needs no torch

    needed, available = 0, available_bytes()
    error = HafvtError(
        f"{name} with these hyperparameters needs more memory than the {available / 2**30:,.1f} GiB that are "
        "available: choose a smaller width, fewer blocks or fewer layers"
    )

    def check_memory(_: Any, __: str, parameter: Tensor) -> None:
        nonlocal needed
        needed += copies * parameter.nbytes
        if needed > available:
            raise error

    model_class: Any = MODELS[name].model_class
    item_features = model_class.prepare_item_features(item_features, config)
    hook = module.register_module_parameter_registration_hook(check_memory)
    try:
        model: Model = model_class(item_features, config)
    except RuntimeError as torch_error:
        if "allocate memory" in str(torch_error):
            raise error from None
        raise
    finally:
        hook.remove()
    return model


def config_modalities(config: ModelConfig) -> tuple[str, ...] | None:
    """Return the names of the frozen features that a model uses; None means all encoded features."""
    if not hasattr(config, "modalities"):
        return ()
    modalities = config.modalities
    return None if modalities is None else tuple(name for name in modalities if name != "id")


def resolve_config(config: ModelConfig, item_features: ItemFeatures) -> ModelConfig:
    """Return hyperparameters without None, which stands for a choice that depends on the data."""
    if getattr(config, "modalities", ()) is None:
        config = config.replace(modalities=("id", *sorted(item_features.vectors)))
    if getattr(config, "gated", False) is None:
        config = config.replace(gated=int(item_features.train_counts.sum()) >= MIN_INTERACTIONS_FOR_GATES)
    if hasattr(config, "use_request_date"):
        config = config.replace(use_request_date=item_features.time_knots is not None)
    return config
