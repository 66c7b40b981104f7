"""What a run keeps of its dataset, so that it works after the dataset was prepared again or removed.

The folder `catalog` of a run is a dataset without histories: the items with their training counts, the frozen
vectors that the model reads and, for models of graphs, the links between items.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl

from hafvt.data.attributes import RELATION_COLUMNS
from hafvt.data.dataset import RUN_CATALOG, Dataset, write_dataset
from hafvt.data.relations import RELATIONS, read_relations
from hafvt.features.item_features import time_knots
from hafvt.files import explained_write_errors


def write_catalog(
    run_folder: Path,
    data: Dataset,
    catalog_of: str,
    modalities: tuple[str, ...],
    *,
    relations: bool,
    times: bool,
) -> None:
    """Write the catalog of a run, in place of an older one.

    Files of vectors are hard links to those of the dataset, or copies on another disk.

    Args:
        run_folder: the folder of the run.
        data: the dataset of the training, or the catalog of the same run.
        catalog_of: the fingerprint of the dataset.
        modalities: the frozen vectors that the model reads.
        relations: whether the model reads the links between items.
        times: whether the model knows the date of a request.
    """
    folder, knots = run_folder / RUN_CATALOG, time_knots(data) if times else None
    write_dataset(
        folder,
        domains=list(data.domains),
        item_table=data.item_table.drop(RELATION_COLUMNS, strict=False),
        user_ids=pl.Series("user_id", [], dtype=pl.String),
        items=np.zeros(0, dtype=np.int32),
        times=np.zeros(0, dtype=np.int64),
        offsets=np.zeros(1, dtype=np.int64),
        train_lengths=np.zeros(0, dtype=np.int64),
        valid=np.zeros(0, dtype=np.int64),
        test=np.zeros(0, dtype=np.int64),
        item_counts=data.train_counts(),
        image_root=data.image_root,
        metadata={
            "catalog_of": catalog_of,
            "repeats": data.repeats,
            "weighted": data.train_weights() is not None,
            "time_knots": None if knots is None else knots.tolist(),
        },
        overwrite=True,
    )
    with explained_write_errors(folder):
        if relations:
            links = {name: pairs.numpy().astype(np.int32) for name, pairs in read_relations(data).items()}
            np.savez_compressed(folder / RELATIONS, allow_pickle=False, **links)
        for name in modalities:
            _link_files(data.folder / "features" / name, folder / "features" / name)


def _link_files(source: Path, target: Path) -> None:
    """Make a folder with hard links to the files of another, or with copies where links are not possible.

    The files of a dataset are replaced, never changed, so that a link keeps its content.
    """
    target.mkdir(parents=True)
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)
