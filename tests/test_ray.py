"""Work on a Ray cluster of this machine with 2 CPUs, which all tests of this file share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hafvt import recommend, train
from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError, HafvtWarning, warn
from hafvt.features.encode import encode
from hafvt.features.encoders.classic import ClassicPictures
from hafvt.features.modalities import MODALITIES
from hafvt.parts import Part, Work, map_parts, ray_cluster
from tests.conftest import write_small
from tests.features.conftest import write_catalog, write_pictures
from tests.inference.test_batch_parts import write_histories

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    """Ray on 2 CPUs; `--ray local` uses it."""
    if find_spec("ray") is None:  # not imported yet, as it reads its settings then
        pytest.skip("ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]))
        with ray_cluster("local", num_cpus=2) as ray:
            yield ray


def wait_for_file(path: Path) -> None:
    """Return once a file is there."""
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def write(value: int, path: Path) -> tuple[int, int]:
    """Write a number. The first call for 3 ends its process; that for 5 waits for 6, by another process."""
    marker = path.with_name("killed")
    if value == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if value == 4:
        warn("four: choose another number")
    if value == 5:
        wait_for_file(path.with_name("6.txt"))
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


def test_map_parts_on_ray_uses_both_cpus_and_runs_lost_parts_again(tmp_path: Path) -> None:
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
def test_map_parts_on_ray_that_fails_names_the_input(tmp_path: Path, work: Work, message: str) -> None:
    with pytest.raises(HafvtError, match=message):
        map_parts("work", lambda: work, number_parts(tmp_path, 1), ray="local")
    assert not list(tmp_path.glob("*.txt"))


def table_files(data: Dataset) -> dict[str, bytes]:
    """Return the files of the vectors of a dataset, by path."""
    features = data.folder / "features"
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in features.glob("*/*")}


class KillingPictures(ClassicPictures):
    """Ends its process at the sixth picture, unless a file exists; then it creates it."""

    def __init__(self, argument: str, *, device: str, seed: int) -> None:
        super().__init__("", device=device, seed=seed)
        self.marker = Path(argument)

    def encode(self, contents: list[Any]) -> Any:
        if contents[0].size == (41, 41) and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(contents)


def test_encode_on_ray_whose_worker_is_killed_writes_the_same_bytes_as_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, names = tmp_path / "killed", [f"{n}.jpg" for n in range(30)]
    monkeypatch.setitem(MODALITIES["image"].encoders, "killing", KillingPictures)
    write_pictures(tmp_path / "pictures", names)
    write_pictures(tmp_path / "pictures", ["6.jpg"], side=41)
    (tmp_path / "pictures" / "3.jpg").write_text("no picture")
    titles = [f"lamp {n} {n % 3}" for n in range(30)]
    here, there = (
        write_catalog(tmp_path / name, [*titles], [*names], tmp_path / "pictures") for name in ("a", "b")
    )
    options = {"image": f"killing:{marker}", "title": "classic"}
    marker.touch()
    encode(here, **options, batch_size=2)
    marker.unlink()
    encode(there, **options, batch_size=2, ray="local")
    assert marker.exists()
    assert table_files(there) == table_files(here)
    assert sorted(path.name for path in (there.folder / "features").iterdir()) == ["image", "title"]


def test_recommend_on_ray_writes_the_same_bytes_as_here(tmp_path: Path) -> None:
    run = train("popularity", write_small(tmp_path / "data").folder, tmp_path / "run", test=False).folder
    histories = write_histories(tmp_path / "histories")
    options: Any = {"histories": histories, "domain": "d0", "time": 1_700_000_000}
    summaries = [
        recommend(run, **options, out=tmp_path / name, ray=ray) for name, ray in (("a", None), ("b", "local"))
    ]
    assert summaries[0].num_histories == summaries[1].num_histories == 9
    here, there = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("a", "b")
    )
    assert there == here
    assert len(here) == 4


DRIVER = """
import sys
from pathlib import Path
from hafvt.parts import map_parts
from tests.test_ray import number_parts, write_slowly
map_parts("write", lambda: write_slowly, number_parts(Path(sys.argv[1]), 8), ray=sys.argv[2])
"""


def write_slowly(value: int, path: Path) -> None:
    time.sleep(0.3)
    path.write_text(str(value))


def test_map_parts_on_ray_whose_driver_is_killed_continues(tmp_path: Path, cluster: Any) -> None:
    address = cluster.get_runtime_context().gcs_address
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]),
    }
    command = [sys.executable, "-c", DRIVER, str(tmp_path), address]
    with subprocess.Popen(command, env=environment) as driver:
        while len(list(tmp_path.glob("*.txt"))) < 3:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    results = map_parts("write", lambda: write_slowly, number_parts(tmp_path, 8), ray="local")
    assert 1 <= len(results) <= 5
    assert [(tmp_path / f"{n}.txt").read_text() for n in range(8)] == [str(n) for n in range(8)]
