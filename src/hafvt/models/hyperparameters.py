"""The base class of hyperparameters: types, ranges, one-line errors and the list that the help prints.

This module imports no torch, so that `hafvt train MODEL --help` starts at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hafvt.errors import ArgumentError
from hafvt.settings import allowed_values, type_name

Width = Annotated[int, Field(ge=1, le=8192)]
Length = Annotated[int, Field(ge=1, le=10_000)]
Depth = Annotated[int, Field(ge=1, le=64)]
DropoutRate = Annotated[float, Field(ge=0, le=0.95)]
Temperature = Annotated[float, Field(ge=0.001, le=100)]
Weight = Annotated[float, Field(ge=0, le=1000)]


class ModelConfig(BaseModel):
    """Hyperparameters of a model: frozen, typed and within their ranges.

    A subclass declares each hyperparameter as a field with a default, a range and a docstring.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _lists_as_tuples(cls, value: Any) -> Any:
        """Return a list from JSON, YAML or the command line as a tuple; other values unchanged."""
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _require_used_parameters(self) -> Self:
        """Refuse a changed parameter that has no effect."""
        for name, remedy in self.unused_parameters().items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"parameter {name} has no effect {remedy}")
        return self

    def unused_parameters(self) -> dict[str, str]:
        """Return the hyperparameters that have no effect beside the others, with reason and remedy."""
        return {}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with changed values; raise pydantic.ValidationError if one is not allowed."""
        return type(self).model_validate({**dict(self), **changes})


Config = TypeVar("Config", bound=ModelConfig)


class Hyperparameter(NamedTuple):
    """One line of a model's help."""

    name: str
    type: str
    """int, float, bool, str, choice or list, or several of them."""
    range: str
    """The allowed values, in words."""
    default: Any
    description: str
    """The field's docstring on one line."""


def validate_config(model: str, config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Return hyperparameters of a model from plain values by name; the others have their defaults.

    Raises:
        HafvtError: one line that names model, parameter, value and allowed range.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as errors:
        error = errors.errors()[0]
    if not error["loc"]:  # raised by a validator of several fields
        raise ArgumentError(f"{model}: {error['msg'].removeprefix('Value error, ')}")
    name = str(error["loc"][0])
    if name not in config_class.model_fields:
        names = ", ".join(config_class.model_fields) or "none"
        raise ArgumentError(f"{model} has no parameter {name!r}: it has {names}")
    field = config_class.model_fields[name]
    allowed = allowed_values(field.annotation, field.metadata)
    raise ArgumentError(f"{model}: parameter {name} is {repr(values[name])[:80]}: choose {allowed}")


def describe_config(config: ModelConfig) -> list[Hyperparameter]:
    """Return all hyperparameters of a model, with the values of `config` as defaults."""
    return [
        Hyperparameter(
            name,
            type_name(field.annotation),
            allowed_values(field.annotation, field.metadata),
            getattr(config, name),
            " ".join((field.description or "").split()),
        )
        for name, field in type(config).model_fields.items()
    ]
