"""SASRec as its authors' code computes it, in plain numpy and float64: left-padded rows of fixed length."""

from __future__ import annotations

import numpy as np

PAD = -1
MASKED = -(2.0**32) + 1


def norm(x, w, name):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / (variance + 1e-8) ** 0.5 * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attention(queries, keys, w, name, heads, valid):
    """Multi-head attention of the authors' `modules.py`: key mask, causal mask, residual of the query."""
    d = queries.shape[1]
    q, k, v = (
        linear(x, w, f"{name}.{part}") for x, part in ((queries, "query"), (keys, "key"), (keys, "value"))
    )
    heads_out = []
    for head in np.split(np.arange(d), heads):
        z = q[:, head] @ k[:, head].T / len(head) ** 0.5
        z = np.where(valid[None, :], z, MASKED)
        z = np.where(np.tril(np.ones_like(z)) == 0, MASKED, z)
        e = np.exp(z - z.max(1, keepdims=True))
        heads_out.append(e / e.sum(1, keepdims=True) @ v[:, head])
    heads_out = np.concatenate(heads_out, axis=1)
    if f"{name}.project.weight" in w:
        heads_out = linear(heads_out, w, f"{name}.project")
    return heads_out + queries


def blocks(x, valid, w, prefix, count, heads):
    """The stack of blocks with its masks and the last normalization, (L, d) -> (L, d)."""
    x = x * valid[:, None]
    for name in (f"{prefix}blocks.{n}" for n in range(count)):
        y = norm(attention(norm(x, w, f"{name}.norm1"), x, w, name, heads, valid), w, f"{name}.norm2")
        x = (linear(np.maximum(linear(y, w, f"{name}.inner"), 0), w, f"{name}.outer") + y) * valid[:, None]
    return norm(x, w, f"{prefix}norm")


def states(history, w, length, count, heads):
    """The state after each item of a history, (n, d)."""
    row = np.array([PAD] * (length - len(history)) + list(history))
    valid = row != PAD
    e = np.where(valid[:, None], w["items.weight"][row], 0.0)
    x = e * e.shape[1] ** 0.5 + w["positions.weight"][::-1]
    return blocks(x, valid, w, "", count, heads)[valid]


def binary_loss(history, negatives, w, length, count, heads):
    """The sum of the losses at every item that has a next one."""
    h = states(history[:-1], w, length, count, heads)
    total = 0.0
    for state, target, other in zip(h, history[1:], negatives, strict=True):
        positive, negative = (1 / (1 + np.exp(-state @ w["items.weight"][i])) for i in (target, other))
        total -= np.log(positive + 1e-24) + np.log(1 - negative + 1e-24)
    return total
