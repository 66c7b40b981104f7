"""Render the Jinja2 templates of this package; all text is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hafvt.tables import percent
from hafvt.words import PHRASES, modality_name


def render(template: str, **view: Any) -> str:
    """Return a file of `reports/templates/` with the variables `view` filled in."""
    return _environment().get_template(template).render(view)


@cache
def _environment() -> Environment:
    loader = PackageLoader("hafvt.reports")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "modality_name": modality_name}
    environment.globals["phrases"] = PHRASES
    return environment
