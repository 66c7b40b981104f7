"""Run `python -m pip install ARGUMENTS`, show how far it is, and print its output only if it fails.

Usage: python scripts/install.py ARGUMENTS OF PIP INSTALL
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

LINE_S = 5.0  # between two lines where the output is no terminal
STEP = re.compile(r"\s*(Collecting|Downloading|Installing|Building|Preparing)\b.*")
PIP = (
    "pip",
    "install",
    "--disable-pip-version-check",
    "--root-user-action",
    "ignore",
    "--progress-bar",
    "off",
)


def main(arguments: list[str]) -> int:
    """Run pip and return its exit status."""
    start, last, num_packages, output = time.monotonic(), -LINE_S, 0, list[str]()
    is_terminal = sys.stdout.isatty()
    command = [sys.executable, "-m", *PIP, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if not STEP.match(line):
                continue
            num_packages += line.startswith("Collecting")
            seconds = time.monotonic() - start
            text = f"installing, {seconds:3.0f} s, {num_packages} packages: {line.strip()[:60]}"
            if is_terminal:
                print(f"\r\x1b[K{text}", end="", flush=True)
            elif seconds - last >= LINE_S:
                last = seconds
                print(text, flush=True)
    print("\r\x1b[K" if is_terminal else "", end="")
    if process.returncode:
        print("".join(output), end="")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
