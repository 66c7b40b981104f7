"""The search space of `hafvt tune`: a range or a list of choices for each setting."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hafvt.errors import ArgumentError
from hafvt.models import MODELS, configure
from hafvt.models.hyperparameters import validate_config
from hafvt.training.config import TrainingConfig
from hafvt.training.train import train

TRAINING_OPTIONS = ("learning_rate", "batch_size", "weight_decay")
"""Options of `train` that are searched beside the hyperparameters of a model with weights.

The number of epochs is not: every trial trains until its validation MRR no longer rises."""

TUNING_FORMAT = 3
"""Number of the format of a search's folder."""

DEFAULT_SPACE: dict[str, list[Any]] = {
    "learning_rate": [1e-4, 1e-2, "log"],
    "batch_size": [32, 64, 128, 256],
    "weight_decay": [0.0, 1e-6, 1e-5, 1e-4],
    "width": [64, 128, 256],
    "id_width": [64, 128, 256],
    "blocks": [1, 2, 3],
    "layers": [1, 2],
    "graph_layers": [1, 2],
    "heads": [1, 2, 4],
    "steps": [1, 2, 3],
    "hops": [1, 2],
    "latent_users": [2, 4, 8],
    "dropout": [0.0, 0.6],
    "dropout_embed": [0.0, 0.6],
    "dropout_hidden": [0.0, 0.6],
    "temperature": [0.03, 0.5, "log"],
    "lambda1": [0.0, 1.0],
    "lambda2": [0.3, 10.0, "log"],
    "prediction_weight": [0.3, 0.9],
    "contrast_weight": [0.01, 1.0, "log"],
    "triplet_weight": [0.1, 3.0, "log"],
    "days": [7, 30, 60, 90],
    "num_neighbors": [20, 50, 100, 200],
    "shrinkage": [1.0, 100.0, "log"],
    "decay": [0.2, 1.0],
}
"""What is searched by default, in any model that has a hyperparameter of this name."""

KINDS = ("range", "log", "choices")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: lower bound; an int makes all values integers.
        high: upper bound.
        log: whether values are drawn on a logarithmic scale.
    """

    low: float
    high: float
    log: bool

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' * self.log}"

    def suggest(self, trial: Any, name: str) -> int | float:
        """Return the value of an Optuna trial, drawn on the first call."""
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        value: int | float = suggest(name, self.low, self.high, log=self.log)
        return value


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return storable(value) in map(storable, self.values)

    def __str__(self) -> str:
        return ", ".join(map(format_value, self.values))

    def suggest(self, trial: Any, name: str) -> Any:
        """Return the value of an Optuna trial, drawn on the first call."""
        values = {storable(value): value for value in self.values}
        return values[trial.suggest_categorical(name, list(values))]


SearchSpace = dict[str, Range | Choices]


def build_search_space(
    model: str, preset: str, params: Mapping[str, Any], space: Mapping[str, Any]
) -> SearchSpace:
    """Return the range or the choices of every setting that is searched.

    Args:
        model: name of the model.
        preset: the preset whose values the first trial takes.
        params: hyperparameters with a fixed value.
        space: ranges and choices that replace those of `DEFAULT_SPACE` or add to them.

    Raises:
        HafvtError: an unknown model, preset or hyperparameter, a hyperparameter that is both fixed and
            searched, a wrong range, a value that the hyperparameter cannot take, or an empty search.
    """
    defaults = default_settings(model, preset, params)
    if model == "popularity":
        raise ArgumentError("popularity has no hyperparameters, so there is nothing to tune")
    for name in space:
        if name not in defaults:
            raise ArgumentError(
                f"--space.{name}: {model} has no such hyperparameter, it has {', '.join(defaults)}"
            )
        if name in params:
            raise ArgumentError(
                f"--space.{name} and --params.{name}: search or fix a hyperparameter, not both"
            )
    entries = {**DEFAULT_SPACE, **space}
    result = {
        name: parse_entry(name, entries[name], default)
        for name, default in defaults.items()
        if name in entries and name not in params
    }
    for name, values in result.items():
        for value in values.values if isinstance(values, Choices) else (values.low, values.high):
            if name in TRAINING_OPTIONS:
                validate_config("train", TrainingConfig, {name: value})
            else:
                configure(model, preset, {**params, name: value})
    if all(isinstance(values, Choices) and len(values.values) == 1 for values in result.values()):
        raise ArgumentError("every setting has a single value, so there is nothing to search")
    return result


def default_settings(model: str, preset: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default value of every setting that can be searched."""
    model_params: dict[str, Any] = configure(model, preset, params).model_dump()
    if not MODELS[model].has_weights:
        return model_params
    options = inspect.signature(train).parameters
    training = {name: options[name].default for name in TRAINING_OPTIONS}
    return {**training, "learning_rate": MODELS[model].learning_rate, **model_params}


def first_settings(space: SearchSpace, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a search's first trial: the defaults, also where the search leaves them out.

    A setting with a single choice is fixed by the user and has that value.
    """
    fixed = {n: v.values[0] for n, v in space.items() if isinstance(v, Choices) and len(v.values) == 1}
    return {name: fixed.get(name, defaults[name]) for name in space}


def storable(value: Any) -> Any:
    """Return a value as Optuna and CSV files store it: lists and dictionaries as JSON."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def format_value(value: Any) -> str:
    """Return a value as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(storable(value))


def parse_entry(name: str, entry: Any, default: Any) -> Range | Choices:
    """Return the range or the choices of a setting: [low, high], [low, high, kind] or a list of choices.

    Two numbers without a kind are a range for a float and two choices for anything else.

    Args:
        name: of the setting.
        entry: as the user wrote it.
        default: default value of the setting, which tells its type.
    """
    option = f"--space.{name} {entry!r:.200}"
    if not isinstance(entry, list | tuple) or not entry:
        raise ArgumentError(f"{option}: give [low, high], [low, high, log] or a list of choices")
    has_kind = isinstance(entry[-1], str) and entry[-1] in KINDS
    kind, values = (entry[-1], list(entry[:-1])) if has_kind else ("", list(entry))
    if isinstance(default, float):
        values = [float(value) if type(value) is int else value for value in values]
        kind = "range" if not kind and len(values) == 2 else kind
    if kind in ("", "choices"):
        if not values or len(set(map(storable, values))) < len(values):
            raise ArgumentError(f"{option}: give each choice once")
        return Choices(tuple(values))
    if not isinstance(default, int | float) or isinstance(default, bool):
        raise ArgumentError(f"{option}: {name} is not a number, so list its choices")
    is_pair = len(values) == 2 and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    if not is_pair or not values[0] < values[1] or (kind == "log" and values[0] <= 0):
        positive = " above 0" * (kind == "log")
        raise ArgumentError(f"{option}: a range needs two numbers{positive}, the lower one first")
    return Range(values[0], values[1], kind == "log")
