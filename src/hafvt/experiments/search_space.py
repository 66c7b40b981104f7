"""What a search may choose from: for each field of a model's configuration a range or a list of choices."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hafvt.errors import HafvtError
from hafvt.models import configure, default_learning_rate
from hafvt.training.trainer import train

TRAINING: dict[str, type[Any]] = {  # what of a training is searched beside the fields of the model
    "learning_rate": float,
    "batch_size": int,
    "weight_decay": float,
}

RANGES: dict[str, list[Any]] = {  # for fields of these names, in any model that has them
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
}

KINDS = ("range", "log", "choices")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: each factor is as likely as any other."""

    low: float
    high: float
    log: bool

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' * self.log}"

    def suggest(self, trial: Any, name: str) -> int | float:
        """Returns the value that an Optuna trial has, or draws it."""
        draw = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        value: int | float = draw(name, self.low, self.high, log=self.log)
        return value


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return plain(value) in map(plain, self.values)

    def __str__(self) -> str:
        return ", ".join(map(shown, self.values))

    def suggest(self, trial: Any, name: str) -> Any:
        """Returns the value that an Optuna trial has, or draws it."""
        known = {plain(value): value for value in self.values}
        return known[trial.suggest_categorical(name, list(known))]


def read_space(
    model: str, preset: str, params: Mapping[str, Any], space: Mapping[str, Any]
) -> dict[str, Range | Choices]:
    """Returns what is searched.

    Args:
        model: its name.
        preset: a named one, of which everything is taken that is not searched.
        params: fields that are fixed.
        space: ranges and choices in place of those of RANGES, or beside them.

    Raises:
        HafvtError: an unknown model, preset or field, a field both fixed and searched, a range that
            is none, a value that the field cannot take, or nothing that is left to search.
    """
    defaults = as_it_stands(model, preset, params)
    if model == "popularity":
        raise HafvtError("popularity counts and learns nothing: there is nothing to tune")
    for name in space:
        if name not in defaults:
            raise HafvtError(f"--space.{name}: {model} has no such field, it has {', '.join(defaults)}")
        if name in params:
            raise HafvtError(f"--space.{name} and --params.{name}: a field is searched or fixed, not both")
    wanted = {**RANGES, **space}
    found = {
        name: _read(name, wanted[name], default)
        for name, default in defaults.items()
        if name in wanted and name not in params
    }
    for name, one in found.items():
        for value in one.values if isinstance(one, Choices) else (one.low, one.high):
            if name in TRAINING:
                _check_training(name, value)
            else:
                configure(model, preset, {name: value})
    if all(isinstance(one, Choices) and len(one.values) == 1 for one in found.values()):
        raise HafvtError("every field has one value alone: there is nothing to search")
    return found


def as_it_stands(model: str, preset: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every field that may be searched, with its value before any search."""
    options = inspect.signature(train).parameters
    training = {name: options[name].default for name in TRAINING}
    training["learning_rate"] = default_learning_rate(model, preset)
    return {**training, **configure(model, preset, dict(params)).model_dump()}


def plain(value: Any) -> Any:
    """Returns a choice as a journal keeps it: lists as text."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def shown(value: Any) -> str:
    """Returns a value as a table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(plain(value))


def _read(name: str, given: Any, default: Any) -> Range | Choices:
    """Reads [low, high], [low, high, log] or choices; what two numbers mean is for the field to say."""
    if not isinstance(given, list | tuple) or not given:
        raise HafvtError(f"--space.{name} {given!r}: give [low, high], [low, high, log] or a list of choices")
    number = isinstance(default, int | float) and not isinstance(default, bool)
    kind, values = (given[-1], list(given[:-1])) if given[-1] in KINDS else ("", list(given))
    if isinstance(default, float):
        values = [float(v) if type(v) is int else v for v in values]
        if not kind and len(values) == 2:
            kind = "range"
    if kind in ("", "choices"):
        if not values or len(set(map(plain, values))) < len(values):
            raise HafvtError(f"--space.{name} {list(given)}: give each choice once")
        return Choices(tuple(values))
    if not number:
        raise HafvtError(f"--space.{name} {list(given)}: {name} is no number: list its choices")
    right = len(values) == 2 and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    if not right or not values[0] < values[1] or (kind == "log" and values[0] <= 0):
        above = " above 0" * (kind == "log")
        raise HafvtError(f"--space.{name} {list(given)}: a range has two numbers{above}, the lower one first")
    return Range(values[0], values[1], kind == "log")


def _check_training(name: str, value: Any) -> None:
    kind: Any = TRAINING[name]
    lowest = "0 or more" if name == "weight_decay" else "above 0"
    fine = type(value) is kind and math.isfinite(value) and (value > 0 or (value == 0 and "more" in lowest))
    if not fine:
        raise HafvtError(f"--space.{name}: {value!r} is no {kind.__name__} of {lowest}")
