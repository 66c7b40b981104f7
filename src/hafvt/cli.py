"""The command line: sub-commands onto plain functions. The only place that parses arguments."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from hafvt.data.sources import SOURCES
from hafvt.errors import HafvtError
from hafvt.progress import console


class Command(NamedTuple):
    """A sub-command.

    Attributes:
        target: "module:function" of what does the work. Its docstring is the help, its signature the options.
        positional: names of the parameters that are given without an option's name.
        show: turns what the function returns into what is printed.
    """

    target: str
    positional: tuple[str, ...] = ()
    show: Callable[[Any], str] = str

    @property
    def function(self) -> Callable[..., Any]:
        """What does the work; only now is it imported, and torch with it where it needs that."""
        module, _, name = self.target.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function

    @property
    def summary(self) -> str:
        """The first line of its docstring, read without importing it, so that --help is quick."""
        module, _, name = self.target.partition(":")
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return (ast.get_docstring(node) or "").partition("\n")[0]
        raise AssertionError(f"{module} has no function {name}")


def commands() -> dict[str, Command]:
    """Returns the sub-commands by name."""

    def encoded(tables: dict[str, Any]) -> str:
        return "\n".join(
            f"{name}: {int(t.present.sum()):,} of {len(t.rows):,} items, {t.rows.shape[1]} dimensions"
            for name, t in tables.items()
        )

    def prepared(data: Any) -> str:
        from hafvt.data.info import info

        return f"{info(data)}\nwrote {data.folder}"

    return {
        "demo": Command("hafvt.experiments.demo:demo"),
        "prepare": Command("hafvt.data.prepare:prepare", (), prepared),
        "fetch": Command("hafvt.data.sources.fetch:fetch", ("what",)),
        **{f"prepare-{name}": Command(target, ("folder",)) for name, target in SOURCES.items()},
        "encode": Command("hafvt.features.encode:encode", ("data",), encoded),
        "info": Command("hafvt.data.info:info", ("data",)),
        "train": Command("hafvt.training.trainer:train", ("model",)),
        "evaluate": Command("hafvt.experiments.evaluate:evaluate", ("run",)),
        "recommend": Command("hafvt.inference.batch:recommend", ("run",)),
        "explain": Command("hafvt.inference.explain:explain", ("run",)),
        "catalog": Command("hafvt.inference.catalog_add:catalog", ("action", "run", "items")),
        "index": Command("hafvt.inference.ann:index", ("run",)),
        "serve": Command("hafvt.server.serve:serve", ("run",)),
        "tune": Command("hafvt.experiments.tune:tune", ("model",)),
        "export": Command("hafvt.inference.onnx_export:export", ("run",)),
        "compare": Command("hafvt.experiments.compare:compare", ("data",)),
        "ablate": Command("hafvt.experiments.compare:ablate", ("data",)),
        "paper": Command("hafvt.experiments.paper:paper", ("table",)),
        "doctor": Command("hafvt.experiments.doctor:doctor"),
    }


class Parser(ArgumentParser):
    """Spells options with hyphens in its help, as they are typed."""

    def format_help(self, *arguments: Any, **named: Any) -> str:
        """Returns the help."""
        text = super().format_help(*arguments, **named)
        return re.sub(r"--[a-z_0-9.]+", lambda match: match[0].replace("_", "-"), text)


def parser(known: dict[str, Command], chosen: str) -> Parser:
    """Returns the parser of all sub-commands; of the chosen one with its options."""
    top = Parser(prog="hafvt", description="Recommend across domains, with pictures and titles.")
    subcommands = top.add_subcommands(dest="command", metavar="COMMAND")
    for name, command in known.items():
        if name != chosen:
            subcommands.add_subcommand(name, Parser(), help=command.summary)
            continue
        text = inspect.getdoc(command.function) or ""
        said, _, example = text.partition("\nExample: ")
        sub = Parser(description=said.strip(), epilog=f"Example: {example.splitlines()[0]}")
        sub.add_argument("--config", action="config", help="a YAML file with any of these options")
        help_of = dict(re.findall(r"^    (\w+): (.+?)$", text, flags=re.MULTILINE))
        for positional in command.positional:
            sub.add_argument(positional, type=str, help=help_of.get(positional, ""))
        sub.add_function_arguments(command.function, skip=set(command.positional))
        subcommands.add_subcommand(name, sub, help=text.splitlines()[0])
    return top


def spell_out(arguments: Sequence[str], known: dict[str, Command]) -> list[str]:
    """Turns what people type into what the parser reads.

    `--min-per-domain 3` becomes `--min_per_domain 3`, a bare `--resume` `--resume true`, `--precomputed
    image=FILE title=FILE` one option each, and `--models a b` one list, whose values are text as they stand.
    """
    if not arguments or arguments[0] not in known:
        return list(arguments)
    parameters = inspect.signature(known[arguments[0]].function, eval_str=True).parameters
    spelt, rest = [arguments[0]], list(arguments[1:])
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            spelt.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        root, dot, key = name.partition(".")
        root = root.replace("-", "_")
        kind = str(parameters[root].annotation) if root in parameters else ""
        follows = len(list(takewhile(lambda word: not word.startswith("--"), rest)))
        pairs = len(list(takewhile(lambda word: re.match(r"[\w.-]+=", word), rest)))
        if "dict[" in kind and not dot and not equals and pairs:
            for pair in rest[:pairs]:
                name, _, value = pair.partition("=")
                spelt.append(f"--{root}.{name}={value}")
            del rest[:pairs]
        elif "list[" in kind and not equals and not (follows == 1 and re.match(r'\[.*"\]$', rest[0])):
            quoted = json.dumps(rest[:follows], ensure_ascii=False)
            quoted = re.sub("[^ -~]", lambda match: f"\\U{ord(match[0]):08x}", quoted)  # as YAML writes it
            spelt.append(f"--{root}={quoted}")
            del rest[:follows]
        else:
            spelt.append(f"--{root}{dot}{key}{equals}{value}")
            if "bool" in kind and not equals and rest[:1] not in (["true"], ["false"]):
                spelt.append("true")
    return spelt


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Takes SIGTERM for Ctrl-C: what runs beside is stopped, too, and temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a sub-command.

    Returns:
        0 where it succeeded, 1 where the user can mend what went wrong, 130 after Ctrl-C or SIGTERM. (The
        parser itself exits with 2 on a wrong option.)
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of choices that are ours
    known = commands()
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = given[0] if given and given[0] in known else ""
    try:
        settings = parser(known, chosen).parse_args(spell_out(given, known))
        values = settings[chosen].as_dict()
        values.pop("config", None)
        with _terminated_as_interrupted():
            said = known[chosen].show(known[chosen].function(**values))
        if said:
            print(said)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        console.print(f"hafvt {chosen}: this needs torch: pip install torch", style="red", soft_wrap=True)
        return 1
    except HafvtError as error:
        console.print(f"hafvt {chosen}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print(
            "stopped; a run or an encoding goes on where it was when started again (train: --resume)"
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
