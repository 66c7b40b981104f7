"""`hafvt export`: a trained model as ONNX graphs, which are served without torch.

Whatever a model does in `scores` is traced, once for each domain; nothing here knows how a model works. All
graphs of an export share one file of weights, so that tables of items are on disk once, and in memory once,
as onnxruntime maps that file.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
from hafvt.files import atomic_folder, sha256, write_json
from hafvt.inference.added_items import with_added_items
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.onnx_scorer import FORMAT, MANIFEST, OnnxScorer
from hafvt.inference.scorer import Float32, Scorer, pad_histories
from hafvt.inference.torch_scorer import TorchScorer
from hafvt.models import MODELS
from hafvt.models.base import Model
from hafvt.models.hafvt import HafVt
from hafvt.progress import progress
from hafvt.training.run import Run, open_run

TOLERANCE = 1e-4  # largest difference from torch, of a score or a share
UNTRACEABLE = ("pinet", "psjnet", "mifn")  # they go through a history step by step, in Python
# Whose ids an item borrows, and how much its own counts, stay as training had them: they are never given.
OF_TRAINING = tuple(f"model.items.{name}" for name in ("rows_", "weights_", "groups.", "known", "left"))
SMALL = 1024  # bytes of a weight that stays in its graph
PAGE = 4096  # a weight starts at a multiple of it, so that it can be mapped


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        folder: where it lies.
        difference: the largest from torch, over all checked scores, shares and attention.
        size: bytes of all its files.
    """

    folder: Path
    difference: float
    size: int

    def __str__(self) -> str:
        """How exact it is, and where."""
        return (
            f"largest difference from torch {self.difference:.0e}\n"
            f"wrote {self.size / 1e6:,.1f} MB to {self.folder}"
        )


class ScoresGraph(nn.Module):
    """A model's scores of a domain, as a graph computes them."""

    def __init__(self, model: Model, domain: int) -> None:
        super().__init__()
        self.model, self.domain = model, domain

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, C), see `Model.scores`."""
        return self.model.scores(Batch(items, lengths), self.domain).float()


class ExplainGraph(nn.Module):
    """Where HAF-VT's scores of a domain come from, as a graph computes it."""

    def __init__(self, model: HafVt, domain: int) -> None:
        super().__init__()
        self.model, self.domain = model, domain

    def forward(self, items: Tensor, lengths: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Returns shares, (B, C, S, M), and attention, (B, S, M, T)."""
        batch = Batch(items, lengths)
        return self.model.shares(batch, self.domain, candidates).float(), self.model.attention(batch).float()


def export(
    run: str | Path,
    *,
    out: str | Path,
    item_tables: Literal["baked", "inputs"] = "baked",
    data: str | Path | Dataset | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a run as ONNX, which `recommend` and `serve` take in place of the run, without torch.

    Histories may be of any number and length. The graphs run on random histories under onnxruntime, and
    nothing is left behind unless they say what torch says to 1e-4. Pictures stay where they are.

    Example: hafvt export runs/hafvt --out exports/hafvt

    Args:
        run: the folder that train wrote.
        out: where to.
        item_tables: baked stores the items' vectors in the graphs; inputs makes them inputs, stored as .npy
            files, so that tables of the same shapes can replace them.
        data: the dataset, where it has moved since training.
        overwrite: replace a folder that exists.

    Raises:
        HafvtError: no finished run, a model that cannot be exported, or a graph that says something else.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  torch.onnx imports it late
    except ImportError as error:
        raise missing_package("export", str(error.name)) from None
    opened = open_run(run, data)
    if opened.name in UNTRACEABLE:
        able = ", ".join(name for name in MODELS if name not in UNTRACEABLE)
        raise HafvtError(f"{opened.name} cannot be exported: models that can are {able}")
    opened, item_catalog = with_added_items(opened)
    domains = item_catalog.domains
    explains = isinstance(opened.model, HafVt)
    with (
        atomic_folder(out, overwrite=overwrite) as folder,
        progress(f"export {opened.name}", len(domains) * (1 + explains) + 1, "graphs") as advance,
    ):
        tables: dict[str, np.ndarray] = {}
        with (folder / Weights.NAME).open("wb") as file:
            weights, opset = Weights(file), 0
            for number, model in enumerate(opened.models):
                suffix = f".{number}" if model is not opened.model else ""  # of a model of its own
                jobs: list[tuple[str, ScoresGraph | ExplainGraph]] = [("scores", ScoresGraph(model, number))]
                if isinstance(model, HafVt):
                    jobs.append(("explain", ExplainGraph(model, number)))
                for name, job in jobs:
                    program = traced(job)
                    if item_tables == "inputs":
                        tables |= take_tables(program.graph, domains[-1].stop, suffix)
                    weights.take(program.graph)
                    onnx_ir.save(program, folder / f"{name}{number}.onnx")
                    opset = program.opset_imports[""]
                    advance(1)
        if item_tables == "inputs" and not tables:
            raise HafvtError(f"{opened.name} has no table over all items: leave out --item-tables inputs")
        for name, table in tables.items():
            np.save(folder / f"{name}.npy", table, allow_pickle=False)
        item_catalog.table.write_parquet(folder / "items.parquet")
        np.save(folder / "train_counts.npy", item_catalog.train_counts, allow_pickle=False)
        write_index(folder, opened, item_catalog, sorted(tables), opset)
        difference = largest_difference(OnnxScorer(folder), TorchScorer(opened))
        if not difference <= TOLERANCE:  # NaN, too
            raise HafvtError(
                f"the graphs of {opened.folder} differ from torch by {difference:.0e}, more than "
                f"{TOLERANCE:.0e}, so nothing was written: serve the run itself"
            )
        advance(1)
        size = sum(path.stat().st_size for path in folder.iterdir())
    return Exported(Path(out), difference, size)


def traced(job: ScoresGraph | ExplainGraph) -> Any:
    """Returns a module as a program of ONNX, for batches and histories of any size.

    Raises:
        HafvtError: it cannot be traced.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    longest = job.model.max_length
    batch, candidates = Dim("batch", min=1), Dim("candidates", min=1)
    items = torch.zeros(3, min(5, longest), dtype=torch.int64)
    history = {0: batch, 1: Dim("length", min=1, max=longest)} if longest > 1 else {0: batch}
    inputs: dict[str, Tensor] = {"items": items, "lengths": torch.ones(3, dtype=torch.int64)}
    shapes: dict[str, Any] = {"items": history, "lengths": {0: batch}}
    if isinstance(job, ExplainGraph):
        first = job.model.domains[job.domain].start
        inputs["candidates"] = torch.full((3, 2), first)
        shapes["candidates"] = {0: batch, 1: candidates}
    try:
        with torch.no_grad(), quiet():
            found = torch.onnx.export(
                job, kwargs=inputs, dynamic_shapes=shapes, dynamo=True, optimize=False, verbose=False
            )
    except Exception as error:  # whatever torch stumbles over
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise HafvtError(f"torch cannot export this model ({reason}): serve the run itself") from error
    assert found is not None
    ClearMetadataAndDocStringPass()(found.model)  # which tell of paths on this machine
    return found.model


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what torch says of its own ways while it traces."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it misses torchvision
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def take_tables(graph: Any, items: int, suffix: str) -> dict[str, np.ndarray]:
    """Makes a graph's tables of items, weights with a vector for each item, its inputs.

    Returns:
        The tables by the names of the inputs.
    """
    found = {}
    for key, value in list(graph.initializers.items()):
        shape = value.const_value.shape
        if (
            len(shape) == 2
            and shape[0] == items
            and key.startswith("model.")
            and not key.startswith(OF_TRAINING)
        ):
            del graph.initializers[key]
            value.name = key.removeprefix("model.") + suffix
            found[value.name] = value.const_value.numpy()
            value.const_value = None
            graph.inputs.append(value)
    return found


class Weights:
    """The file of weights that all graphs share; equal ones are written once."""

    NAME = "weights.bin"

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.places: dict[bytes, int] = {}

    def take(self, graph: Any) -> None:
        """Moves a graph's weights to the file."""
        import onnx_ir

        for key, value in graph.initializers.items():
            array = np.ascontiguousarray(value.const_value.numpy())
            if array.nbytes > SMALL:
                value.const_value = onnx_ir.ExternalTensor(
                    self.NAME,
                    self.add(array),
                    array.nbytes,
                    value.const_value.dtype,
                    shape=value.const_value.shape,
                    name=key,
                    base_dir=Path(self.file.name).parent,
                )

    def add(self, array: np.ndarray) -> int:
        """Returns where the bytes of an array start in the file."""
        key = hashlib.sha256(array.data).digest()
        if key not in self.places:
            self.file.write(bytes(-self.file.tell() % PAGE))
            self.places[key] = self.file.tell()
            self.file.write(array.data)
        return self.places[key]


def write_index(folder: Path, run: Run, catalog: ItemCatalog, tables: list[str], opset: int) -> None:
    """Writes export.json, which says what the other files are."""
    scorer = TorchScorer(run)
    packages = ("hafvt", "torch", "onnx", "onnxscript", "onnxruntime")
    about = {
        "format": FORMAT,
        "model": run.name,
        "config": run.config.model_dump(mode="json"),
        "domains": [{"name": d.name, "start": d.start, "stop": d.stop} for d in catalog.domains],
        "max_length": scorer.max_length,
        "sequence_names": scorer.sequence_names,
        "modalities": scorer.modalities,
        "item_tables": tables,
        "image_root": str(catalog.image_root) if catalog.image_root else None,
        "added_image_roots": {str(i): str(root) for i, root in catalog.added_image_roots.items()},
        "opset": opset,
        "versions": {name: version(name) for name in packages},
        "sha256": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }
    write_json(folder / MANIFEST, about)


def largest_difference(one: Scorer, other: Scorer) -> float:
    """Returns by how much two scorers differ at most over random histories, NaN where one alone has NaN."""
    found = [0.0]
    for domain, among in enumerate(one.domains):
        for histories in random_histories(one.domains, one.max_length):
            items, lengths = pad_histories(histories)
            found.append(difference(one.scores(items, lengths, domain), other.scores(items, lengths, domain)))
            if one.can_explain:
                candidates = np.unique(np.linspace(among.start, among.stop - 1, 7).astype(np.int64))
                told = [scorer.explain(histories[0], domain, candidates) for scorer in (one, other)]
                found += [difference(a, b) for a, b in zip(*told, strict=True)]
    return float(np.max(found))


def difference(one: Float32, other: Float32) -> float:
    """Returns the largest difference of two arrays; equal infinities have none."""
    if one.shape != other.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(one == other, 0, np.abs(one - other)), initial=0))


def random_histories(domains: tuple[Domain, ...], longest: int) -> Iterator[list[Int64]]:
    """Yields batches of histories: one and many, short and long, of all domains and of one alone."""
    random, last = np.random.default_rng(0), domains[-1].stop
    for length in sorted({1, 2, longest // 2, longest} & set(range(1, longest + 1))):
        yield [random.integers(last, size=length)]
        yield [random.integers(domain.start, domain.stop, size=length) for domain in domains]
    yield [random.integers(last, size=length) for length in random.integers(1, longest + 1, size=9)]
