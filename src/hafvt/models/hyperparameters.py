"""The base class of hyperparameters: types, ranges, one-line errors and the list that the help prints.

This module imports no torch, so that `hafvt train MODEL --help` starts at once.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hafvt.errors import HafvtError

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
        """Returns a list from JSON, YAML or the command line as a tuple; other values unchanged."""
        return tuple(value) if isinstance(value, list) else value

    def replace(self, **changes: Any) -> Self:
        """Return a copy with changed hyperparameters, validated.

        Raises:
            pydantic.ValidationError: a name, type or value is not allowed.
        """
        return type(self).model_validate({**dict(self), **changes})


Config = TypeVar("Config", bound=ModelConfig)


class Hyperparameter(NamedTuple):
    """One line of a model's help.

    Attributes:
        name: of the field.
        type: int, float, bool, str, choice or list, or several of them.
        range: the allowed values, in words.
        default: of the preset.
        description: the field's docstring on one line.
    """

    name: str
    type: str
    range: str
    default: Any
    description: str


def validate_config(model: str, config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Return hyperparameters of a model from plain values.

    Args:
        model: its name, for the message.
        config_class: the class of its hyperparameters.
        values: by name; the others have their defaults.

    Raises:
        HafvtError: one line that names model, parameter, value and allowed range.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as errors:
        error = errors.errors()[0]
    if not error["loc"]:  # raised by a validator of several fields
        raise HafvtError(f"{model}: {error['msg'].removeprefix('Value error, ')}")
    name = str(error["loc"][0])
    if name not in config_class.model_fields:
        names = ", ".join(config_class.model_fields) or "none"
        raise HafvtError(f"{model} has no parameter {name!r}: it has {names}")
    field = config_class.model_fields[name]
    allowed = allowed_values(field.annotation, field.metadata)
    raise HafvtError(f"{model}: parameter {name} is {values[name]!r}: choose {allowed}")


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


def type_name(annotation: Any) -> str:
    """Return the name of a type in the help: "int", "choice" for a Literal, "list" for a tuple."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(map(type_name, get_args(annotation)))
    names = {Literal: "choice", tuple: "list", type(None): "null"}
    return names.get(origin or annotation) or str(annotation.__name__)


def allowed_values(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """Return the values that a type and its constraints allow, in words: "a whole number from 1 to 64"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        fields = [item.metadata if isinstance(item, type(Field())) else [item] for item in arguments[1:]]
        return allowed_values(arguments[0], [constraint for field in fields for constraint in field])
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return ", or ".join(allowed_values(argument) for argument in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each entry {allowed_values(arguments[0])}"
        return f"a list of {len(arguments)} entries, each {allowed_values(arguments[0])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    limits = {
        name: getattr(c, name) for c in metadata for name in ("ge", "gt", "le", "lt") if hasattr(c, name)
    }
    text = words.get(annotation, "null")
    if "gt" in limits:
        text += f" above {limits['gt']}"
    if "ge" in limits:
        text += f" from {limits['ge']}"
    if "lt" in limits:
        text += f" and below {limits['lt']}"
    return text + (f" to {limits['le']}" if "le" in limits else "")
