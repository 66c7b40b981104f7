"""The models by name. To add a model, write its file and its line in `MODELS`.

This module imports no torch: a model's class is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

from hafvt.errors import HafvtError
from hafvt.models.configs import (
    HAFVT_UNMIXED,
    SASREC_PAPER,
    C2dsrConfig,
    Gru4RecConfig,
    HafVtConfig,
    HafVtPaperConfig,
    MifnConfig,
    PiNetConfig,
    PopularityConfig,
    PsjNetConfig,
    SasRecConfig,
    SrGnnConfig,
    TriCdrConfig,
)
from hafvt.models.hyperparameters import Hyperparameter, ModelConfig, describe_config, validate_config

if TYPE_CHECKING:
    from hafvt.features.item_features import ItemFeatures
    from hafvt.models.base import Model


class ModelEntry(NamedTuple):
    """A model and its named presets.

    Attributes:
        path: where its class is, as "module:class". Without presets, the class of its hyperparameters has
            the same path with "Config" appended.
        presets: hyperparameters by the preset's name; without any, the only preset is "default".
        learning_rates: Adam's learning rate by preset, where it is not 0.001.
    """

    path: str
    presets: Mapping[str, ModelConfig] = {}
    learning_rates: dict[str, float] = {}  # noqa: RUF012  a NamedTuple's default, never changed

    @property
    def model_class(self) -> type[Model]:
        """Import and return the model's class."""
        model_class: type[Model] = resolve_name(self.path)
        return model_class

    @property
    def config_class(self) -> type[ModelConfig]:
        """Return the class of the model's hyperparameters."""
        if self.presets:
            return type(self.presets["default"])
        config_class: type[ModelConfig] = resolve_name(f"{self.path}Config")
        return config_class


HAFVT_PRESETS = {"default": HafVtConfig(), "unmixed": HAFVT_UNMIXED}
HAFVT_RATES = {"default": 3e-3, "unmixed": 3e-3}
SASREC_PRESETS = {"default": SasRecConfig(), "paper": SASREC_PAPER}

MODELS: dict[str, ModelEntry] = {
    "hafvt": ModelEntry("hafvt.models.hafvt:HafVt", HAFVT_PRESETS, HAFVT_RATES),
    "hafvt-paper": ModelEntry("hafvt.models.hafvt_paper:HafVtPaper", {"default": HafVtPaperConfig()}),
    "gru4rec": ModelEntry("hafvt.models.gru4rec:Gru4Rec", {"default": Gru4RecConfig()}),
    "sasrec": ModelEntry("hafvt.models.sasrec:SasRec", SASREC_PRESETS),
    "srgnn": ModelEntry("hafvt.models.srgnn:SrGnn", {"default": SrGnnConfig()}),
    "pinet": ModelEntry("hafvt.models.pinet:PiNet", {"default": PiNetConfig()}),
    "psjnet": ModelEntry("hafvt.models.psjnet:PsjNet", {"default": PsjNetConfig()}),
    "mifn": ModelEntry("hafvt.models.mifn:Mifn", {"default": MifnConfig()}),
    "tricdr": ModelEntry("hafvt.models.tricdr:TriCdr", {"default": TriCdrConfig()}),
    "c2dsr": ModelEntry("hafvt.models.c2dsr:C2dsr", {"default": C2dsrConfig()}),
    "popularity": ModelEntry("hafvt.models.popularity:Popularity", {"default": PopularityConfig()}),
}


def get_preset(name: str, preset: str = "default") -> ModelConfig:
    """Return the hyperparameters of a named preset.

    Raises:
        HafvtError: an unknown model or preset.
    """
    if name not in MODELS:
        raise HafvtError(f"no model {name!r}: choose one of {', '.join(MODELS)}")
    presets = MODELS[name].presets or {"default": MODELS[name].config_class()}
    if preset not in presets:
        raise HafvtError(f"{name} has no preset {preset!r}: choose one of {', '.join(presets)}")
    return presets[preset]


def default_learning_rate(name: str, preset: str) -> float:
    """Return the default of Adam's learning rate for a model and preset."""
    return MODELS[name].learning_rates.get(preset, 1e-3)


def configure(name: str, preset: str = "default", params: dict[str, Any] | None = None) -> Any:
    """Return a model's hyperparameters, validated.

    Args:
        name: of the model.
        preset: the named hyperparameters to start from.
        params: hyperparameters to change, by name.

    Raises:
        HafvtError: an unknown model, preset or parameter, or a value of a wrong type or range.
    """
    config = get_preset(name, preset)
    return validate_config(name, type(config), {**dict(config), **(params or {})})


def describe_parameters(name: str, preset: str = "default") -> list[Hyperparameter]:
    """Return name, type, range, default and description of each hyperparameter of a model.

    Raises:
        HafvtError: an unknown model or preset.
    """
    return describe_config(get_preset(name, preset))


def build_model(name: str, item_features: ItemFeatures, config: Any) -> Model:
    """Return a new model with random weights."""
    model_class: Any = MODELS[name].model_class
    model: Model = model_class(model_class.prepare_item_features(item_features, config), config)
    return model


def config_modalities(config: Any) -> tuple[str, ...] | None:
    """Return the names of the frozen features that a model uses; None means all encoded features."""
    if not hasattr(config, "modalities"):
        return ()
    modalities = config.modalities
    return None if modalities is None else tuple(name for name in modalities if name != "id")


def resolve_modalities(config: Any, item_features: ItemFeatures) -> Any:
    """Return hyperparameters whose `modalities`, if None, are replaced by the names of all encoded ones."""
    if getattr(config, "modalities", ()) is None:
        return config.replace(modalities=("id", *sorted(item_features.vectors)))
    return config
