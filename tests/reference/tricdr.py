"""Tri-CDR in plain numpy and float64, one prefix at a time, from scratch."""

from __future__ import annotations

from math import erf

import numpy as np


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x, w, name):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def sasrec(items, w, name, blocks, heads):
    """The state after each item, (T, d)."""
    d = w[f"{name}.items.weight"].shape[1]
    if len(items) == 0:
        return np.zeros((0, d))
    x = norm(w[f"{name}.items.weight"][items], w, f"{name}.enter")
    x = x + w[f"{name}.positions.weight"][: len(items)][::-1]
    for block in (f"{name}.blocks.{n}" for n in range(blocks)):
        q, k, v = np.split(linear(norm(x, w, f"{block}.norm1"), w, f"{block}.qkv"), 3, axis=1)
        attended = np.zeros_like(x)
        for head in np.split(np.arange(d), heads):
            for t in range(len(x)):
                weight = softmax(k[: t + 1, head] @ q[t, head] / np.sqrt(len(head)))
                attended[t, head] = weight @ v[: t + 1, head]
        x = x + linear(attended, w, f"{block}.project")
        x = x + linear(gelu(linear(norm(x, w, f"{block}.norm2"), w, f"{block}.inner")), w, f"{block}.outer")
    return norm(x, w, f"{name}.norm")


def split(history, border):
    """The items of either domain, numbered from 0 within it."""
    return [i for i in history if i < border], [i - border for i in history if i >= border]


def attend(states, q, mean, w, name):
    scores = []
    for f in states:
        x = linear(np.concatenate([f, q, f * q, q - f, mean]), w, f"{name}.first")
        x = linear(np.where(x > 0, x, w[f"{name}.prelu1.weight"] * x), w, f"{name}.second")
        scores.append(linear(np.where(x > 0, x, w[f"{name}.prelu2.weight"] * x), w, f"{name}.third")[0])
    return softmax(np.array(scores)) @ states if len(states) else np.zeros(len(q))


def triple(history, length, domain, w, border, config):
    """M~, S~, G~ after the first items of a history, (3, d); positions count from its latest item."""
    m = sasrec(history, w, "mixed", config.blocks, config.heads)[:length]
    own = []
    for n, (part, prefix) in enumerate(
        zip(split(history, border), split(history[:length], border), strict=True)
    ):
        own.append(sasrec(part, w, f"own.{n}", config.blocks, config.heads)[: len(prefix)])
    s, g = own[1 - domain], own[domain]
    q = g[-1] if len(g) else np.zeros(config.width)
    mean = m.mean(0) if len(m) else np.zeros(config.width)
    return np.array([attend(f, q, mean, w, f"directions.{domain}.attention") for f in (m, s, g)])


def user(history, domain, w, border, config, length=None):
    """The user's vector after the first items of a history, by default all of them; of unit length."""
    length = len(history) if length is None else length
    x = linear(triple(history, length, domain, w, border, config).ravel(), w, f"directions.{domain}.fuse.0")
    u = linear(np.where(x > 0, x, 0.01 * x), w, f"directions.{domain}.fuse.2")
    return u / np.linalg.norm(u)


def logits(history, domain, w, border, config, length=None):
    table = w[f"own.{domain}.items.weight"]
    cosines = table @ user(history, domain, w, border, config, length) / np.linalg.norm(table, axis=1)
    return cosines / config.temperature


def nt_xent(a, b, temperature):
    views = [z / np.linalg.norm(z) for z in (*a, *b)]
    losses = []
    for i, view in enumerate(views):
        partner = (i + len(a)) % len(views)
        others = sum(np.exp(view @ z / temperature) for j, z in enumerate(views) if j != i)
        losses.append(-np.log(np.exp(view @ views[partner] / temperature) / others))
    return np.mean(losses)


def contrast(prefixes, domain, w, border, config):
    """TCL of those prefixes, one a history with its length, that have items of both domains."""
    rows = []
    for history, length in prefixes:
        if all(split(history[:length], border)):
            row = []
            for k, x in enumerate(triple(history, length, domain, w, border, config)):
                hidden = np.maximum(linear(x, w, f"directions.{domain}.heads.{k}.0"), 0)
                row.append(linear(hidden, w, f"directions.{domain}.heads.{k}.2"))
            rows.append(row)
    if not rows:
        return 0.0
    m, s, g = np.array(rows).transpose(1, 0, 2)
    t, rates = config.contrast_temperature, np.array(config.contrast_rates)
    similarity = rates / rates.sum() @ [nt_xent(m, s, t), nt_xent(m, g, t), nt_xent(s, g, t)]
    to_mixed, to_target = (np.linalg.norm(s - z + 1e-6, axis=1) for z in (m, g))  # torch adds 1e-6, too
    order = np.maximum(to_mixed - to_target + config.triplet_margin, 0).mean()
    return config.contrast_weight * similarity + config.triplet_weight * order


def loss(histories, w, border, config):
    """The full objective over every prefix of each history."""
    losses, latest = [], [{}, {}]
    for row, history in enumerate(histories):
        for length in range(1, len(history)):
            target = history[length]
            domain = int(target >= border)
            z = logits(history[:-1], domain, w, border, config, length)
            losses.append(-np.log(softmax(z)[target - domain * border]))
            latest[domain][row] = history[:-1], length
    return np.mean(losses) + sum(contrast(latest[n].values(), n, w, border, config) for n in range(2)) / 2


def encoder_loss(histories, w, border, config):
    """The sum of the three encoders' mean cross-entropies."""
    total = 0.0
    sequences = {"mixed": histories}
    for n in range(2):
        sequences[f"own.{n}"] = [split(history, border)[n] for history in histories]
    for name, rows in sequences.items():
        losses = []
        for items in rows:
            h = sasrec(items[:-1], w, name, config.blocks, config.heads)
            for t in range(1, len(items)):
                losses.append(-np.log(softmax(w[f"{name}.items.weight"] @ h[t - 1])[items[t]]))
        total += np.mean(losses) if losses else 0.0
    return total
