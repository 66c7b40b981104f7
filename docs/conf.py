"""Settings of Sphinx for the site: `make docs`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

from generate import write_pages  # noqa: E402

project = "hafvt"
author = "the hafvt authors"
project_copyright = "2026, the hafvt authors"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_generated"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]  # types of other packages; links of pages stay checked

myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "literal"
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"hafvt {release}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": "https://github.com/hafvt/hafvt/",
    "source_branch": "main",
    "source_directory": "docs/",
}
linkcheck_ignore = [r"https://github\.com/hafvt/.*", r"http://127\.0\.0\.1.*"]

REPOSITORY = "https://github.com/hafvt/hafvt/blob/main"


def link_repository_files(app: Any, page: str, source: list[str]) -> None:
    """Point links to files outside of docs/, such as results of benchmarks, to the repository.

    A link to a file that does not exist stays, so that the build fails.
    """
    folder = (HERE / page).parent

    def replace(match: re.Match[str]) -> str:
        path, _, anchor = match[2].partition("#")
        target = (folder / path).resolve()
        if match[1].startswith("!") or target.is_relative_to(HERE) or not target.exists():
            return match[0]
        return f"{match[1]}({REPOSITORY}/{target.relative_to(ROOT).as_posix()}{'#' * bool(anchor)}{anchor})"

    source[0] = re.sub(r"(!?\[[^\]]*\])\((\.\./[^)\s]+)\)", replace, source[0])


def format_examples(app: Any, kind: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Show the examples of docstrings as code."""
    result = []
    for line in lines:
        if example := re.fullmatch(r"Example: (.+)", line):
            result += ["Example::", "", f"    {example[1]}", ""]
        else:
            result.append("Example::" if line == "Example:" else line)
            result += [""] * (line == "Example:")
    lines[:] = result


def setup(app: Any) -> None:
    """Register the steps above."""
    write_pages(HERE / "_generated")
    app.connect("source-read", link_repository_files)
    app.connect("autodoc-process-docstring", format_examples, priority=400)  # before napoleon
