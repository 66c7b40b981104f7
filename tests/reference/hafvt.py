"""HAF-VT and the paper's literal equations in plain numpy and float64, one history at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Weights:
    """The numbers of a model, and which equations it uses.

    Attributes:
        domains: (start, stop) of each domain.
        embeddings: by modality, embeddings of all items as candidates, ids of unit length, (V, d).
        is_cold: (V,) bool.
        is_id: by modality.
        state: (sequence number, items) -> last state of each modality's branch.
        sequences: numbers of the sequences that the model reads; D is the merged sequence.
        modality_weights: by sequence number, the weights of (7).
        temperature: divides cosines.
        lambda1: weight of other domains' sequences.
        lambda2: weight of the merged sequence.
        discount_factor: factor r on items of the history.
        renormalized: whether (10) takes the merged sequence's softmax over the ranked domain.
        cold_boost: by modality, the factor on probabilities of cold items.
    """

    domains: list[tuple[int, int]]
    embeddings: list[np.ndarray]
    is_cold: np.ndarray
    state: object
    sequences: list[int]
    modality_weights: dict[int, np.ndarray]
    temperature: float
    lambda1: float
    lambda2: float
    discount_factor: float
    renormalized: bool
    cold_boost: list[float]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(rows, layer):
    """(1), (3): rows (t, d) -> H (t, d), causal."""
    q, k, v = np.split(rows @ layer["qkv.weight"].T + layer["qkv.bias"], 3, axis=1)
    z = q @ k.T / np.sqrt(q.shape[1])
    z[np.triu_indices(len(rows), 1)] = -np.inf
    return softmax(z) @ v


def layer_norm(x, w, name):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def encoder(x, w, blocks, heads):
    """(t, d) -> (t, d): causal pre-norm blocks with relative position bias."""
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    x = layer_norm(x, w, "input_norm")
    distance = np.maximum(np.arange(len(x))[:, None] - np.arange(len(x)), 0)  # (t, t)
    for name in [*(f"earlier_blocks.{n}" for n in range(blocks - 1)), "last_block"]:
        q, k, v = np.split(linear(layer_norm(x, w, f"{name}.norm1"), f"{name}.qkv"), 3, axis=1)
        outputs = []
        for number, head in enumerate(np.split(np.arange(x.shape[1]), heads)):
            z = q[:, head] @ k[:, head].T / np.sqrt(len(head)) + 10 * w[f"{name}.distances"][number][distance]
            z[np.triu_indices(len(x), 1)] = -np.inf
            outputs.append(softmax(z) @ v[:, head])
        x = x + linear(np.concatenate(outputs, axis=1), f"{name}.project")
        inner = linear(layer_norm(x, w, f"{name}.norm2"), f"{name}.inner")
        x = x + linear(inner * (1 + np.vectorize(math.erf)(inner / np.sqrt(2))) / 2, f"{name}.outer")
    return layer_norm(x, w, "output_norm")


def split(history, domains):
    """S^X, S^Y, ..., S^{X+Y}."""
    return [[i for i in history if start <= i < stop] for start, stop in domains] + [list(history)]


def probabilities(h, w, m, items, history):
    """(2), (4) to (6) of one branch over items: the partition is that of trained items."""
    cosine = w.embeddings[m][items] @ (h / np.linalg.norm(h))
    e = np.exp(cosine / w.temperature) * np.where(np.isin(items, history), w.discount_factor, 1.0)
    return e / e[~w.is_cold[items]].sum()


def loss(histories, w):
    """(8), (9): each term a mean over its targets, averaged over every domain as X."""
    count = len(w.domains)
    terms = []
    for s in w.sequences:
        start, stop = w.domains[s] if s < count else (0, w.domains[-1][1])
        items, nll = np.arange(start, stop), []
        for history in histories:
            sequence = split(history, w.domains)[s]
            for t, target in enumerate(sequence[1:], 1):
                if not w.is_cold[target]:
                    states = w.state(s, sequence[:t])
                    p = [probabilities(h, w, m, items, sequence[:t]) for m, h in enumerate(states)]
                    nll.append(-np.log(w.modality_weights[s] @ np.stack(p)[:, target - start]))
        weight = (1 + w.lambda1 * (count - 1)) / count if s < count else w.lambda2
        terms.append(weight * np.mean(nll) if nll else 0.0)
    return sum(terms)


def scores(history, domain, w):
    """The probability (10) of all items of a domain."""
    (start, stop), count = w.domains[domain], len(w.domains)
    total, sequences = np.zeros(stop - start), split(history, w.domains)
    for s in w.sequences:
        if not sequences[s]:
            continue
        weight = {domain: 1.0, count: w.lambda2}.get(s, w.lambda1)
        literal = s == count and not w.renormalized
        items = np.arange(w.domains[-1][1]) if literal else np.arange(start, stop)
        for m, h in enumerate(w.state(s, sequences[s])):
            p = probabilities(h, w, m, items, history)
            p = np.where(w.is_cold[items], w.cold_boost[m] * p, p)
            total += weight * w.modality_weights[s][m] * p[(items >= start) & (items < stop)]
    return total
