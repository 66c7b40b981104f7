"""The command line: each command calls one function of the Python API. Only this module parses arguments."""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, make_dataclass, replace
from functools import partial, wraps
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, Token
from cyclopts.config import Dict

from hafvt.data.sources import SOURCES
from hafvt.errors import ArgumentError, HafvtError, HafvtWarning
from hafvt.models import MODELS, describe_parameters, import_models
from hafvt.processes import (
    is_launched,
    num_processes,
    process_index,
    record_error,
    reports_errors,
    sigterm_as_ctrl_c,
)
from hafvt.progress import console
from hafvt.settings import allowed_values, parameter_types, parse_yaml, read_options


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        target: "module:function" to call. Its signature defines the options, its docstring the help.
        summary: one sentence for the list of commands.
        format_result: returns the text to print for the function's result.
    """

    target: str
    summary: str
    format_result: Callable[[Any], str] = str


def _format_dataset(data: Any) -> str:
    """Return the text that `prepare` prints."""
    from hafvt.data.info import info  # a command's modules are imported only when it runs

    counts = replace(info(data), removed=(), leakage=None)  # `prepare` has reported both
    return f"{counts}\nwrote {data.folder}"


def _format_vectors(tables: dict[str, Any]) -> str:
    """Return the text that `encode` prints: a line for each modality."""
    return "\n".join(table.summary for table in tables.values())


def _format_run(run: Any) -> str:
    """Write the report of a run that has test results, and return the text that `train` prints."""
    from hafvt.reports.report import send_run_report, write_run_report

    if (run.folder / "results.json").exists():
        write_run_report(run)
        if run.loggers and not is_launched():
            send_run_report(run)
    return str(run)


COMMANDS = {
    "demo": Command("hafvt.experiments.demo:demo", "Generate two shops, train three models, write a report."),
    "fit": Command("hafvt.experiments.fit:fit", "Turn tables into a trained, evaluated model in one step."),
    "prepare": Command(
        "hafvt.data.prepare:prepare",
        "Turn tables of interactions and items into a dataset.",
        _format_dataset,
    ),
    "fetch": Command("hafvt.data.sources.fetch:fetch", "Download films, reviews or a dataset's pictures."),
    **{
        f"prepare-{name}": Command(target, f"Turn {name}'s published files into a dataset.")
        for name, target in SOURCES.items()
    },
    "encode": Command(
        "hafvt.features.encode:encode",
        "Encode pictures, titles and attributes of a dataset's items.",
        _format_vectors,
    ),
    "info": Command("hafvt.data.info:info", "Describe a dataset."),
    "train": Command("hafvt.training.train:train", "Train a model on a dataset.", _format_run),
    "evaluate": Command("hafvt.experiments.evaluate:evaluate", "Rank the test targets of a trained model."),
    "rerank-curve": Command(
        "hafvt.experiments.rerank_curve:rerank_curve", "Measure diversity and calibration against accuracy."
    ),
    "recommend": Command("hafvt.inference.batch:recommend", "Recommend items to one or many histories."),
    "explain": Command("hafvt.inference.explain:explain", "Explain the score of an item."),
    "similar-items": Command("hafvt.inference.similar:similar_items", "List items that resemble others."),
    "vectors": Command(
        "hafvt.inference.vectors:vectors", "Write vectors of items and histories for vector databases."
    ),
    "push": Command("hafvt.training.push:push", "Send a trained model to the Hugging Face Hub."),
    "catalog": Command("hafvt.inference.catalog_add:catalog", "Add new items to a trained model."),
    "index": Command("hafvt.inference.ann:index", "Build an index for large catalogs."),
    "serve": Command("hafvt.server.serve:serve", "Serve a trained model over HTTP, with a page."),
    "tune": Command("hafvt.experiments.tune:tune", "Search for the best hyperparameters of a model."),
    "export": Command("hafvt.inference.onnx_export:export", "Write a trained model as ONNX."),
    "compare": Command("hafvt.experiments.compare:compare", "Train and compare several models."),
    "backtest": Command("hafvt.experiments.backtest:backtest", "Compare models at several dates."),
    "ablate": Command("hafvt.experiments.compare:ablate", "Switch parts of HAF-VT on and off."),
    "paper": Command("hafvt.experiments.paper:paper", "Reproduce a table of the paper."),
    "doctor": Command("hafvt.experiments.doctor:doctor", "Describe this machine and what is installed."),
}

DISTRIBUTED_COMMANDS = ("train", "evaluate", "doctor")
"""Commands that several processes of torchrun may run together."""
MAPPING_OPTIONS = (
    *("--calibrate", "--columns", "--domains", "--encoders", "--max-per", "--params", "--pin"),
    *("--precomputed", "--space", "--tuned"),
)
"""Options that take names with values: `--columns user_id=customer`."""
PYTHON_PARAMETERS = ("callbacks",)
"""Parameters that take objects, so that the command line lacks them."""


def parse_number(number_type: type[int | float], _: type, tokens: Sequence[Token]) -> int | float:
    """Return an argument as a number.

    Raises:
        ValueError: the argument is no such number, such as 1.5 for a whole one.
    """
    pattern = r"[+-]?[0-9]{1,4000}" if number_type is int else r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?|nan|[+-]?inf"
    if not re.fullmatch(pattern, tokens[0].value):
        raise ValueError("give a whole number." if number_type is int else "give a number.")
    return number_type(tokens[0].value)


def argument_type(hint: Any) -> Any:
    """Return the type that the command line parses for the type of a function's parameter.

    A union that contains `str`, such as of a path and a data frame, becomes `str`. The function checks
    ranges.
    """
    if get_origin(hint) is Annotated:
        return argument_type(get_args(hint)[0])
    if hint in (int, float):
        return Annotated[hint, Parameter(converter=partial(parse_number, hint))]
    if get_origin(hint) not in (Union, UnionType):
        return hint
    members = get_args(hint)
    if members[0] == list[str]:
        return list[str] | None if NoneType in members else list[str]
    accepted = str if str in members else argument_type(members[0])
    return accepted | None if NoneType in members else accepted


def command_line_options(options_class: Any) -> type:
    """Return a dataclass of options with the types that the command line parses, without checks."""
    types, options = parameter_types(options_class), fields(options_class)
    parsed = [(option.name, _described_type(types[option.name]), option.default) for option in options]
    namespace = {"__doc__": options_class.__doc__, "__module__": options_class.__module__}
    return make_dataclass(options_class.__name__, parsed, frozen=True, namespace=namespace)


def _described_type(hint: Any) -> Any:
    """Return the type that the command line parses, with the text of the default in the help."""
    if is_dataclass(hint):
        return Annotated[command_line_options(hint), Parameter(name="*")]
    return Annotated[argument_type(hint), Parameter(show_default=partial(describe_default, hint))]


def parse_values(value: Any) -> Any:
    """Parse a text as YAML, such as 0.2 or true, and a list by element."""
    return parse_yaml(value) if isinstance(value, str) else [parse_values(part) for part in value]


def command_function(command: Command) -> Callable[..., str]:
    """Return a wrapper of a command's function that takes command-line types and returns printable text."""
    function = resolve_name(command.target)
    hints = parameter_types(function)
    types = {name: _described_type(hint) for name, hint in hints.items()}
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in PYTHON_PARAMETERS:
            continue
        is_group = is_dataclass(hints[name])  # of options
        default = get_args(types[name])[0]() if is_group else parameter.default
        parameters.append(parameter.replace(annotation=types[name], default=default))

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> str:
        for name in ("params", "space"):
            for key, value in (options.get(name) or {}).items():
                try:
                    options[name][key] = parse_values(value)
                except HafvtError as error:
                    raise ArgumentError(f"--{name}.{key} {value}: {error}") from None
        for name, value in options.items():
            if is_dataclass(hints[name]):
                options[name] = hints[name](**vars(value))
        result = function(*arguments, **options)
        return command.format_result(result) if process_index() == 0 else ""

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = types
    return run


def describe_default(hint: Any, default: Any) -> str:
    """Return the default of an option, and the range of a number, for the help."""
    allowed = allowed_values(hint).removesuffix(", or null")
    has_range = " from " in allowed or " above " in allowed
    return f"{'none' if default is None else default}{f'; {allowed}' * has_range}"


def make_app(command_name: str, model: str = "", options: Mapping[str, Any] | None = None) -> App:
    """Return the program with all its commands; only the named command is imported.

    Args:
        command_name: name of the command that will run, or "".
        model: name of the model whose hyperparameters the help of `train` and `tune` lists, or "".
        options: of a configuration file; those of the command line replace them.
    """
    app = App(
        "hafvt",
        help="Recommend across domains, with pictures and titles.",
        default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
        config=Dict(dict(options or {}), use_commands_as_keys=False, source="--config"),
        suppress_keyboard_interrupt=False,  # `main` reports it
    )
    for name, command in COMMANDS.items():
        if name != command_name:
            app.command(lambda: None, name=name, help=command.summary)
            continue
        epilogue = "Options may also come from a YAML file: --config FILE."
        if not command.target.startswith(("hafvt.data.", "hafvt.features.")):
            epilogue += " --model-module MODULE imports a module that adds models of your own."
        if model in MODELS:
            descriptions = [
                f"--params.{h.name} ({h.type}, {h.range}, default {h.default}): {h.description}"
                for h in describe_parameters(model)
            ]
            epilogue += f"\n\nHyperparameters of {model}:\n\n" + "\n\n".join(descriptions)
        elif name in ("train", "tune"):
            epilogue += f"\n\nHyperparameters: hafvt {name} MODEL --help, for {', '.join(MODELS)}."
        app.command(command_function(command), name=name, help_epilogue=epilogue)
    return app


def normalize_arguments(arguments: Sequence[str]) -> list[str]:
    """Rewrite arguments into the syntax that cyclopts parses.

    `--columns user_id=customer item_id=sku` becomes `--columns.user_id=customer --columns.item_id=sku`, and
    `--resume true` becomes `--resume=true`.
    """
    normalized: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument if "=" not in argument else ""
            normalized.append(argument)
        elif argument in ("true", "false") and normalized[-1:] == [option]:
            normalized[-1] += f"={argument}"
        elif option in MAPPING_OPTIONS and re.match(r"[\w.-]+=", argument):
            if normalized[-1] == option:
                normalized.pop()
            normalized.append(f"{option}.{argument}")
        else:
            normalized.append(argument)
    return normalized


def take_option(arguments: list[str], option: str, content: str) -> tuple[list[str], str]:
    """Remove `OPTION VALUE` or `OPTION=VALUE`; return the other arguments, and the value, "" without it.

    Raises:
        HafvtError: the option has no value; the message says that it takes `content`.
    """
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            stop = position + (1 if equals else 2)
            value = value or " ".join(arguments[position + 1 : stop])
            if not value:
                raise ArgumentError(f"{option}: name {content}")
            return arguments[:position] + arguments[stop:], value
    return arguments, ""


def _explain_error(error: CycloptsError) -> str:
    """Return the message of an error in the arguments; of one that is required and missing, name and help."""
    if not isinstance(error, MissingArgumentError) or not error.argument or not error.argument.required:
        return str(error)
    app = App(default_command=error.target)
    arguments = {a.name: a for a in app.assemble_argument_collection(parse_docstring=True)}
    name = error.argument.name
    return f"{name.removeprefix('--').upper()} is missing: {arguments[name].parameter.help}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and print its result.

    Args:
        arguments: the command and its arguments; default: those of the process.

    Returns:
        Exit status: 0 after success, 1 after an error that the user can fix, 2 for a wrong argument, 130
        after Ctrl-C or SIGTERM.
    """
    words = normalize_arguments(sys.argv[1:] if arguments is None else arguments)
    command_name = words[0] if words and words[0] in COMMANDS else ""
    program = f"hafvt {command_name}".strip()

    def print_error(error: object) -> None:
        if not reports_errors():  # another process does
            return
        text = " ".join(str(error).split())
        console.print(f"{program}: {text}", style="red", markup=False, highlight=False, soft_wrap=True)

    def show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, HafvtWarning):
            print_error(f"warning: {message}")
        else:
            show_other_warning(message, category, *place)

    try:
        with sigterm_as_ctrl_c(), warnings.catch_warnings():
            show_other_warning = warnings.showwarning
            warnings.showwarning = show_warning  # type: ignore[assignment]
            words, config_file = take_option(words, "--config", "a YAML file with options")
            options = read_options(Path(config_file)) if config_file else {}
            words, module = take_option(words, "--model-module", "a module that adds models")
            if module := module or options.pop("model_module", ""):
                import_models(module)
            if num_processes() > 1 and command_name and command_name not in DISTRIBUTED_COMMANDS:
                raise HafvtError("it runs in one process: start it without torchrun")
            has_params = command_name in ("train", "tune")
            model = next((word for word in words[1:] if word in MODELS), "") if has_params else ""
            app = make_app(command_name, model, options)
            text = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if text:
            print(text)
    except CycloptsError as error:
        print_error(f"{_explain_error(error)} See {program} --help")
        return 2
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print_error("this needs torch: pip install torch")
        return 1
    except HafvtError as error:
        if not (reports_errors() and record_error(error)):
            print_error(error)
        return 2 if isinstance(error, ArgumentError) else 1
    except MemoryError:
        print_error("the memory of this machine is not enough: choose smaller settings or a larger machine")
        return 1
    except KeyboardInterrupt:
        if reports_errors() and not is_launched():  # else the launching process knows why it was stopped
            console.print("stopped; start the command again to continue where it was (train: with --resume)")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print_error(f"{place}{error.strerror or error}: check the path, its permissions and the free space")
        return 1
    return 0
