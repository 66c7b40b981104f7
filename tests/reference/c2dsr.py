"""C2DSR in plain numpy and float64, one history at a time, from scratch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tests.reference.sasrec import blocks, linear


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def transitions(histories, items, weighted):
    """The normalized adjacency of item -> next item, a dense matrix."""
    a = np.zeros((items, items))
    for history in histories:
        for item, following in pairwise(history):
            a[item, following] = a[item, following] + 1 if weighted else 1
    total = a.sum(1, keepdims=True)
    return np.divide(a, total, out=np.zeros_like(a), where=total > 0)


def encode(history, adjacency, w, name, config):
    """The state after each item, (n, d)."""
    e = w[f"{name}.items.weight"]
    layers = [e]
    for _ in range(config.graph_layers):
        layers.append(adjacency @ layers[-1] + w[f"{name}.bias"])
    table = np.sqrt(e.shape[1]) * (np.mean(layers, axis=0) + e)
    if len(history) == 0:
        return np.zeros((0, e.shape[1]))
    x = table[history] + w[f"{name}.positions.weight"][: len(history)][::-1]
    return blocks(x, np.ones(len(history), dtype=bool), w, f"{name}.", config.blocks, config.heads)


def part(history, domain):
    return [item for item in history if domain.start <= item < domain.stop]


def latest(states, width):
    return states[-1] if len(states) else np.zeros(width)


def logits(history, number, domains, graphs, w, config):
    """W (h + h_d) + b of all items of a domain, and W h + b, after the whole history."""
    return logits_after(history, len(history), number, domains, graphs, w, config)


def logits_after(history, length, number, domains, graphs, w, config):
    """The same after the first items of a history; positions count from the latest item of the history."""
    merged = latest(encode(history, graphs[0], w, "merged", config)[:length], config.width)
    own = encode(part(history, domains[number]), graphs[1], w, f"own.{number}", config)
    own = latest(own[: len(part(history[:length], domains[number]))], config.width)
    return linear(merged + own, w, f"outputs.{number}"), linear(merged, w, f"outputs.{number}")


def loss(histories, corrupted_histories, domains, graphs, w, config):
    """The whole objective.

    `corrupted_histories[number][row]` is the input of a history with the items of a domain replaced.
    """
    cross, single = [], []
    for history in histories:
        for length in range(1, len(history)):
            target = history[length]
            number = next(n for n, d in enumerate(domains) if d.start <= target < d.stop)
            both, merged = logits_after(history[:-1], length, number, domains, graphs, w, config)
            for losses, z in ((single, both), (cross, merged)):
                losses.append(-np.log(softmax(z)[target - domains[number].start]))
    infomax = 0.0
    for number, domain in enumerate(domains):
        losses = []
        for history, corrupted in zip((h[:-1] for h in histories), corrupted_histories[number], strict=True):
            others = [slot for slot, i in enumerate(history) if not domain.start <= i < domain.stop]
            mine = part(history, domain)
            if not mine or not others:
                continue
            s = encode(mine, graphs[1], w, f"own.{number}", config).mean(0)
            discriminated = []
            for items in (history, corrupted):
                z = encode(items, graphs[0], w, "merged", config)[others].mean(0)
                d = s @ w[f"discriminators.{number}.weight"][0] @ z + w[f"discriminators.{number}.bias"][0]
                discriminated.append(1 / (1 + np.exp(-d)))
            losses.append(-np.log(discriminated[0]) - np.log(1 - discriminated[1]))
        infomax += np.mean(losses) if losses else 0.0
    prediction = np.mean(cross) + np.mean(single)
    return config.prediction_weight * prediction + (1 - config.prediction_weight) * infomax
