"""Work on a Ray cluster of this machine with 2 CPUs, which all tests of this file share."""

import os
import signal
import time
from pathlib import Path

import pytest

from hafvt.errors import HafvtError, HafvtWarning, warn
from hafvt.parts import Part, map_parts, ray_cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on 2 CPUs; `--ray local` uses it."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent.parent), *os.sys.path]))
        with ray_cluster("local", num_cpus=2) as ray:
            yield ray


def write(value: int, path: Path) -> tuple[int, int]:
    """Write a number; the first call for 3 ends its process."""
    marker = path.with_name("killed")
    if value == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if value == 4:
        warn("four: choose another number")
    time.sleep(0.05)
    path.write_text(str(value))
    return value, os.getpid()


def refuse(value: int, path: Path) -> None:
    raise HafvtError(f"number {value} is wrong: choose another")


def die(value: int, path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(value: int, path: Path) -> None:
    raise ValueError("no\nnumber")


def number_parts(folder: Path, count: int) -> list[Part]:
    return [Part(f"number {n}", n, folder / f"{n}.txt") for n in range(count)]


def test_map_parts_on_ray_uses_both_cpus_and_runs_lost_parts_again(tmp_path):
    with pytest.warns(HafvtWarning, match="four"):
        results = map_parts("write", lambda: write, number_parts(tmp_path, 12), ray="local")
    assert [value for value, _ in results.values()] == list(range(12))
    assert [(tmp_path / f"{n}.txt").read_text() for n in range(12)] == [str(n) for n in range(12)]
    assert len({pid for _, pid in results.values()} - {os.getpid()}) >= 2


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (refuse, r"^number 0 is wrong: choose another$"),
        (fail, r"^number 0 failed \(ValueError: no\): correct or remove it"),
        (die, r"^number 0: its process was lost 4 times"),
    ],
)
def test_map_parts_on_ray_that_fails_names_the_input(tmp_path, work, message):
    with pytest.raises(HafvtError, match=message):
        map_parts("work", lambda: work, number_parts(tmp_path, 1), ray="local")
    assert not list(tmp_path.glob("*.txt"))
