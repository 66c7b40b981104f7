"""SASRec of RePlay: its model and its loss, driven by a bare loop."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from common import (
    BATCH,
    BLOCKS,
    DROPOUT,
    HEADS,
    LENGTH,
    RATE,
    WIDTH,
    K,
    Meter,
    arguments,
    left_padded,
    read,
    write,
)
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.sequential import SasRec


def build(
    items: int, width: int, blocks: int, heads: int, dropout: float, length: int, content_width: int = 0
) -> SasRec:
    """Return the library's model; item number `items` is padding.

    With a `content_width`, a projection of the items' frozen vectors is added to the embeddings of its
    inputs.
    """
    sequence = {"is_seq": True, "embedding_dim": width}
    features = [
        TensorFeatureInfo(
            "item_id",
            feature_type=FeatureType.CATEGORICAL,
            padding_value=items,
            cardinality=items,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
            **sequence,
        )
    ]
    if content_width:
        features.append(
            TensorFeatureInfo(
                "content",
                feature_type=FeatureType.NUMERICAL_LIST,
                tensor_dim=content_width,
                feature_sources=[TensorFeatureSource(FeatureSource.ITEM_FEATURES, "content")],
                **sequence,
            )
        )
    return SasRec.from_params(
        TensorSchema(features),
        embedding_dim=width,
        num_heads=heads,
        num_blocks=blocks,
        max_sequence_length=length,
        dropout=dropout,
    )


def feature_tensors(items: torch.Tensor, content: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return what the model reads of items, (B, T); `content` has their frozen vectors and one of padding."""
    return {"item_id": items} if content is None else {"item_id": items, "content": content[items]}


def train_epoch(
    model: SasRec,
    optimizer: torch.optim.Optimizer,
    rows: list[np.ndarray],
    random: np.random.Generator,
    *,
    batch: int,
    length: int,
    padding: int,
    content: torch.Tensor | None = None,
) -> None:
    """Train one pass over the sequences in a random order."""
    model.train()
    order = random.permutation(len(rows))
    for cut in range(0, len(order), batch):
        table = torch.from_numpy(
            left_padded([rows[n] for n in order[cut : cut + batch]], length + 1, padding)
        )
        inputs, labels = table[:, :-1], table[:, 1:, None]
        mask = inputs != padding
        optimizer.zero_grad()
        values = model(
            feature_tensors(inputs, content),
            mask,
            positive_labels=labels,
            target_padding_mask=mask[..., None],
        )
        values["loss"].backward()
        optimizer.step()


def score(
    model: SasRec, rows: list[np.ndarray], length: int, padding: int, content: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the scores of all items after each history, (B, items); the model is in evaluation mode."""
    inputs = torch.from_numpy(left_padded(rows, length, padding))
    return model(feature_tensors(inputs, content), inputs != padding)["logits"]


def main() -> None:
    options = arguments()
    log = read(options.log)
    torch.manual_seed(0)
    model = build(log.items, WIDTH, BLOCKS, HEADS, DROPOUT, LENGTH)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    random = np.random.default_rng(0)
    with Meter() as training:
        for _ in range(options.passes):
            train_epoch(model, optimizer, log.train, random, batch=BATCH, length=LENGTH, padding=log.items)
    with Meter() as ranking, torch.inference_mode():
        model.eval()
        tops = []
        for cut in range(0, len(log.history), 256):
            scores = score(model, log.history[cut : cut + 256], LENGTH, log.items)
            tops.append(scores.topk(K).indices.numpy())
            del scores  # so that the next batch has its memory
    top = np.concatenate(tops)
    write(options.out, log, options.passes, training, ranking, top, f"replay-rec {version('replay-rec')}")


if __name__ == "__main__":
    main()
