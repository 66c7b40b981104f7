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


def main() -> None:
    options = arguments()
    log = read(options.log)
    torch.manual_seed(0)
    feature = TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=WIDTH,
        padding_value=log.items,
        cardinality=log.items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
    model = SasRec.from_params(
        TensorSchema([feature]),
        embedding_dim=WIDTH,
        num_heads=HEADS,
        num_blocks=BLOCKS,
        max_sequence_length=LENGTH,
        dropout=DROPOUT,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    random = np.random.default_rng(0)
    with Meter() as training:
        model.train()
        for _ in range(options.passes):
            order = random.permutation(len(log.train))
            for cut in range(0, len(order), BATCH):
                rows = [log.train[n] for n in order[cut : cut + BATCH]]
                table = torch.from_numpy(left_padded(rows, LENGTH + 1, log.items))
                inputs, labels = table[:, :-1], table[:, 1:, None]
                mask = inputs != log.items
                optimizer.zero_grad()
                values = model(
                    {"item_id": inputs},
                    mask,
                    positive_labels=labels,
                    target_padding_mask=mask[..., None],
                )
                values["loss"].backward()
                optimizer.step()
    with Meter() as ranking, torch.inference_mode():
        model.eval()
        tops = []
        for cut in range(0, len(log.history), 256):
            rows = log.history[cut : cut + 256]
            inputs = torch.from_numpy(left_padded(rows, LENGTH, log.items))
            values = model({"item_id": inputs}, inputs != log.items)
            tops.append(values["logits"].topk(K).indices.numpy())
    top = np.concatenate(tops)
    write(options.out, log, options.passes, training, ranking, top, f"replay-rec {version('replay-rec')}")


if __name__ == "__main__":
    main()
