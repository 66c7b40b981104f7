"""The models by name; to add one, write its file and its line here."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.c2dsr import C2dsr, C2dsrConfig
from hafvt.models.gru4rec import Gru4Rec, Gru4RecConfig
from hafvt.models.hafvt import PAPER as HAFVT_PAPER
from hafvt.models.hafvt import UNMIXED, HafVt, HafVtConfig
from hafvt.models.mifn import Mifn, MifnConfig
from hafvt.models.pinet import PiNet, PiNetConfig
from hafvt.models.popularity import Popularity, PopularityConfig
from hafvt.models.psjnet import PsjNet, PsjNetConfig
from hafvt.models.sasrec import PAPER as SASREC_PAPER
from hafvt.models.sasrec import SasRec, SasRecConfig
from hafvt.models.srgnn import SrGnn, SrGnnConfig
from hafvt.models.tricdr import TriCdr, TriCdrConfig


class ModelEntry(NamedTuple):
    """A model and its named presets."""

    model: type[Any]
    presets: dict[str, Any]


MODELS: dict[str, ModelEntry] = {
    "hafvt": ModelEntry(HafVt, {"default": HafVtConfig(), "unmixed": UNMIXED, "paper": HAFVT_PAPER}),
    "gru4rec": ModelEntry(Gru4Rec, {"default": Gru4RecConfig()}),
    "sasrec": ModelEntry(SasRec, {"default": SasRecConfig(), "paper": SASREC_PAPER}),
    "srgnn": ModelEntry(SrGnn, {"default": SrGnnConfig()}),
    "pinet": ModelEntry(PiNet, {"default": PiNetConfig()}),
    "psjnet": ModelEntry(PsjNet, {"default": PsjNetConfig()}),
    "mifn": ModelEntry(Mifn, {"default": MifnConfig()}),
    "tricdr": ModelEntry(TriCdr, {"default": TriCdrConfig()}),
    "c2dsr": ModelEntry(C2dsr, {"default": C2dsrConfig()}),
    "popularity": ModelEntry(Popularity, {"default": PopularityConfig()}),
}

LEARNING_RATES = {("hafvt", "default"): 3e-3, ("hafvt", "unmixed"): 3e-3}
"""Adam's learning rates by model and configuration, where they are not 0.001: benchmarks/reports/2026-11-29-hafvt-study.md says why."""


def default_learning_rate(name: str, preset: str) -> float:
    """Returns the learning rate that a model is trained with unless told otherwise."""
    return LEARNING_RATES.get((name, preset), 1e-3)


def configure(name: str, preset: str = "default", params: dict[str, Any] | None = None) -> Any:
    """Returns a model's configuration, a frozen dataclass.

    Args:
        name: of the model.
        preset: a named one to start from.
        params: fields to change.

    Raises:
        HafvtError: an unknown model, preset or field, with those that exist.
    """
    if name not in MODELS:
        raise HafvtError(f"no model {name!r}: choose one of {', '.join(MODELS)}")
    known = MODELS[name].presets
    if preset not in known:
        raise HafvtError(f"{name} has no preset {preset!r}: choose one of {', '.join(known)}")
    config = known[preset]
    names = [field.name for field in fields(config)]
    for key in params or {}:
        if key not in names:
            raise HafvtError(f"{name} has no parameter {key!r}: it has {', '.join(names) or 'none'}")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in (params or {}).items()}
    for key, value in values.items():
        kind = type(getattr(config, key))
        if kind in (int, float, bool) and not (type(value) is kind or (kind is float and type(value) is int)):
            raise HafvtError(f"{name}: parameter {key} must be {kind.__name__}, not {value!r}")
    return replace(config, **values)


def build_model(name: str, catalog: ItemFeatures, config: Any) -> Model:
    """Returns a new model with random weights."""
    model: Model = MODELS[name].model(catalog, config)
    return model


def config_modalities(config: Any) -> tuple[str, ...] | None:
    """Returns the names of the frozen features that a configuration reads; None for all there are."""
    if not hasattr(config, "modalities"):
        return ()
    chosen = config.modalities
    return None if chosen is None else tuple(name for name in chosen if name != "id")


def resolve_modalities(config: Any, catalog: ItemFeatures) -> Any:
    """Returns the configuration with "all modalities there are" spelt out, so that it keeps its meaning."""
    if getattr(config, "modalities", ()) is None:
        return replace(config, modalities=("id", *sorted(catalog.vectors)))
    return config
