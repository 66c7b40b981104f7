"""Where the pictures of a table of items lie: beside it, in a folder of their own, or at absolute paths."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from hafvt.data.schema import Table
from hafvt.errors import HafvtError
from hafvt.progress import report

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")
NUM_TRIED = 100  # paths of a table that are looked for before the others are


def locate_images(table: Table, image_root: Path | None) -> tuple[pl.DataFrame, Path | None]:
    """Return the frame of a table of items, and the folder that its picture paths start from, or None.

    Paths start from `image_root`, by default from the folder of the table or, where no picture is there, from
    the only folder beside it that has them; paths of a data frame may be absolute. A table without a column
    of pictures gets the files of `image_root` that are named by the ids of items.

    Raises:
        HafvtError: `image_root` has no pictures of these items, or a data frame has paths on several drives.
    """
    if image_root is not None and not image_root.is_dir():
        raise HafvtError(f"--image-root {image_root} is no folder: name the folder of the pictures")
    frame, file = table.frame, table.origin.file
    if image_root is not None and ("image" not in frame.columns or not frame["image"].count()):
        return _with_named_images(frame, image_root), image_root
    if "image" not in frame.columns:
        return frame, image_root or (file.parent if file else None)
    is_path = ~pl.col("image").str.contains("^(?i)https?://")
    paths = frame.filter(is_path)["image"].drop_nulls()
    if os.sep == "/" and paths.str.contains("\\", literal=True).any():
        changed = pl.when(is_path).then(pl.col("image").str.replace_all("\\", "/", literal=True))
        frame = frame.with_columns(changed.otherwise("image").alias("image"))
        paths = frame.filter(is_path)["image"].drop_nulls()
    tried = paths.unique(maintain_order=True).head(NUM_TRIED).to_list()
    if image_root is not None:
        if tried and not _num_files(image_root, tried):
            raise HafvtError(
                f"--image-root {image_root} lacks {tried[0]} and others: name the folder of the paths"
            )
        return frame, image_root
    if file is None:
        return _with_common_root(frame, paths, tried)
    root = file.parent
    if tried and not _num_files(root, tried):
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and _num_files(path, tried)]
        if len(folders) == 1:
            root = folders[0]
            report(f"{file}: pictures are in {root}: name another folder by --image-root")
    return frame, root


def _num_files(root: Path, paths: list[str]) -> int:
    """Return how many paths lead to a file in a folder."""
    return sum(os.path.isfile(root / path) for path in paths)  # noqa: PTH113  # False for a bad name


def _with_named_images(frame: pl.DataFrame, image_root: Path) -> pl.DataFrame:
    """Return a frame with the pictures that are named by the ids of its items, such as 1001.jpg."""
    files = sorted(path for path in image_root.rglob("*") if path.suffix.lower() in SUFFIXES)
    names = {path.stem: path.relative_to(image_root).as_posix() for path in reversed(files)}
    image = pl.col("item_id").replace_strict(names, default=None, return_dtype=pl.String).alias("image")
    frame = frame.with_columns(image)
    if not (count := frame["image"].count()):
        raise HafvtError(
            f"no file in {image_root} is named by an item, such as {frame['item_id'][0]}.jpg: "
            "rename the files, or name the column of their paths by --columns image=NAME"
        )
    report(f"{image_root}: pictures of {count:,} of {len(frame):,} items, by the names of the files")
    return frame


def _with_common_root(
    frame: pl.DataFrame, paths: pl.Series, tried: list[str]
) -> tuple[pl.DataFrame, Path | None]:
    """Return a data frame with paths from the folder that all pictures have in common, and this folder.

    Relative paths start from the working folder. If no picture is there, nothing changes.
    """
    if not _num_files(Path(), tried):
        return frame, None
    absolute = {path: os.path.abspath(path) for path in paths.unique().to_list()}  # noqa: PTH100  # no links
    try:
        root = Path(os.path.commonpath({os.path.dirname(path) for path in absolute.values()}))  # noqa: PTH120
    except ValueError:
        raise HafvtError(
            "the pictures are on several drives: copy them into one folder, and give --image-root"
        ) from None
    relative = {path: Path(value).relative_to(root).as_posix() for path, value in absolute.items()}
    image = pl.col("image").replace_strict(relative, default=pl.col("image"), return_dtype=pl.String)
    return frame.with_columns(image), root
