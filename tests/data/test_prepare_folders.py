"""The folder that `prepare` writes: kills, two processes at once, full disks, other files."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hafvt.data import dataset
from hafvt.data.dataset import Dataset, load_array, replace_item_table
from hafvt.data.prepare import prepare
from hafvt.errors import HafvtError
from hafvt.folders import folder_lock
from tests.crash import crash_before_each_operation

LOG = pl.DataFrame(
    {"user_id": [*"aaabbb"], "item_id": [*"xyzzyx"], "timestamp": [1, 2, 3, 4, 5, 6], "domain": ["d"] * 6}
)


def folder_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_prepare_killed_before_any_file_operation_keeps_a_complete_dataset(tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    out = tmp_path / "out" / "data"
    action = "prepare(root.parent / 'log.csv', out=root / 'data', seed=1, overwrite=True)"
    users = []

    def reset() -> None:
        prepare(LOG, out=out, seed=0, overwrite=True)

    def check(step: int) -> None:
        data = Dataset.open(out)
        users.append(data.manifest["settings"]["seed"])
        assert data.user_ids.sort().to_list() == ["a", "b"]
        prepare(LOG, out=out, seed=2, overwrite=True)
        assert folder_names(out.parent) == ["data"], step

    imports = "from hafvt.data.prepare import prepare"
    crash_before_each_operation(out.parent, action, imports=imports, reset=reset, check=check)
    assert (users[0], users[-1]) == (0, 1)


def test_prepare_into_a_folder_that_another_prepare_writes_is_refused(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "data"), pytest.raises(HafvtError, match="data is in use by another process"):
        prepare(LOG, out=tmp_path / "data")
    assert folder_names(tmp_path) == []


@pytest.mark.parametrize("name", ["thesis.txt", "items.npy.bak", "notes"])
def test_prepare_over_a_dataset_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    data = prepare(LOG, out=tmp_path / "data")
    (data.folder / "features").mkdir()
    prepare(LOG, out=tmp_path / "data", overwrite=True)
    (data.folder / name).mkdir() if name == "notes" else (data.folder / name).write_text("dear")
    with pytest.raises(HafvtError, match=f"data holds {name}, which .* would be lost: move it away"):
        prepare(LOG, out=tmp_path / "data", overwrite=True)
    assert (data.folder / name).exists()


def test_prepare_on_a_full_disk_says_so_and_keeps_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(LOG, out=tmp_path / "data")

    def save(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(HafvtError, match=r"data cannot be written \(No space left .*data is unchanged"):
        prepare(LOG, out=tmp_path / "data", overwrite=True)
    assert folder_names(tmp_path) == ["data"]
    assert Dataset.open(tmp_path / "data").num_users == 2


def test_replace_item_table_killed_anywhere_leaves_a_valid_dataset(tmp_path: Path) -> None:
    data = prepare(LOG, out=tmp_path / "data")
    table = data.item_table
    images = []

    def reset() -> None:
        replace_item_table(data.folder, table, image_root=None)

    def check(step: int) -> None:
        images.append(Dataset.open(data.folder).item_table["image"].to_list()[0])

    imports = "import polars as pl\nfrom hafvt.data.dataset import Dataset, replace_item_table"
    action = """
data = Dataset.open(root / "data")
replace_item_table(data.folder, data.item_table.with_columns(image=pl.lit("a.png")), image_root="/x")
"""
    crash_before_each_operation(tmp_path, action, imports=imports, reset=reset, check=check)
    assert (images[0], images[-1]) == (None, "a.png")


def test_open_dataset_maps_only_large_arrays(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset.open(small.folder)
    (small.folder / "items.npy").write_bytes(b"")  # a map would end the process
    assert data.train_counts().sum() > 0
    monkeypatch.setattr(dataset, "MAX_READ_BYTES", 100)
    assert isinstance(load_array(small.folder / "times.npy"), np.memmap)
    for array in (data.items, load_array(small.folder / "times.npy")):
        assert not array.flags.writeable
