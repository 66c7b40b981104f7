"""Types of settings with their ranges, a decorator that checks arguments against them, and settings in YAML.

A function annotates its parameters, such as `seed: Seed = 0`. `check_arguments` refuses a wrong value in one
line before the function starts, whether it comes from Python, the command line or a YAML file.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import cache, wraps
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from hafvt.errors import ArgumentError, HafvtError

MAX_CONFIG_BYTES = 1_000_000  # of a file of --config
MAX_YAML_VALUES = 100_000  # in a YAML text, with the values of aliases counted each time
YAML_TYPES = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "seq", "map")

Function = TypeVar("Function", bound=Callable[..., Any])

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""Seed of random numbers; the largest is the largest that all libraries take."""

Count = Annotated[int, Field(ge=0, le=1_000_000)]
PositiveCount = Annotated[int, Field(ge=1, le=1_000_000)]
Jobs = Annotated[int, Field(ge=1, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Devices = Annotated[int, Field(ge=1, le=1024)]
Port = Annotated[int, Field(ge=0, le=65_535)]
PositiveNumber = Annotated[float, Field(gt=0, le=1_000_000)]
Folder = str | os.PathLike[str]
"""A path, or what knows its folder: a dataset, a run, a recommender."""


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise ValueError("choose auto, cpu, cuda, cuda:N or mps")
    return name


def _check_folder(folder: str | Path) -> str | Path:
    if not str(folder):
        raise ValueError("name a folder")
    try:
        existing = next(
            path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists()
        )
        if not existing.is_dir():
            raise ValueError(f"{existing} is a file: name a folder")
        if existing != Path(folder).absolute() and not os.access(existing, os.W_OK):
            raise ValueError(f"{existing} cannot be written: name another folder, or change its permissions")
    except OSError as error:
        raise ValueError(f"{error.strerror}: name another folder") from None
    return folder


def _check_ray_address(address: str) -> str:
    if not re.fullmatch(r"auto|local|(ray://)?[\w.\[\]:-]+:\d{1,5}", address):
        raise ValueError("choose local, auto, or the HOST:PORT of a Ray cluster")
    return address


RayAddress = Annotated[str, AfterValidator(_check_ray_address)]
"""Address of a Ray cluster, "auto" for the one of this machine, or "local" to start one."""

Device = Annotated[str, AfterValidator(_check_device)]
"""Name of a device that torch may have."""

OutFolder = Annotated[str | Path, AfterValidator(_check_folder)]
"""Folder that a command writes: it, or the closest folder above it that exists, is a folder."""


def check_arguments(function: Function) -> Function:
    """Check the arguments of each call of a function against the function's annotations.

    Numbers, texts and choices are checked with their ranges; of lists and dictionaries only the type is
    checked; parameters of other types are not checked. NumPy numbers become Python's.

    Raises:
        HafvtError: an argument has a wrong type or is out of its range; the line names it as an option. Or
            a function with `params` or `table_options` gets an argument that belongs into these.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def check_and_call(*args: Any, **kwargs: Any) -> Any:
        if other := next((name for name in kwargs if name not in signature.parameters), None):
            _refuse_option_elsewhere(function, other, signature.parameters)
        arguments = signature.bind(*args, **kwargs)
        for name, value in arguments.arguments.items():
            arguments.arguments[name] = _checked_value(function, name, value)
        return function(*arguments.args, **arguments.kwargs)

    return cast(Function, check_and_call)


def _refuse_option_elsewhere(function: Callable[..., Any], name: str, parameters: Collection[str]) -> None:
    """Raise ArgumentError for an argument that belongs into `params` or `table_options`."""
    similar = get_close_matches(name, parameters, 1, cutoff=0.8)
    hint = f" (is it {similar[0]}?)" if similar else ""
    if (
        "table_options" in parameters
        and name in (options := parameter_types(function)["table_options"]).__annotations__
    ):
        place = f"give table_options={options.__name__}({name}=...)"
    elif "params" in parameters:
        place = f"hyperparameters go in params={{{name!r}: ...}}"
    else:
        return
    raise ArgumentError(f"{function.__name__} takes no {name!r}{hint}: {place}")


def check_fields(options: object) -> None:
    """Check the fields of a frozen dataclass as `check_arguments` checks arguments."""
    for name, value in vars(options).items():
        object.__setattr__(options, name, _checked_value(type(options), name, value))


@cache
def _types_and_adapters(owner: Callable[..., Any]) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    """Return the type of each parameter of a function or field of a class, and pydantic's adapter for it."""
    config = ConfigDict(strict=True, allow_inf_nan=False)
    types = parameter_types(owner)
    return {name: (hint, TypeAdapter(_checked_type(hint), config=config)) for name, hint in types.items()}


def _checked_value(owner: Callable[..., Any], name: str, value: Any) -> Any:
    """Return the value of a parameter or field after its check, see `check_arguments`."""
    hint, adapter = _types_and_adapters(owner)[name]
    option = option_name(name)
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, os.PathLike) and os.PathLike[str] in get_args(hint):
        value = Path(value)
    if isinstance(value, str | Path) and re.search("[\0\ud800-\udfff]", str(value)):
        raise ArgumentError(f"{option} is not text in UTF-8: remove what is not")
    if isinstance(value, str | Path) and {Path, os.PathLike[str]} & {*get_args(hint)}:
        try:
            Path(value).exists()
        except OSError as error:  # the name is too long, or a folder above may not be read
            raise ArgumentError(f"{option}: {error.strerror}: name another path") from None
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ArgumentError(_explain(option, value, hint, error)) from None


def option_name(name: str) -> str:
    """Return the option of a parameter: "from_", as "from" is a word of Python, is --from."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the type of each parameter or, of a class, field, with its range.

    The return type is left out, as it may need torch.
    """
    if isinstance(function, type):
        return get_type_hints(function, include_extras=True)
    function = inspect.unwrap(function)
    annotations = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    namespace = SimpleNamespace(__annotations__=annotations)
    return get_type_hints(namespace, function.__globals__, include_extras=True)


def _checked_type(hint: Any) -> Any:
    """Return the type that pydantic checks in place of a type hint: Any where nothing is to be checked."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return Union[tuple(map(_checked_type, get_args(hint)))]  # noqa: UP007
    if origin is list:
        return Annotated[
            list, BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value)
        ]
    if origin is dict:
        return Annotated[
            dict, BeforeValidator(lambda value: dict(value) if isinstance(value, Mapping) else value)
        ]
    if origin is os.PathLike:
        return Path
    is_simple = origin in (Annotated, Literal) or hint in (int, float, bool, str, Path, NoneType)
    return hint if is_simple else Any


def _explain(option: str, value: Any, hint: Any, errors: ValidationError) -> str:
    """Return the line for a wrong value of an option."""
    reason = next(
        (error["ctx"]["error"] for error in errors.errors() if error["type"] == "value_error"), None
    )
    if reason:
        return f"{option} {str(value)[:80]}: {reason}"
    if get_origin(hint) in (Union, UnionType):
        hint = Union[tuple(part for part in get_args(hint) if part is not NoneType)]  # noqa: UP007
    return f"{option} is {' '.join(repr(value).split())[:80]}: choose {allowed_values(hint)}"


def type_name(annotation: Any) -> str:
    """Return the name of a type in the help: "int", "choice" for a Literal, "list" for a tuple."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
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
    if origin in (Union, UnionType):
        return ", or ".join(allowed_values(argument) for argument in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each entry {allowed_values(arguments[0])}"
        return f"a list of {len(arguments)} entries, each {allowed_values(arguments[0])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    words |= {list: "a list", dict: "names with values", os.PathLike: "a path"}
    limits = {
        name: getattr(c, name) for c in metadata for name in ("ge", "gt", "le", "lt") if hasattr(c, name)
    }
    text = words.get(origin or annotation, "null")
    if "gt" in limits:
        text += f" above {limits['gt']}"
    if "ge" in limits:
        text += f" from {limits['ge']}"
    if "lt" in limits:
        text += f" and below {limits['lt']}"
    up_to = "up to" if "gt" in limits else "to"
    return text + (f" {up_to} {limits['le']}" if "le" in limits else "")


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        HafvtError: see `compose_yaml`.
    """
    node = compose_yaml(text)
    try:
        return None if node is None else yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise HafvtError(f"it is not YAML ({_yaml_problem(error)}): correct it") from None


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the root node of a YAML text; None for an empty text.

    Raises:
        HafvtError: the text is not YAML, has a tag, or has more than `MAX_YAML_VALUES` values.
    """
    sizes: dict[int, float] = {}

    def count(node: yaml.Node) -> float:
        if id(node) not in sizes:
            if node.tag.removeprefix("tag:yaml.org,2002:") not in YAML_TYPES:
                raise HafvtError(f"line {node.start_mark.line + 1} has the tag {node.tag}: remove it")
            sizes[id(node)] = math.inf  # until the end of the next lines: the size of a node within itself
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            nodes = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(count, nodes))
        return sizes[id(node)]

    try:
        root = yaml.compose(text, yaml.SafeLoader)
        num_values = 0 if root is None else count(root)
    except (yaml.YAMLError, RecursionError) as error:
        raise HafvtError(f"it is not YAML ({_yaml_problem(error)}): correct it") from None
    if num_values > MAX_YAML_VALUES:
        raise HafvtError(
            f"its lists and aliases have more than {MAX_YAML_VALUES:,} values: write a shorter one"
        )
    return root


def _yaml_problem(error: Exception) -> str:
    """Return line, column and problem of a YAML error."""
    if isinstance(error, RecursionError):
        return "too many nested brackets"
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + str(getattr(error, "problem", None) or error).splitlines()[0]


def read_options(file: Path) -> dict[str, Any]:
    """Return the options in a YAML file, as texts, lists and dictionaries, without those that are null.

    The texts are those of the file, as on the command line: `history: [007]` is the id "007".

    Raises:
        HafvtError: the file cannot be read, or does not hold options in YAML, each once.
    """

    def as_text(node: yaml.Node, depth: int = 0) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return node.value
        if depth == 2:  # in `params` and `space`, a list stays YAML, such as "[id]"
            return yaml.serialize(node)
        if isinstance(node, yaml.SequenceNode):
            return [as_text(part, 2) for part in node.value]
        if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            raise HafvtError("an option's name is not a text: write lines such as seed: 1")
        values = {key.value: value for key, value in node.value}
        if len(values) < len(node.value):
            raise HafvtError("an option is there twice: keep one")
        is_null = {name for name, value in values.items() if depth == 0 and value.tag.endswith(":null")}
        return {name: as_text(values[name], depth + 1) for name in values if name not in is_null}

    try:
        if not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES:
            raise HafvtError(f"no file of at most {MAX_CONFIG_BYTES:,} bytes is there: check the path")
        root = compose_yaml(file.read_text(encoding="utf-8"))
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise HafvtError("it holds no options: write lines such as seed: 1")
        return {} if root is None else as_text(root)
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--config {file}: it cannot be read ({error}): save it as UTF-8") from None
    except HafvtError as error:
        raise ArgumentError(f"--config {file}: {error}") from None
