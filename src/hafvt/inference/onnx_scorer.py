"""An exported model as a `Scorer`: onnxruntime and numpy, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hafvt.data.dataset import Domain, Int64
from hafvt.errors import HafvtError, missing_package
from hafvt.files import read_json, sha256
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.scorer import Float32, ScoreBreakdown

FORMAT = 1
INDEX = "export.json"


class OnnxScorer:
    """See `Scorer`.

    Args:
        folder: what `export` wrote.
        tables: with `--catalog given`, tables of items in place of the exported ones, by name, of the same
            shapes; those left out stay as exported.
        threads: at most so many for one call; 0 takes all cores.

    Attributes:
        about: everything that export.json says.

    Raises:
        HafvtError: it is no export, damaged, or of another format; onnxruntime is missing; a table is unfit.
    """

    def __init__(
        self, folder: str | Path, tables: Mapping[str, Float32] | None = None, threads: int = 0
    ) -> None:
        self.folder, self.threads = Path(folder), threads
        self.about = read_index(self.folder)
        self.name: str = self.about["model"]
        self.domains = tuple(Domain(d["name"], d["start"], d["stop"]) for d in self.about["domains"])
        self.max_length: int = self.about["max_length"]
        self.sequences: tuple[str, ...] = tuple(self.about["sequences"])
        self.modalities: tuple[str, ...] = tuple(self.about["modalities"])
        self.tables: dict[str, Float32] = {
            name: np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in self.about["tables"]
        }
        for name, table in (tables or {}).items():
            if name not in self.tables:
                raise HafvtError(
                    f"{self.folder} takes no table {name!r}: it takes {', '.join(self.tables) or 'none'}"
                )
            if table.shape != self.tables[name].shape or table.dtype != np.float32:
                raise HafvtError(
                    f"table {name!r} is {table.dtype} {table.shape}: give float32 {self.tables[name].shape}"
                )
            self.tables[name] = np.ascontiguousarray(table)
        self.scoring = [self.session(f"scores{number}.onnx") for number in range(len(self.domains))]

    @cached_property
    def explaining(self) -> list[Any]:
        """The graphs that explain; opened when they are first asked for."""
        return [self.session(f"explain{number}.onnx") for number in range(len(self.domains))]

    def session(self, name: str) -> Any:
        """Opens a graph.

        Raises:
            HafvtError: onnxruntime is missing or does not take it.
        """
        try:
            import onnxruntime
        except ImportError:
            raise missing_package("onnx", "onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # errors alone
        try:
            return onnxruntime.InferenceSession(
                self.folder / name, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own have no common base
            reason = str(error).splitlines()[0]
            raise HafvtError(f"{self.folder / name} cannot be run ({reason}): export the run anew") from None

    def catalog(self) -> ItemCatalog:
        """Returns the items of the export."""
        root = self.about["image_root"]
        table = pl.read_parquet(self.folder / "items.parquet")
        met: Int64 = np.load(self.folder / "counts.npy", allow_pickle=False)
        roots = {int(number): Path(of_added) for number, of_added in self.about["roots"].items()}
        return ItemCatalog(table, self.domains, met, Path(root) if root else None, roots)

    def run(self, session: Any, **values: Int64) -> list[Float32]:
        """Runs a graph on the values that it reads and the tables that it is given."""
        given = {**self.tables, **{name: np.ascontiguousarray(value) for name, value in values.items()}}
        found: list[Float32] = session.run(None, {one.name: given[one.name] for one in session.get_inputs()})
        return found

    def scores(self, items: Int64, lengths: Int64, domain: int, candidates: Int64 | None = None) -> Float32:
        """See `Scorer.scores`."""
        (found,) = self.run(self.scoring[domain], items=items, lengths=lengths)
        if candidates is None:
            return found
        return np.take_along_axis(found, candidates - self.domains[domain].start, axis=1)

    def explain(self, items: Int64, domain: int, candidates: Int64) -> ScoreBreakdown:
        """See `Scorer.explain`."""
        lengths = np.array([len(items)])
        shares, attention = self.run(
            self.explaining[domain], items=items[None], lengths=lengths, candidates=candidates[None]
        )
        return ScoreBreakdown(shares[0], attention[0])


def read_index(folder: Path) -> dict[str, Any]:
    """Returns what export.json says, once every file is what it was when it was written.

    Raises:
        HafvtError: it is no export, damaged, or of another format.
    """
    about: dict[str, Any] = read_json(folder / INDEX)
    if about.get("format") != FORMAT:
        raise HafvtError(
            f"{folder / INDEX}: format {about.get('format')!r}, expected {FORMAT}: export the run anew with "
            "this version of hafvt"
        )
    for name, expected in about["sha256"].items():
        if Path(name).name != name or not (folder / name).is_file() or sha256(folder / name) != expected:
            raise HafvtError(f"{folder / name} is missing or damaged: export the run anew")
    return about
