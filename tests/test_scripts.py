"""`scripts/install.py`: shows how far pip is, and pip's own output only where it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "install.py"


def install(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(SCRIPT), "--no-index", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def test_install_success_prints_one_line(tmp_path):
    with ZipFile(tmp_path / "shop-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("shop.py", "")
        for name, text in (
            ("METADATA", "Metadata-Version: 2.1\nName: shop\nVersion: 1\n"),
            ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("RECORD", ""),
        ):
            wheel.writestr(f"shop-1.dist-info/{name}", text)
    ended = install("--target", tmp_path / "out", tmp_path / "shop-1-py3-none-any.whl")
    assert (ended.returncode, ended.stderr) == (0, "")
    (line,) = ended.stdout.splitlines()
    assert line.startswith("installing,   ")
    assert (tmp_path / "out" / "shop.py").exists()


def test_install_failure_prints_the_output_of_pip(tmp_path):
    ended = install("--target", tmp_path, "no-such-package-of-hafvt")
    assert ended.returncode != 0
    assert "No matching distribution found for no-such-package-of-hafvt" in ended.stdout
