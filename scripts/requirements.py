"""Print the requirements of hafvt with some extras, without torch, for machines that serve an export.

Usage: python scripts/requirements.py EXTRA ... > requirements.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def main(extras: list[str]) -> str:
    """Return the requirements, one on each line."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    if unknown := [extra for extra in extras if extra not in project["optional-dependencies"]]:
        raise SystemExit(f"pyproject.toml has no extra {unknown[0]}")
    optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
    lines = [line for line in (*project["dependencies"], *optional) if not re.match(r"torch\b", line)]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


if __name__ == "__main__":
    print(main(sys.argv[1:]), end="")
