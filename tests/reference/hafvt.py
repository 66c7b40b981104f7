"""HAF-VT's equations in plain numpy and float64, one history at a time, written from the paper."""

from __future__ import annotations

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(F, layer):
    """(1), (3): F (t, d) -> H (t, d), causal."""
    W, b, P = layer["qkv.weight"], layer["qkv.bias"], layer.get("positions")
    x = F if P is None else F + P[: len(F)]
    q, k, v = np.split(x @ W.T + b, 3, axis=1)
    z = q @ k.T / np.sqrt(F.shape[1])
    z[np.triu_indices(len(F), 1)] = -np.inf
    h = softmax(z) @ v
    return F @ layer["own.weight"].T + h if "own.weight" in layer else h


def cosine(h, E):
    """(2), where a row of E that stands for a missing picture keeps its length below 1."""
    return E @ (h / np.linalg.norm(h))


def sequences(history, domains):
    """S^X, S^Y, ..., S^{X+Y}."""
    return [[i for i in history if start <= i < stop] for start, stop in domains] + [list(history)]


def mixture(h, tables, among, weights, tau):
    """(4)-(7): one state per modality -> P over the items `among`."""
    return sum(
        w * softmax(cosine(state, E[among]) / tau)
        for w, state, (_, E) in zip(weights, h, tables, strict=True)
    )


def loss(histories, domains, tables, layers, weights, tau, lambda1, lambda2, met):
    """(8), (9): each term a mean over its targets, each domain the X of (9) in turn."""
    total = domains[-1][1]
    sums, counts = np.zeros(len(domains) + 1), np.zeros(len(domains) + 1)
    for history in histories:
        for s, sequence in enumerate(sequences(history, domains)):
            if layers[s] is None:
                continue
            among = np.arange(*domains[s]) if s < len(domains) else np.arange(total)
            among = among[met[among]]
            for t in range(len(sequence) - 1):
                if not met[sequence[t + 1]]:
                    continue
                h = [
                    attention(inputs[sequence[: t + 1]], layer)[-1]
                    for layer, (inputs, _) in zip(layers[s], tables, strict=True)
                ]
                p = mixture(h, tables, among, weights[s], tau)
                sums[s] -= np.log(p[np.searchsorted(among, sequence[t + 1])])
                counts[s] += 1
    terms = sums / np.maximum(counts, 1)
    return np.mean(
        [
            terms[x] + lambda1 * sum(terms[y] for y in range(len(domains)) if y != x) + lambda2 * terms[-1]
            for x in range(len(domains))
        ]
    )


def with_unmet(h, tables, among, weights, tau, met, content, new_items):
    """(4)-(7) as scores are made: softmaxes over what was met; an item never met has no id.

    met: (V,) bool; content: per modality whether it is no id.
    """
    rest = sum(w for w, known in zip(weights, content, strict=True) if known)
    found = np.zeros(len(among))
    for w, state, (_, E), known in zip(weights, h, tables, content, strict=True):
        e = np.exp(cosine(state, E[among]) / tau)
        p = e / e[met[among]].sum()
        found += np.where(met[among], w * p, new_items * w / rest * p if known else 0)
    return found


def scores(history, domain, domains, tables, layers, weights, tau, lambda1, lambda2, met, content, new_items):
    """(10): scores of all items of a domain."""
    tables = [
        (inputs if known else inputs * met[:, None], E)
        for (inputs, E), known in zip(tables, content, strict=True)
    ]
    mine = np.arange(*domains[domain])
    everything = np.arange(domains[-1][1])
    found = np.zeros(len(mine))
    for s, sequence in enumerate(sequences(history, domains)):
        if not sequence or layers[s] is None:
            continue
        h = [
            attention(inputs[sequence], layer)[-1]
            for layer, (inputs, _) in zip(layers[s], tables, strict=True)
        ]
        if s == len(domains):
            found += (
                lambda2 * with_unmet(h, tables, everything, weights[s], tau, met, content, new_items)[mine]
            )
        else:
            factor = 1 if s == domain else lambda1
            found += factor * with_unmet(h, tables, mine, weights[s], tau, met, content, new_items)
    return found
