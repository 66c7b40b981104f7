"""`OnnxScorer`: an exported model as a `Scorer`, with onnxruntime and numpy, without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from hafvt.data.dataset import Domain, Int64
from hafvt.data.parquet import read_parquet
from hafvt.errors import HafvtError, missing_package
from hafvt.files import explained_read_errors, read_manifest
from hafvt.folders import FolderKind
from hafvt.inference.candidates import FaissCandidateGenerator
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.index_files import open_index
from hafvt.inference.scorer import Branch, Float32, ScoreBreakdown, request_times

FORMAT = 3
EXPORT = FolderKind("an export", "export.json", ("index",))
REMEDY = "export the run again"
WEIGHT_FILE = "weights.bin"
QUERY_GRAPHS, ROW_GRAPHS = "queries", "rows"  # graphs of an export with an index


class StoredWeight(NamedTuple):
    """Where the weight file holds a weight: its first byte, its numpy dtype and its shape."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


class ExportManifest(BaseModel):
    """What export.json holds besides format number, hashes and provenance.

    Attributes:
        model: name of the model.
        domains: contiguous slices of the item indices.
        exclude_seen: see `Recommender`.
        max_length: the longest history that the graphs read, in items.
        sequence_names: see `Scorer`.
        modalities: see `Scorer`.
        item_tables: names of the tables that are inputs of the graphs.
        weights: by file of a graph and name, the weights that the graph has in the weight file.
        image_root: see `ItemCatalog`.
        added_image_roots: see `ItemCatalog`.
    """

    model: str
    domains: Annotated[list[Domain], Field(min_length=1)]
    exclude_seen: tuple[bool, ...]
    max_length: Annotated[int, Field(ge=1)]
    sequence_names: tuple[str, ...]
    modalities: tuple[str, ...]
    item_tables: list[str]
    weights: dict[str, dict[str, StoredWeight]]
    image_root: Path | None
    added_image_roots: dict[int, Path]


class OnnxScorer:
    """An export as a `Scorer`.

    Args:
        folder: a folder that `export` wrote.
        item_tables: tables that replace those of an export with `--item-tables inputs`, by name; float32 of
            the same shapes.
        threads: number of threads for one call; 0 uses all cores.

    Raises:
        HafvtError: it is no export, damaged or of another format, onnxruntime is missing, or a table has
            another name, shape or type.
    """

    def __init__(
        self, folder: str | Path, item_tables: Mapping[str, Float32] | None = None, threads: int = 0
    ) -> None:
        self.folder, self.threads = Path(folder), threads
        self._values: list[Any] = []  # weights, which onnxruntime reads while the graphs exist
        content = read_manifest(self.folder / EXPORT.marker, FORMAT, REMEDY)
        with explained_read_errors(self.folder / EXPORT.marker, REMEDY):
            self.manifest = ExportManifest.model_validate(content)
            self.item_tables: dict[str, Float32] = {
                name: np.load(self.folder / f"{name}.npy", allow_pickle=False)
                for name in self.manifest.item_tables
            }
        self.name, self.domains = self.manifest.model, tuple(self.manifest.domains)
        self.sequence_names, self.modalities = self.manifest.sequence_names, self.manifest.modalities
        self.max_length, self.can_explain = self.manifest.max_length, bool(self.sequence_names)
        for name, table in (item_tables or {}).items():
            if name not in self.item_tables:
                names = ", ".join(self.item_tables) or "none"
                raise HafvtError(f"{self.folder} has no item table {name!r} as input: it has {names}")
            shape = self.item_tables[name].shape
            if table.shape != shape or table.dtype != np.float32:
                raise HafvtError(f"table {name!r} is {table.dtype} {table.shape}: give float32 {shape}")
            self.item_tables[name] = np.ascontiguousarray(table)
        self.has_index = f"{ROW_GRAPHS}0.onnx" in self.manifest.weights
        first = self._query_sessions[0] if self.has_index else self._score_sessions[0]
        self.uses_times = "times" in {value.name for value in first.get_inputs()}

    @cached_property
    def _weights(self) -> Any:
        """The bytes of the weight file; onnxruntime would map it and die if the file is cut short."""
        with explained_read_errors(self.folder / WEIGHT_FILE, REMEDY):
            return np.fromfile(self.folder / WEIGHT_FILE, dtype=np.uint8)

    @cached_property
    def _score_sessions(self) -> list[Any]:
        """The graphs that score all items, by domain; with an index, the first use opens them."""
        return self._sessions("scores")

    @cached_property
    def _query_sessions(self) -> list[Any]:
        """The graphs of branches, by domain."""
        return self._sessions(QUERY_GRAPHS)

    @cached_property
    def _row_sessions(self) -> list[Any]:
        """The graphs of item vectors, by domain."""
        return self._sessions(ROW_GRAPHS)

    @cached_property
    def _explain_sessions(self) -> list[Any]:
        """The graphs that explain, by domain; the first explanation opens them."""
        return self._sessions("explain")

    def _sessions(self, kind: str) -> list[Any]:
        """Open the graphs of a kind, by domain."""
        return [self._session(f"{kind}{index}.onnx") for index in range(len(self.domains))]

    def _session(self, name: str) -> Any:
        """Open a graph; raise HafvtError if onnxruntime is missing or cannot run it."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when it is imported
        try:
            import onnxruntime
        except ImportError:
            raise missing_package("onnx", "onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # log errors only
        try:
            for key, (offset, dtype, shape) in self.manifest.weights[name].items():
                weight = np.frombuffer(self._weights, dtype, math.prod(shape), offset).reshape(shape)
                value = onnxruntime.OrtValue.ortvalue_from_numpy(weight)
                options.add_initializer(key, value)
                self._values.append(value)
            return onnxruntime.InferenceSession(
                self.folder / name, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base class
            reason = str(error).splitlines()[0]
            raise HafvtError(f"{self.folder / name} cannot be run ({reason}): {REMEDY}") from None

    def _run(self, session: Any, **values: Int64) -> list[Float32]:
        """Return the outputs of a graph for the values of its inputs; item tables are inputs, too."""
        inputs = {name: np.ascontiguousarray(value) for name, value in values.items()} | self.item_tables
        names = [tensor.name for tensor in session.get_inputs()]
        outputs: list[Float32] = session.run(None, {name: inputs[name] for name in names})
        return outputs

    def scores(self, items: Int64, lengths: Int64, domain: int, time: int | None = None) -> Float32:
        """See `Scorer.scores`."""
        times = request_times(time, len(lengths))
        return self._run(self._score_sessions[domain], items=items, lengths=lengths, times=times)[0]

    def branches(self, items: Int64, lengths: Int64, domain: int, time: int | None = None) -> list[Branch]:
        """See `BranchScorer.branches`."""
        times = request_times(time, len(lengths))
        log_weights, subtracted, *h = self._run(
            self._query_sessions[domain], items=items, lengths=lengths, times=times
        )
        count = max(1, len(self.modalities))
        return [Branch(n % count, one, log_weights[:, n], subtracted[:, n]) for n, one in enumerate(h)]

    def item_rows(self, items: Int64, domain: int) -> list[Float32]:
        """See `BranchScorer.item_rows`."""
        return self._run(self._row_sessions[domain], items=items)

    def explain(
        self, items: Int64, domain: int, candidates: Int64, time: int | None = None
    ) -> ScoreBreakdown:
        """See `Scorer.explain`."""
        shares, attention = self._run(
            self._explain_sessions[domain],
            items=items[None],
            lengths=np.array([len(items)]),
            candidates=candidates[None],
            times=request_times(time, 1),
        )
        return ScoreBreakdown(shares[0], attention[0])


def is_export(folder: str | Path) -> bool:
    """Return whether `export` wrote a folder."""
    return any((Path(folder) / name).exists() for name in (EXPORT.marker, "scores0.onnx"))


def open_export(
    folder: str | Path, *, threads: int = 0
) -> tuple[OnnxScorer, ItemCatalog, tuple[bool, ...], FaissCandidateGenerator | None]:
    """Open an export; return the arguments of `Recommender`. Args and Raises are those of `OnnxScorer`."""
    scorer = OnnxScorer(folder, threads=threads)
    with explained_read_errors(scorer.folder, REMEDY):
        table = read_parquet(scorer.folder / "items.parquet")
        train_counts: Int64 = np.load(scorer.folder / "train_counts.npy", allow_pickle=False)
        if not len(table) == len(train_counts) == scorer.domains[-1].stop:
            raise ValueError("its files are of different numbers of items")
        if len(scorer.manifest.exclude_seen) != len(scorer.domains):
            raise ValueError("exclude_seen is not as long as domains")
    roots = scorer.manifest.image_root, scorer.manifest.added_image_roots
    catalog = ItemCatalog(table, scorer.domains, train_counts, *roots)
    generator = open_index(scorer.folder / "index", scorer, catalog, REMEDY) if scorer.has_index else None
    return scorer, catalog, scorer.manifest.exclude_seen, generator
