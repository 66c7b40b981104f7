"""`hafvt similar-items`: the items that are most similar to others."""

from __future__ import annotations

from pathlib import Path

from hafvt.data.dataset import Dataset
from hafvt.errors import ArgumentError
from hafvt.files import atomic_file
from hafvt.inference.batch_writer import SUFFIXES, similar_table
from hafvt.inference.recommendations import Results, SimilarItems
from hafvt.inference.recommender import Recommender
from hafvt.settings import Folder, PositiveCount, check_arguments
from hafvt.tables import without_formulas


@check_arguments
def similar_items(
    run: Folder,
    items: list[str] | list[int] | None = None,
    *,
    k: PositiveCount = 10,
    domain: str | None = None,
    by: str = "all",
    out: str | Path | None = None,
    data: str | Path | Dataset | None = None,
) -> Results[SimilarItems]:
    """Return the items that are most similar to others, by the cosines of their vectors.

    Example: hafvt similar-items runs/hafvt a101 b205 --domain games --by image

    Args:
        run: the folder of a finished run.
        items: ids of items; default: all items, with `out`.
        k: number of similar items of each item; fewer if no others have a vector.
        domain: the domain of the similar items; default: all domains.
        by: id (vectors learned from interactions), image, title or another modality of encode; all is the
            mean of the cosines by all of these.
        out: the file to write or replace, .csv, .jsonl or .parquet, with a row for each pair of items.
        data: the dataset, if it has moved since training.

    Raises:
        HafvtError: there is no finished run, an item or the domain is unknown, or no item has vectors.
    """
    target = None if out is None else Path(out)
    if target is not None and (target.suffix.lower() not in SUFFIXES or target.is_dir()):
        raise ArgumentError(f"--out {target}: name a file .jsonl, .csv or .parquet")
    if items is None and target is None:
        raise ArgumentError("no items: give ids of items, or --out FILE for all items")
    recommender = Recommender.open(run, data)
    ids = recommender.catalog.table["item_id"].to_list() if items is None else items
    results: Results[SimilarItems] = recommender.similar_items(ids, k, domain=domain, by=by)
    if target is None:
        return results
    with atomic_file(target) as temporary:
        table = similar_table(results)
        if target.suffix.lower() == ".parquet":
            table.write_parquet(temporary)
        elif target.suffix.lower() == ".csv":
            without_formulas(table).write_csv(temporary)
        else:
            table.write_ndjson(temporary)
    return results
