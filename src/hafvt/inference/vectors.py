"""`hafvt vectors`: vectors of items and histories, for vector databases and other programs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hafvt.data.batches import Batch
from hafvt.data.dataset import Dataset
from hafvt.data.times import TimeLike, parse_request_time
from hafvt.errors import ArgumentError, HafvtError
from hafvt.files import atomic_file
from hafvt.inference.added_items import feature_vectors, with_added_items
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.histories import HistoryRequest, read_requests
from hafvt.inference.item_vectors import Float32
from hafvt.inference.onnx_scorer import is_export
from hafvt.inference.recommendations import ALL_DOMAINS
from hafvt.inference.request_batches import batches
from hafvt.inference.scorer import pad_histories, request_times
from hafvt.ops.catalog_softmax import log_subtract_exp
from hafvt.ops.tiles import MAX_SAFE_LOGIT
from hafvt.settings import Folder, check_arguments
from hafvt.training.run import Run, open_run

TILE = 8192  # items whose logits are in memory at a time, so that they fit the processor's cache

HISTORY_SCHEMA: dict[str, Any] = {
    "history_number": pl.Int64,
    "user_id": pl.String,
    "domain": pl.String,
    "sequence": pl.String,
    "modality": pl.String,
    "log_weight": pl.Float64,
    "vector": pl.List(pl.Float32),
}


class HistoryVectors(NamedTuple):
    """Vectors of B histories of one branch, to compare with the items of a domain.

    Attributes:
        sequence: name of the sequence.
        modality: name of the modality, which is the column of the items' vectors.
        vectors: (B, d).
        log_weights: (B,) to add to the dot products; -inf where the sequence has no items.
    """

    sequence: str
    modality: str
    vectors: Float32
    log_weights: Float32


@dataclass(frozen=True)
class VectorFiles:
    """What `vectors` wrote.

    Attributes:
        items: the file of items.
        num_items: number of items.
        widths: numbers in a vector of an item, by column.
        histories: the file of histories; None without any.
        num_histories: number of histories.
    """

    items: Path
    num_items: int
    widths: dict[str, int]
    histories: Path | None = None
    num_histories: int = 0

    def __str__(self) -> str:
        """Return a line for each file."""
        widths = ", ".join(f"{name} ({width:,} numbers)" for name, width in self.widths.items())
        lines = [f"wrote vectors of {self.num_items:,} items by {widths} to {self.items}"]
        if self.histories is not None:
            lines.append(f"wrote vectors of {self.num_histories:,} histories to {self.histories}")
        return "\n".join(lines)


@check_arguments
def vectors(
    run: Folder,
    *,
    out: str | Path,
    histories: str | Path | Any | None = None,
    domain: str | None = None,
    columns: dict[str, str] | None = None,
    time: TimeLike = None,
    data: str | Path | Dataset | None = None,
) -> VectorFiles:
    """Write the vectors of items and, if given, of histories as Parquet, for vector databases.

    The file of items has item_id, domain and a column of vectors for each modality: id, image, title. With
    hafvt, these are the vectors that it scores items by. Other models have the vectors that they learned for
    ids, and the frozen ones of encode.

    Histories go to a second file, which is named after the first: items.parquet and items-histories.parquet.
    With hafvt it has a row for each branch (sequence and modality) of each history and domain. The dot
    product of its vector with the items' vectors of the modality ranks items as the branch does. The model's
    score is a mixture, log of the sum over branches of exp(dot product + log_weight), and is no single dot
    product. With sasrec, the dot product with the vectors of ids is the score. Other models have no such
    vectors.

    Example: hafvt vectors runs/hafvt --out items.parquet --histories histories.jsonl

    Args:
        run: the folder of a finished run.
        out: the Parquet file to write or replace.
        histories: a file of histories or a table of interactions, as for recommend.
        domain: write items and histories for this domain alone; default: all domains.
        columns: our column names and the table's names where they differ, as for prepare.
        time: of the request, as for recommend. For models that know the date.
        data: the dataset, if it has moved since training.

    Raises:
        HafvtError: there is no finished run, the domain is unknown, a file is wrong, or the model has no such
            vectors.
    """
    target = Path(out)
    if target.suffix.lower() != ".parquet" or target.is_dir():
        raise ArgumentError(f"--out {target}: name a file .parquet")
    if is_export(Path(run)):
        raise HafvtError(f"{run}: an export has no vectors of items: name the run that it was made from")
    request_time = parse_request_time(time)
    opened = open_run(run, data)
    trained, catalog = with_added_items(opened)
    numbers = range(len(catalog.domains)) if domain is None else [catalog.domain_index(domain)]
    requests = None
    if histories is not None:
        if not trained.model.can_index:
            raise HafvtError(
                f"{trained.name} has no vectors of histories: use hafvt or sasrec, or leave out --histories"
            )
        names = tuple(one.name for one in catalog.domains)
        defaults = HistoryRequest(None, [], names[numbers[0]], 1, [], request_time)
        requests = read_requests(histories, defaults, names, columns)
    table = item_vectors(opened, trained, catalog)
    table = table.filter(pl.col("domain").is_in([catalog.domains[n].name for n in numbers]))
    with atomic_file(target) as temporary:
        table.write_parquet(temporary)
    widths = {name: dtype.shape[0] for name, dtype in table.schema.items() if isinstance(dtype, pl.Array)}
    if requests is None:
        return VectorFiles(target, len(table), widths)
    second = target.with_name(f"{target.stem}-histories{target.suffix}")
    count = 0
    with atomic_file(second) as temporary:
        parts, folder = list[Path](), temporary.with_suffix(".parts.tmp")
        folder.mkdir()
        try:
            for batch in batches(requests()):
                parts.append(folder / f"{len(parts)}.parquet")
                history_table(trained, catalog, batch, numbers, count + 1).write_parquet(parts[-1])
                count += len(batch)
            if parts:
                pl.scan_parquet(parts, glob=False).sink_parquet(temporary)
            else:
                pl.DataFrame(schema=HISTORY_SCHEMA).write_parquet(temporary)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return VectorFiles(target, len(table), widths, second, count)


@torch.inference_mode()
def item_vectors(opened: Run, trained: Run, catalog: ItemCatalog) -> pl.DataFrame:
    """Return item_id, domain and the vectors of all items by modality.

    Args:
        opened: a run without its added items.
        trained: the run with them.
        catalog: all items.
    """
    rows: dict[str, Float32] = {}
    if trained.model.can_index and not trained.model.has_history_vectors:
        for number, domain in enumerate(catalog.domains):
            tables = trained.models[number].branch_vectors(number)
            for name, (table, _) in zip(trained.model.modalities, tables, strict=True):
                table_of_all = rows.setdefault(
                    name, np.zeros((len(catalog), table.shape[1]), dtype=np.float32)
                )
                table_of_all[domain.start : domain.stop] = table.float().numpy()
    else:
        ids = trained.model.id_vectors
        rows = {} if ids is None else {"id": ids.float().numpy()}
        rows |= {name: one.rows for name, one in feature_vectors(opened, catalog).items()}
    if not rows:
        raise HafvtError(f"{trained.folder}: {trained.name} has no vectors of items: use hafvt or sasrec")
    columns = [
        pl.Series(name, table, dtype=pl.Array(pl.Float32, table.shape[1])) for name, table in rows.items()
    ]
    return catalog.table.select("item_id", "domain").with_columns(columns)


def history_table(
    run: Run, catalog: ItemCatalog, requests: list[HistoryRequest], domains: Any, first_number: int
) -> pl.DataFrame:
    """Return a row for each history, domain and branch whose sequence has items; see `HISTORY_SCHEMA`.

    Args:
        run: with its added items.
        catalog: all items.
        requests: the histories and their times.
        domains: indices of the domains.
        first_number: number of the first history.
    """
    known = [catalog.indices(request.history)[0][-run.model.max_length :] for request in requests]
    by_time: dict[int | None, list[int]] = {}
    for row, history in enumerate(known):
        if len(history):
            by_time.setdefault(requests[row].time, []).append(row)
    content: list[tuple[Any, ...]] = []
    for time, rows in by_time.items():
        items, lengths = (torch.from_numpy(array) for array in pad_histories([known[row] for row in rows]))
        batch = Batch(items, lengths, torch.from_numpy(request_times(time, len(rows))))
        for domain in domains:
            for branch in history_vectors(run, batch, domain):
                content += [
                    (
                        first_number + row,
                        requests[row].user_id,
                        catalog.domains[domain].name,
                        branch.sequence,
                        branch.modality,
                        float(log_weight),
                        vector.tolist(),
                    )
                    for row, vector, log_weight in zip(rows, branch.vectors, branch.log_weights, strict=True)
                    if log_weight > -np.inf
                ]
    table = pl.DataFrame(content, schema=HISTORY_SCHEMA, orient="row")
    return table.sort("history_number", maintain_order=True)


@torch.inference_mode()
def history_vectors(run: Run, batch: Batch, domain: int) -> Iterator[HistoryVectors]:
    """Yield the vectors of histories for each branch that scores the items of a domain."""
    model = run.models[domain]
    if model.has_history_vectors:
        vectors = model.history_vectors(batch).float().numpy()
        yield HistoryVectors(ALL_DOMAINS, "id", vectors, np.zeros(len(vectors), dtype=np.float32))
        return
    tables, names, count = model.branch_vectors(domain), model.modalities, len(model.modalities)
    sequences = [model.sequence_names[s] for s in model.scoring_sequence_indices(domain)]
    for number, query in enumerate(model.branch_queries(batch, domain)):
        partition = log_partition(query.h, tables[query.modality][1])
        log_weights = query.log_weight - log_subtract_exp(partition, query.log_subtracted_mass)
        log_weights = log_weights.masked_fill(query.is_empty, -torch.inf)
        sequence, modality = sequences[number // count], names[query.modality]
        yield HistoryVectors(sequence, modality, query.h.float().numpy(), log_weights.float().numpy())


def log_partition(h: Tensor, table: Tensor) -> Tensor:
    """Return `logsumexp_j(h[i] . table[j])`, (N, d) and (V, d) -> (N,), for vectors of at most unit length.

    Faster than `ops.catalog_softmax.log_partition` for few queries.
    """
    logits = (h @ table[start : start + TILE].T for start in range(0, len(table), TILE))
    if h.norm(dim=1).amax() >= MAX_SAFE_LOGIT:
        return torch.stack([z.logsumexp(1) for z in logits]).logsumexp(0)
    return torch.stack([z.exp_().sum(1) for z in logits]).sum(0).log()
