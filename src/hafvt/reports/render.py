"""Render the Jinja2 templates of this package; all text is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hafvt.tables import percent


def render(template: str, **view: Any) -> str:
    """Return a file of `reports/templates/` filled in.

    Args:
        template: name of the file.
        view: the variables of the template.
    """
    return _environment().get_template(template).render(view)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hafvt.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment
