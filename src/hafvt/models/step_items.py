"""The items that a training step of HAF-VT reads from the tables of `ItemEmbeddings`.

A `StepReader` reads them in one of three ways:

* `ExactReader`: softmaxes over all trained items. The tables are read whole.
* `ShardedReader`: the same softmaxes, where each process holds a slice of the tables.
* `SampledReader`: softmaxes estimated from a sample of items. Only rows of the step's items are read.

Shapes: S sequences of B histories with at most T items and N targets; M modalities, width d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from hafvt.features.item_features import ItemFeatures
from hafvt.models.configs import HafVtConfig
from hafvt.models.item_embeddings import ItemEmbeddings
from hafvt.models.sequences import TrainTargets
from hafvt.ops.embedding import distinct_rows, embedding_lookup
from hafvt.ops.sampled_softmax import ItemSample, cumulative_weights, popularity_weights, sample_items
from hafvt.ops.shards import RowExchange, Shard


class StepItems(NamedTuple):
    """What a training step reads of the items: inputs of the encoders, and tables of the softmaxes."""

    inputs: list[Tensor]
    """S (B, T, id_width) input embeddings of the items of the sequences."""
    content_vectors: dict[str, Tensor]
    """(R, d) frozen vectors of R items, by content modality."""
    content_rows: list[Tensor]
    """S (B, T) the row of each item of the sequences in `content_vectors`."""
    tables: list[Tensor]
    """M (V', d) vectors of the items of the softmaxes; with `shard`, this process's slices of them."""
    targets: list[Tensor]
    """S (N,) the row of each target in the whole `tables`."""
    candidates: list[slice]
    """S ranges of rows of `tables`, over which the softmaxes of a sequence sum."""
    shard: Shard | None = None
    """The rows of the whole `tables` that this process has; None for all."""
    samples: Sequence[ItemSample] = ()
    """S samples of rows, from which the softmaxes are estimated; none for exact softmaxes."""
    seen_items: Sequence[Tensor] = ()
    """With samples, S (N, T) rows of the items in the history before each target; -1 for none."""


class StepReader(Protocol):
    """Reads the items of a training step."""

    def read(self, targets: Sequence[TrainTargets]) -> StepItems:
        """Return the items for S sequences with their targets."""
        ...


def make_step_reader(items: ItemEmbeddings, item_features: ItemFeatures, config: HafVtConfig) -> StepReader:
    """Return the reader for a model's hyperparameters and shard."""
    if config.num_negatives:
        return SampledReader(items, item_features, config)
    return ExactReader(items) if items.shard is None else ShardedReader(items, items.shard)


class ExactReader:
    """Reads whole tables, for softmaxes over all trained items."""

    def __init__(self, items: ItemEmbeddings) -> None:
        self.items = items

    def read(self, targets: Sequence[TrainTargets]) -> StepItems:
        """See `StepReader`."""
        items, trained = self.items, self.items.trained
        rows = [t.inputs.items for t in targets]
        content = {name: items.content_vectors(name) for name in items.content_modalities}
        embeddings, inputs = embedding_lookup(items.input_embeddings(), *rows)
        tables = {**content, "id": embeddings}
        return StepItems(
            inputs,
            content,
            rows,
            tables=[trained.select(tables[name]) for name in items.modalities],
            targets=[trained.positions[t.targets] for t in targets],
            candidates=trained.ranges[-len(targets) :],
        )


class ShardedReader:
    """Reads slices of the tables, for softmaxes over all trained items.

    Rows of the sequences' items come from the processes that hold them.
    """

    def __init__(self, items: ItemEmbeddings, shard: Shard) -> None:
        self.items, self.shard = items, shard

    def read(self, targets: Sequence[TrainTargets]) -> StepItems:
        """See `StepReader`."""
        items, trained = self.items, self.items.trained
        assert trained.shard is not None
        item_indices, rows = distinct_rows(*(t.inputs.items for t in targets))
        exchange = RowExchange(self.shard, item_indices)
        embeddings, (requested,) = embedding_lookup(items.input_embeddings(), exchange.requested)
        slices = {name: items.content_vectors(name) for name in items.modalities if name != "id"}
        content = {name: exchange.fetch(vectors[exchange.requested]) for name, vectors in slices.items()}
        _, inputs = embedding_lookup(exchange.fetch(requested), *rows)
        slices["id"] = embeddings
        return StepItems(
            inputs,
            content,
            rows,
            tables=[slices[name].index_select(0, trained.slice_indices) for name in items.modalities],
            targets=[trained.positions[t.targets] for t in targets],
            candidates=trained.shard.ranges[-len(targets) :],
            shard=trained.shard,
        )


class SampledReader:
    """Samples `num_negatives` items for the softmaxes of each sequence, and reads only the step's rows.

    These are the rows of the sequences' items, the targets and the samples. With a shard, they come from the
    processes that hold them.
    """

    def __init__(self, items: ItemEmbeddings, item_features: ItemFeatures, config: HafVtConfig) -> None:
        self.items, self.num_negatives = items, config.num_negatives
        weights = popularity_weights(item_features.train_counts) * item_features.is_trained
        self.cumulative_weights = cumulative_weights(weights)
        domains = [slice(d.start, d.stop) for d in item_features.domains if config.hierarchy]
        self.ranges = [*domains, slice(0, len(item_features))]
        """S ranges of item indices, of which each sequence's items are sampled."""

    def read(self, targets: Sequence[TrainTargets]) -> StepItems:
        """See `StepReader`."""
        items, count, device = self.items, len(targets), targets[0].targets.device
        samples = [
            sample_items(self.cumulative_weights, candidates, self.num_negatives, device)
            for candidates in self.ranges
        ]
        indices = [t.inputs.items for t in targets], [t.targets for t in targets], [s.items for s in samples]
        item_indices, positions = distinct_rows(*(index for part in indices for index in part))
        exchange = None if items.shard is None else RowExchange(items.shard, item_indices)
        rows = item_indices if exchange is None else exchange.requested  # of this process's slice
        embeddings, content = items.input_and_content_rows(rows)
        if exchange is not None:
            embeddings = exchange.fetch(embeddings)
            content = {name: exchange.fetch(content[name]) for name in items.modalities if name != "id"}
        embeddings, inputs = embedding_lookup(embeddings, *positions[:count])
        tables = {**content, "id": embeddings}
        return StepItems(
            inputs,
            content,
            positions[:count],
            tables=[tables[name] for name in items.modalities],
            targets=positions[count : 2 * count],
            candidates=[slice(0, len(embeddings))] * count,
            samples=[s._replace(items=p) for s, p in zip(samples, positions[2 * count :], strict=True)],
            seen_items=[t.seen_items(p) for t, p in zip(targets, positions[:count], strict=True)],
        )
