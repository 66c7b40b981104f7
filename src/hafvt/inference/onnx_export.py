"""`hafvt export`: a trained model as ONNX graphs, which run without torch.

`torch.onnx` traces `Model.scores` once for each domain, and `Model.explain` of models that can explain. All
graphs of an export share one file of weights, so that tables of items are stored once.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from hafvt.data.batches import Batch
from hafvt.data.dataset import Dataset, Domain, Int64
from hafvt.errors import HafvtError, missing_package
from hafvt.files import write_manifest
from hafvt.folders import atomic_folder
from hafvt.inference.added_items import with_added_items
from hafvt.inference.onnx_scorer import (
    EXPORT,
    FORMAT,
    QUERY_GRAPHS,
    ROW_GRAPHS,
    WEIGHT_FILE,
    ExportManifest,
    OnnxScorer,
    StoredWeight,
)
from hafvt.inference.scorer import Float32, Scorer, pad_histories
from hafvt.inference.torch_scorer import TorchScorer, open_run_index
from hafvt.models import MODELS
from hafvt.models.base import Model
from hafvt.progress import Advance, progress
from hafvt.settings import Folder, OutFolder, check_arguments
from hafvt.training.run import open_run

TOLERANCE = 1e-4  # largest permitted difference from torch, of scores, shares and attention
UNTRACEABLE = ("pinet", "psjnet", "mifn")  # their Python code loops over the steps of a history
# Tables that describe clusters and id weights of the trained catalog; they are never inputs.
FIXED_TABLES = tuple(f"model.items.{name}" for name in ("cluster", "id_weight"))
CHECKED_TIMES = (1_609_459_200, 1_625_097_600)  # a winter and a summer day
MAX_INLINE_BYTES = 1024  # larger weights move from their graph to the shared file
PAGE_BYTES = 4096  # weights start at multiples of it, so that programs can map them
PACKAGES = ("hafvt", "torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportSummary:
    """What `export` wrote: its folder, and the size of all files.

    `difference` is the largest difference from torch in all checked scores, shares and attention weights.
    """

    folder: Path
    difference: float
    num_bytes: int

    def __str__(self) -> str:
        """Return a line about the difference from torch, and one about the folder."""
        size = f"{self.num_bytes / 1e6:,.1f} MB"
        return f"largest difference from torch {self.difference:.0e}\nwrote {size} to {self.folder}"


class ScoreGraph(nn.Module):
    """A model's scores of all items of one domain, as a module to trace."""

    def __init__(self, model: Model, domain: int) -> None:
        super().__init__()
        self.model, self.domain = model, domain

    def forward(self, items: Tensor, lengths: Tensor, times: Tensor | None = None) -> Tensor:
        """Return scores, (B, C), see `Model.scores`."""
        return self.model.scores(Batch(items, lengths, times), self.domain).float()


class ExplainGraph(ScoreGraph):
    """A model's explanations of scores in one domain, as a module to trace."""

    def forward(  # type: ignore[override]
        self, items: Tensor, lengths: Tensor, candidates: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return shares, (B, C, S, M), and attention, (B, S, M, T), see `Model.explain`."""
        shares, attention = self.model.explain(Batch(items, lengths, times), self.domain, candidates)
        return shares.float(), attention.float()


class QueryGraph(ScoreGraph):
    """A model's branches of the scores in one domain, as a module to trace."""

    def forward(  # type: ignore[override]
        self, items: Tensor, lengths: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return log weights and log subtracted masses, (B, branches), and `Branch.h` of each, (B, d)."""
        queries = list(self.model.branch_queries(Batch(items, lengths, times), self.domain, by_row=True))
        log_weights = [
            q.log_weight.expand_as(q.is_empty).masked_fill(q.is_empty, -torch.inf) for q in queries
        ]
        subtracted = [q.log_subtracted_mass for q in queries]
        return torch.stack(log_weights, 1), torch.stack(subtracted, 1), *(q.h for q in queries)


class RowGraph(ScoreGraph):
    """The vectors that score items, as a module to trace."""

    def forward(self, items: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return vectors by modality, (N,) -> (N, d), see `Model.scoring_rows`."""
        return tuple(self.model.scoring_rows(items))


@check_arguments
def export(
    run: Folder,
    *,
    out: OutFolder,
    item_tables: Literal["baked", "inputs"] = "baked",
    data: str | Path | Dataset | None = None,
    overwrite: bool = False,
) -> ExportSummary:
    """Export a run as ONNX, which `recommend`, `explain` and `serve` read without torch.

    The graphs take any number of histories of any length. They run on random histories under onnxruntime, and
    the export is kept only if they differ from torch by at most 1e-4. Pictures are not copied. The index of a
    run (hafvt index) is copied and used, unless the item tables are inputs.

    Example: hafvt export runs/hafvt --out exports/hafvt

    Args:
        run: the folder that train wrote.
        out: the folder to write.
        item_tables: baked stores the items' vectors in the graphs; inputs makes them inputs, stored as .npy
            files, so that tables of the same shapes can replace them.
        data: the dataset, if it has moved since training.
        overwrite: replace an existing folder.

    Raises:
        HafvtError: there is no finished run, its model cannot be exported, or a graph differs from torch.
    """
    try:
        import onnx_ir  # noqa: F401  `write_graphs` needs it
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise missing_package("export", str(error.name)) from None
    trained_run = open_run(run, data)
    if trained_run.name in UNTRACEABLE:
        names = ", ".join(name for name in MODELS if name not in UNTRACEABLE)
        raise HafvtError(f"{trained_run.name} cannot be exported: models that can are {names}")
    trained_run, catalog = with_added_items(trained_run)
    scorer = TorchScorer(trained_run)
    graph_types = {"scores": ScoreGraph} | ({"explain": ExplainGraph} if scorer.can_explain else {})
    index, generator = trained_run.folder / "index", None
    if index.exists() and item_tables == "baked":
        generator = open_run_index(trained_run, scorer, catalog)
    if generator is not None:
        graph_types |= {QUERY_GRAPHS: QueryGraph, ROW_GRAPHS: RowGraph}
    weight_bytes = sum(w.nbytes for model in set(trained_run.models) for w in model.state_dict().values())
    num_steps = len(catalog.domains) * len(graph_types) + 1
    with (
        atomic_folder(out, EXPORT, overwrite=overwrite, num_bytes=weight_bytes) as folder,
        progress(f"export {trained_run.name}", num_steps, "graphs") as advance,
    ):
        num_items = len(catalog) if item_tables == "inputs" else None
        weights, tables, opset = write_graphs(folder, trained_run.models, graph_types, num_items, advance)
        if item_tables == "inputs" and not tables:
            raise HafvtError(
                f"{trained_run.name} has no table over all items: leave out --item-tables inputs"
            )
        for name, table in tables.items():
            np.save(folder / f"{name}.npy", table, allow_pickle=False)
        if generator is not None:
            shutil.copytree(index, folder / "index")
        catalog.table.write_parquet(folder / "items.parquet")
        np.save(folder / "train_counts.npy", catalog.train_counts, allow_pickle=False)
        manifest = ExportManifest(
            model=trained_run.name,
            domains=list(catalog.domains),
            exclude_seen=trained_run.data.exclude_seen(trained_run.candidates),
            max_length=scorer.max_length,
            sequence_names=scorer.sequence_names,
            modalities=scorer.modalities,
            item_tables=sorted(tables),
            weights=weights,
            image_root=catalog.image_root,
            added_image_roots=catalog.added_image_roots,
        )
        provenance = {"config": trained_run.manifest["config"], "opset": opset}
        provenance["versions"] = {name: version(name) for name in PACKAGES}
        write_manifest(folder / EXPORT.marker, FORMAT, manifest.model_dump(mode="json") | provenance)
        exported = OnnxScorer(folder)
        difference = largest_difference(exported, scorer)
        if generator is not None:
            difference = max(difference, largest_index_difference(exported, scorer))
        if not difference <= TOLERANCE:  # also true of NaN
            raise HafvtError(
                f"the graphs of {trained_run.folder} differ from torch by {difference:.0e}, more than "
                f"{TOLERANCE:.0e}, so nothing was written: serve the run itself"
            )
        advance(1)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return ExportSummary(Path(out), difference, num_bytes)


def write_graphs(
    folder: Path,
    models: Sequence[Model],
    graph_types: Mapping[str, Callable[[Model, int], Any]],
    num_items: int | None,
    advance: Advance,
) -> tuple[dict[str, dict[str, StoredWeight]], dict[str, np.ndarray], int]:
    """Write a graph of each type for each domain, and the weights of all graphs into one file.

    Args:
        folder: where the files are written.
        models: the model of each domain.
        graph_types: the types of graphs, such as `ScoreGraph`, by the first part of their file names.
        num_items: makes tables of as many rows inputs of the graphs; None stores them in the graphs.
        advance: called after each graph.

    Returns:
        The stored weights of each graph file, the tables that are inputs, by name, and the opset.
    """
    import onnx_ir  # an extra, see `export`

    weights, tables, opset = dict[str, dict[str, StoredWeight]](), dict[str, np.ndarray](), 0
    offsets = dict[bytes, int]()
    with (folder / WEIGHT_FILE).open("wb") as file:
        for domain, model in enumerate(models):
            for name, graph_type in graph_types.items():
                program = trace(graph_type(model, domain))
                if num_items is not None:
                    # Domains with models of their own have tables of their own.
                    suffix = f".{domain}" if model is not models[0] else ""
                    tables |= item_tables_to_inputs(program.graph, num_items, suffix)
                weights[f"{name}{domain}.onnx"] = move_weights(program.graph, file, offsets)
                onnx_ir.save(program, folder / f"{name}{domain}.onnx")
                opset = program.opset_imports[""]
                advance(1)
    return weights, tables, opset


def trace(module: ScoreGraph) -> Any:
    """Return a module as an `onnx_ir.Model` for batches and histories of any size, or raise HafvtError."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    max_length = module.model.max_length
    batch = Dim("batch", min=1)
    length = {1: Dim("length", min=1, max=max_length)} if max_length > 1 else {}
    inputs = {
        "items": torch.zeros(3, min(5, max_length), dtype=torch.int64),
        "lengths": torch.ones(3, dtype=torch.int64),
    }
    shapes: dict[str, Any] = {"items": {0: batch, **length}, "lengths": {0: batch}}
    if isinstance(module, RowGraph):
        inputs, shapes = {"items": torch.zeros(3, dtype=torch.int64)}, {"items": {0: Dim("count", min=1)}}
    elif module.model.uses_times:
        inputs["times"] = torch.zeros(3, dtype=torch.int64)
        shapes["times"] = {0: batch}
    if isinstance(module, ExplainGraph):
        inputs["candidates"] = torch.full((3, 2), module.model.domains[module.domain].start)
        shapes["candidates"] = {0: batch, 1: Dim("candidates", min=1)}
    # They warn that torchvision is missing, which is not needed, and of empty lists of axes.
    for name in ("torch.onnx._internal.exporter._registration", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                module, kwargs=inputs, dynamic_shapes=shapes, dynamo=True, optimize=False, verbose=False
            )
    except Exception as error:  # torch raises errors of many types
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise HafvtError(f"torch cannot export this model ({reason}): serve the run itself") from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # they contain paths of this machine
    return program.model


def item_tables_to_inputs(graph: Any, num_items: int, suffix: str = "") -> dict[str, np.ndarray]:
    """Turn a graph's item tables (weights of `num_items` rows) into inputs, returned by name + `suffix`."""
    tables = {}
    for key, value in list(graph.initializers.items()):
        shape = value.const_value.shape
        if len(shape) != 2 or shape[0] != num_items:
            continue
        if key.startswith("model.") and not key.startswith(FIXED_TABLES):
            del graph.initializers[key]
            value.name = key.removeprefix("model.") + suffix
            tables[value.name] = value.const_value.numpy()
            value.const_value = None
            graph.inputs.append(value)
    return tables


def move_weights(graph: Any, file: IO[bytes], offsets: dict[bytes, int]) -> dict[str, StoredWeight]:
    """Move the large weights of a graph to a file that all graphs share, and return their places by name.

    Equal weights are stored once. `offsets` is where the file has each weight, by its SHA-256; the function
    adds the new ones.
    """
    import onnx_ir

    weights = {}
    for key, value in graph.initializers.items():
        array = np.ascontiguousarray(value.const_value.numpy())
        if array.nbytes <= MAX_INLINE_BYTES:
            continue
        digest = hashlib.sha256(array.data).digest()
        if digest not in offsets:
            file.write(bytes(-file.tell() % PAGE_BYTES))
            offsets[digest] = file.tell()
            file.write(array.data)
        kind, shape, folder = value.const_value.dtype, value.const_value.shape, Path(file.name).parent
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHT_FILE, offsets[digest], array.nbytes, kind, shape=shape, name=key, base_dir=folder
        )
        weights[key] = StoredWeight(offsets[digest], array.dtype.name, array.shape)
    return weights


def largest_difference(a: Scorer, b: Scorer) -> float:
    """Return the largest difference of two scorers over random histories; NaN if only one of them has NaN."""
    differences = [0.0]
    for index, domain in enumerate(a.domains):
        for histories in random_histories(a.domains, a.max_length):
            batch = pad_histories(histories)
            for time in CHECKED_TIMES:
                scores = (scorer.scores(*batch, index, time) for scorer in (a, b))
                differences.append(difference(*scores))
            if a.can_explain:
                candidates = np.unique(np.linspace(domain.start, domain.stop - 1, 7).astype(np.int64))
                breakdowns = (scorer.explain(histories[0], index, candidates) for scorer in (a, b))
                differences += [difference(*arrays) for arrays in zip(*breakdowns, strict=True)]
    return float(np.max(differences))


def largest_index_difference(a: OnnxScorer, b: TorchScorer) -> float:
    """Return the largest difference of branches and item vectors, from which an index computes scores."""
    differences = [0.0]
    for index, domain in enumerate(a.domains):
        rows = (
            scorer.item_rows(np.arange(domain.start, domain.stop, 1 + len(domain) // 999), index)
            for scorer in (a, b)
        )
        differences += [difference(*pair) for pair in zip(*rows, strict=True)]
        for histories in random_histories(a.domains, a.max_length):
            batch = pad_histories(histories)
            branches = (scorer.branches(*batch, index, CHECKED_TIMES[0]) for scorer in (a, b))
            for one, other in zip(*branches, strict=True):
                differences += [difference(*pair) for pair in zip(one[1:], other[1:], strict=True)]
    return float(np.max(differences))


def difference(a: Float32, b: Float32) -> float:
    """Return the largest difference of two arrays; equal infinities do not differ."""
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(a == b, 0, np.abs(a - b)), initial=0))


def random_histories(domains: tuple[Domain, ...], max_length: int) -> Iterator[list[Int64]]:
    """Yield batches of one and of several histories, short and long, of all domains and of single domains."""
    random, num_items = np.random.default_rng(0), domains[-1].stop
    for length in sorted({1, 2, max_length // 2, max_length} & set(range(1, max_length + 1))):
        yield [random.integers(num_items, size=length)]
        yield [random.integers(domain.start, domain.stop, size=length) for domain in domains]
    yield [random.integers(num_items, size=length) for length in random.integers(1, max_length + 1, size=9)]
