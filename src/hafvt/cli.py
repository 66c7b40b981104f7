"""The command line: each command calls one function of the Python API. Only this module parses arguments."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import yaml
from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.config import Yaml

from hafvt.data.sources import SOURCES
from hafvt.errors import HafvtError, HafvtWarning
from hafvt.models import MODELS, describe_parameters
from hafvt.progress import console
from hafvt.settings import parameter_types


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

    return f"{info(data)}\nwrote {data.folder}"


def _format_vectors(tables: dict[str, Any]) -> str:
    """Return the text that `encode` prints: the number of vectors of each feature, and their dimension."""
    return "\n".join(
        f"{name}: {int(table.present.sum()):,} of {len(table.rows):,} items, {table.rows.shape[1]} dimensions"
        for name, table in tables.items()
    )


def _format_run(run: Any) -> str:
    """Write the report of a run that has test results, and return the text that `train` prints."""
    from hafvt.reports.report import write_run_report

    if (run.folder / "results.json").exists():
        write_run_report(run)
    return str(run)


COMMANDS = {
    "demo": Command("hafvt.experiments.demo:demo", "Generate two shops, train three models, write a report."),
    "prepare": Command(
        "hafvt.data.prepare:prepare",
        "Turn tables of interactions and items into a dataset.",
        _format_dataset,
    ),
    "fetch": Command("hafvt.data.sources.fetch:fetch", "Download public reviews or a dataset's pictures."),
    **{
        f"prepare-{name}": Command(target, f"Turn {name}'s published files into a dataset.")
        for name, target in SOURCES.items()
    },
    "encode": Command(
        "hafvt.features.encode:encode", "Encode pictures and titles of a dataset's items.", _format_vectors
    ),
    "info": Command("hafvt.data.info:info", "Describe a dataset."),
    "train": Command("hafvt.training.train:train", "Train a model on a dataset.", _format_run),
    "evaluate": Command("hafvt.experiments.evaluate:evaluate", "Rank the test targets of a trained model."),
    "recommend": Command("hafvt.inference.batch:recommend", "Recommend items to one or many histories."),
    "explain": Command("hafvt.inference.explain:explain", "Explain the score of an item."),
    "catalog": Command("hafvt.inference.catalog_add:catalog", "Add new items to a trained model."),
    "index": Command("hafvt.inference.ann:index", "Build an index for large catalogs."),
    "serve": Command("hafvt.server.serve:serve", "Serve a trained model over HTTP, with a page."),
    "tune": Command("hafvt.experiments.tune:tune", "Search for the best hyperparameters of a model."),
    "export": Command("hafvt.inference.onnx_export:export", "Write a trained model as ONNX."),
    "compare": Command("hafvt.experiments.compare:compare", "Train and compare several models."),
    "ablate": Command("hafvt.experiments.compare:ablate", "Switch parts of HAF-VT on and off."),
    "paper": Command("hafvt.experiments.paper:paper", "Reproduce a table of the paper."),
    "doctor": Command("hafvt.experiments.doctor:doctor", "Describe this machine and what is installed."),
}


def whole_number(_: type, tokens: Sequence[Token]) -> int:
    """Return an argument as an integer.

    Raises:
        ValueError: the argument is not an integer, such as 1.5.
    """
    if not re.fullmatch(r"[+-]?\d+", tokens[0].value):
        raise ValueError("give a whole number.")
    return int(tokens[0].value)


def argument_type(hint: Any) -> Any:
    """Return the type that the command line accepts for the type hint of a function's parameter.

    A union that contains `str`, such as of a path and a data frame, becomes `str`.
    """
    if get_origin(hint) is Annotated:
        return argument_type(get_args(hint)[0])
    if hint is int:
        return Annotated[int, Parameter(converter=whole_number)]
    if get_origin(hint) not in (Union, UnionType):
        return hint
    members = get_args(hint)
    accepted = str if str in members else argument_type(members[0])
    return accepted | None if NoneType in members else accepted


def hyperparameter(value: Any) -> Any:
    """Parse the value of a hyperparameter as YAML, such as 0.2 or true; parse a list by element."""
    return yaml.safe_load(value) if isinstance(value, str) else [hyperparameter(part) for part in value]


def command_function(command: Command) -> Callable[..., str]:
    """Return a wrapper of a command's function that takes command-line types and returns printable text."""
    function = resolve_name(command.target)
    hints = parameter_types(function)

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> str:
        for name in ("params", "space"):
            if options.get(name):
                options[name] = {key: hyperparameter(value) for key, value in options[name].items()}
        return command.format_result(function(*arguments, **options))

    parameters = inspect.signature(function).parameters
    types = {name: Annotated[argument_type(hints[name]), Parameter()] for name in parameters}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(annotation=types[name]) for name, parameter in parameters.items()]
    )
    run.__annotations__ = types
    return run


def make_app(chosen: str, model: str = "", config: Path | None = None) -> App:
    """Return the program with all its commands; only the chosen command is imported.

    Args:
        chosen: name of the command that will run, or "".
        model: name of the model whose hyperparameters the help of `train` and `tune` lists, or "".
        config: a YAML file with options.
    """
    parameter_defaults = Parameter(consume_multiple=True, negative_iterable=())
    app = App(
        "hafvt",
        help="Recommend across domains, with pictures and titles.",
        default_parameter=parameter_defaults,
    )
    if config is not None:
        app.config = (Yaml(config, must_exist=True, use_commands_as_keys=False),)
    for name, command in COMMANDS.items():
        if name != chosen:
            app.command(lambda: None, name=name, help=command.summary)
            continue
        epilogue = "Options may also come from a YAML file: --config FILE."
        if model in MODELS:
            descriptions = [
                f"--params.{h.name} ({h.type}, {h.range}, default {h.default}): {h.description}"
                for h in describe_parameters(model)
            ]
            epilogue += f"\n\nHyperparameters of {model}:\n\n" + "\n\n".join(descriptions)
        elif chosen in ("train", "tune"):
            epilogue += f"\n\nHyperparameters: hafvt {chosen} MODEL --help, for {', '.join(MODELS)}."
        app.command(command_function(command), name=name, help_epilogue=epilogue)
    return app


def normalize(arguments: Sequence[str]) -> list[str]:
    """Rewrite arguments into the syntax that cyclopts parses.

    `--columns user_id=customer item_id=sku` becomes `--columns.user_id=customer --columns.item_id=sku`, and
    `--resume true` becomes `--resume=true`.
    """
    normalized: list[str] = []
    option = ""
    for argument in arguments:
        key_value = re.match(r"([\w.-]+)=(.*)", argument, flags=re.DOTALL)
        if argument.startswith("--"):
            option = argument if "=" not in argument else ""
            normalized.append(argument)
        elif argument in ("true", "false") and normalized[-1:] == [option]:
            normalized[-1] += f"={argument}"
        elif key_value and option in (
            "--columns",
            "--domains",
            "--encoders",
            "--params",
            "--precomputed",
            "--space",
            "--tuned",
        ):
            if normalized[-1] == option:
                normalized.pop()
            normalized.append(f"{option}.{argument}")
        else:
            normalized.append(argument)
    return normalized


def take_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Remove `--config FILE` or `--config=FILE`; return the other arguments, and the file or None.

    Raises:
        HafvtError: there is no such file.
    """
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--config":
            stop = position + (1 if equals else 2)
            file = value or " ".join(arguments[position + 1 : stop])
            if not Path(file).is_file():
                raise HafvtError(f"--config {file}: no such file: check the path")
            return arguments[:position] + arguments[stop:], Path(file)
    return arguments, None


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that child processes stop and temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and print its result.

    Args:
        arguments: the command and its arguments; default: those of the process.

    Returns:
        Exit status: 0 after success, 1 after an error that the user can fix, 2 for a wrong argument, 130
        after Ctrl-C or SIGTERM.
    """
    words = normalize(sys.argv[1:] if arguments is None else arguments)
    chosen = words[0] if words and words[0] in COMMANDS else ""
    model = next((word for word in words[1:] if word in MODELS), "") if chosen in ("train", "tune") else ""

    program = f"hafvt {chosen}".strip()

    def print_error(error: object) -> None:
        console.print(f"{program}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)

    def show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, HafvtWarning):
            print_error(f"warning: {message}")
        else:
            show_other_warning(message, category, *place)

    try:
        with _sigterm_as_ctrl_c(), warnings.catch_warnings():
            show_other_warning = warnings.showwarning
            warnings.showwarning = show_warning  # type: ignore[assignment]
            words, config = take_config(words)
            app = make_app(chosen, model, config)
            text = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if text:
            print(text)
    except CycloptsError as error:
        print_error(f"{' '.join(str(error).split())} See {program} --help")
        return 2
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print_error("this needs torch: pip install torch")
        return 1
    except (HafvtError, yaml.YAMLError) as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; start the command again to continue where it was (train: with --resume)")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
