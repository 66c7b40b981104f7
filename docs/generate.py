"""Writes the generated parts of the reference into docs/_generated, from the program itself."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from hafvt.cli import COMMANDS, make_app
from hafvt.models import MODELS, describe_parameters


def command_line() -> str:
    """Return the help of all commands as Markdown."""
    parts = []
    for name in COMMANDS:
        text = make_app(name)[name].generate_docs(output_format="markdown")
        text = re.sub(r"^# .*\n+```console\n.*?```\n", "", text, flags=re.DOTALL)
        text = re.sub(r"^Example: (.+)$", r"```\n\1\n```", text, flags=re.MULTILINE)
        parts.append(f"## {name}\n\n{text.strip()}\n")
    return "\n".join(parts)


def hyperparameters() -> str:
    """Return the tables of all models' hyperparameters and their presets as Markdown."""
    parts = []
    for name, entry in MODELS.items():
        lines = [f"## {name}", ""]
        if len(entry.presets) > 1:
            lines += [f"Presets: {', '.join(f'`{preset}`' for preset in entry.presets)}.", ""]
        lines += ["| name | type | range | default | meaning |", "| --- | --- | --- | --- | --- |"]
        for field in describe_parameters(name):
            lines.append(
                f"| `{field.name}` | {_cell(field.type)} | {_cell(field.range)} | `{field.default}` | "
                f"{_cell(field.description)} |"
            )
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def http() -> str:
    """Return routes with their parameters and the fields of all bodies as Markdown, from the OpenAPI."""
    from fastapi import FastAPI

    from hafvt.server.app import ROUTERS

    app = FastAPI(title="hafvt")
    for router in ROUTERS:
        app.include_router(router)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        description = app.openapi()
    schemas = description["components"]["schemas"]
    lines = ["| request | parameters | body | answer |", "| --- | --- | --- | --- |"]
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            parameters = ", ".join(
                f"`{p['name']}`{'' if p['required'] else ' (optional)'}" for p in route.get("parameters", [])
            )
            body = _schema_name(route.get("requestBody", {}))
            answer = _schema_name(route["responses"]["200"])
            cells = [f"`{method.upper()} {path}`", parameters, _link(body), _link(answer)]
            lines.append(f"| {' | '.join(cells)} |")
    for name in sorted(schemas):
        if "properties" not in schemas[name] or name.startswith(("HTTPValidation", "Validation")):
            continue
        lines += ["", f"### {name}", "", "| field | type | required | meaning |", "| --- | --- | --- | --- |"]
        required = schemas[name].get("required", ())
        for field, schema in schemas[name]["properties"].items():
            meaning = _cell(schema.get("description", ""))
            if "default" in schema:
                meaning = f"{meaning} Default: `{schema['default']}`.".strip()
            is_required = "yes" if field in required else "no"
            lines.append(f"| `{field}` | {_cell(_type(schema))} | {is_required} | {meaning} |")
    return "\n".join(lines) + "\n"


def _schema_name(content: dict[str, Any]) -> str:
    """Return the name of the schema of a JSON body, or ""."""
    schema = content.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _link(schema: str) -> str:
    """Return a link to the section of a schema."""
    return f"[{schema}](#{schema.lower()})" if schema else ""


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    if "$ref" in schema:
        return _link(str(schema["$ref"]).rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of names to {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "any"))


def _cell(text: str) -> str:
    """Return a text that fits in the cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def write_pages(folder: Path) -> None:
    """Write all generated parts; files that did not change keep their times."""
    folder.mkdir(exist_ok=True)
    for function in (command_line, hyperparameters, http):
        path, text = folder / f"{function.__name__}.md", function()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
