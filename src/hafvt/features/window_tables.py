"""Feature tables of a back-test's windows: the rows of the items that a window has."""

from __future__ import annotations

from hafvt.data.dataset import Bool, Dataset
from hafvt.errors import HafvtError
from hafvt.features.table import FEATURE_TABLE, FeatureTable, write_fitted_arrays, write_table
from hafvt.folders import atomic_folder


def copy_feature_tables(data: Dataset, window: Dataset, has_item: Bool) -> None:
    """Write the feature tables of a dataset for the items of a window, unless they are there.

    Args:
        data: the whole dataset.
        window: the dataset of the window.
        has_item: (items,) which items of `data` the window has.

    Raises:
        HafvtError: the window has tables of other vectors than the dataset.
    """
    for name in data.feature_names:
        table = FeatureTable.open(data.folder / "features" / name)
        folder, source = window.folder / "features" / name, table.metadata["sha256"]["rows.npy"]
        if not folder.exists():
            present = table.present[has_item]
            rows = table.rows[has_item]
            counts = {"items": len(rows), "encoded": int(present.sum())}
            counts |= {"missing": int((~present).sum()), "broken": 0, "incomplete": 0}
            metadata = table.metadata | {"counts": counts, "window_of": source}
            with atomic_folder(folder, FEATURE_TABLE, num_bytes=rows.nbytes) as temporary:
                write_fitted_arrays(temporary, table.fitted_arrays())
                write_table(temporary, rows, present, metadata)
        elif FeatureTable.open(folder).metadata.get("window_of") != source:
            raise HafvtError(
                f"{data.folder}: its features {name} changed since {window.folder} was written: choose "
                "another folder for the back-test"
            )
