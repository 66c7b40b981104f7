from functools import partial
from pathlib import Path

import pytest

from hafvt.errors import HafvtError
from hafvt.parts import Part, map_parts, ray_cluster


def square(value: int, path: Path) -> int:
    path.write_text(str(value**2))
    return value**2


def square_or_fail(wrong: int, value: int, path: Path) -> int:
    if value == wrong:
        path.mkdir()
        raise ValueError("no square")
    return square(value, path)


def number_parts(folder: Path, count: int = 4) -> list[Part]:
    return [Part(f"number {n}", n, folder / f"{n}.txt") for n in range(count)]


def test_map_parts_writes_each_output_and_returns_results_in_order(tmp_path):
    results = map_parts("square", lambda: square, number_parts(tmp_path))
    assert list(results.items()) == [(f"number {n}", n**2) for n in range(4)]
    assert [(tmp_path / f"{n}.txt").read_text() for n in range(4)] == ["0", "1", "4", "9"]


def test_map_parts_with_existing_outputs_does_only_the_others(tmp_path):
    (tmp_path / "1.txt").write_text("earlier")
    assert list(map_parts("square", lambda: square, number_parts(tmp_path))) == [
        "number 0",
        "number 2",
        "number 3",
    ]
    assert (tmp_path / "1.txt").read_text() == "earlier"
    assert map_parts("square", lambda: pytest.fail("opened"), number_parts(tmp_path)) == {}


def test_map_parts_that_fails_names_the_input_and_leaves_no_output(tmp_path):
    with pytest.raises(HafvtError, match=r"number 2 failed \(ValueError: no square\): correct"):
        map_parts("square", lambda: partial(square_or_fail, 2), number_parts(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "1.txt"]


def test_ray_cluster_without_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(HafvtError, match=r"'ray': pip install 'hafvt\[cluster\]'"), ray_cluster("local"):
        pass


def test_ray_cluster_at_a_free_port_reports_the_address():
    pytest.importorskip("ray")
    with (
        pytest.raises(HafvtError, match=r"--ray 127.0.0.1:1: no Ray cluster answers"),
        ray_cluster("127.0.0.1:1"),
    ):
        pass
