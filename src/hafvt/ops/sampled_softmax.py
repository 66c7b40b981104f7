"""Softmax over a catalogue, estimated from a sample: for catalogues whose exact softmax takes too long.

The items are drawn once per step for all queries, with replacement, popular ones more often. An item that is
drawn with probability q stands for 1 / (count * q) like it, so its logit is lowered by log(count * q) (the
log-q correction of Bengio and Senecal, 2008), and the sum of the exponentials is right on average. The target
always takes part, once, as itself. The logits of the sample, (N, count), are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.ops.catalogue_softmax import Ask, without

POWER = 0.75  # of the popularity: between uniform and as popular


class Sample(NamedTuple):
    """Drawn items.

    Attributes:
        items: (count,) row numbers of the whole table.
        log_rate: (count,) log of how often each is drawn on average.
    """

    items: Tensor
    log_rate: Tensor


def draw(popularity: Tensor, among: slice, count: int) -> Sample:
    """Draws from a part of the catalogue, with replacement, by torch's generator.

    Args:
        popularity: (V,) how often each item was chosen in training.
        among: the part, start:stop.
        count: how many.
    """
    weight = (popularity[among].float() + 1) ** POWER
    items = torch.multinomial(weight, count, replacement=True)
    return Sample(items + among.start, (count * weight[items] / weight.sum()).log())


def sampled_log_probabilities(
    asks: Sequence[Ask],
    samples: Sequence[Sample],
    table: Tensor,
    scale: float | Tensor = 1.0,
    *,
    unit: bool = False,
) -> list[Tensor]:
    """Returns estimates of `target_log_probabilities`, with their gradients.

    Args:
        asks: queries and their targets.
        samples: per ask, drawn from what its softmax is over.
        table: (V, d) item vectors.
        scale: factor of the logits.
        unit: the table's rows count with unit length.

    Returns:
        One tensor (N,) per ask.
    """
    found = []
    for ask, sample in zip(asks, samples, strict=True):
        drawn, row = F.embedding(sample.items, table), F.embedding(ask.targets, table)  # (count, d), (N, d)
        if unit:
            drawn, row = F.normalize(drawn, dim=1), F.normalize(row, dim=1)
        h = ask.h.to(table.dtype) * scale
        z = (h @ drawn.T).float() - sample.log_rate  # (N, count)
        z = z.masked_fill(sample.items == ask.targets[:, None], -torch.inf)
        own = (h * row).sum(1).float()
        found.append(own - without(torch.cat([own[:, None], z], dim=1).logsumexp(1), ask.less))
    return found
