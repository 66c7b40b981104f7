"""HAF-VT's equations in plain numpy and float64, one history at a time, written from the paper."""

from __future__ import annotations

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(F, layer):
    """(1), (3): F (t, d) -> H (t, d), causal."""
    W, b, P = layer["qkv.weight"], layer["qkv.bias"], layer.get("positions")
    x = F if P is None else F + P[: len(F)]
    q, k, v = np.split(x @ W.T + b, 3, axis=1)
    z = q @ k.T / np.sqrt(q.shape[1])
    z[np.triu_indices(len(F), 1)] = -np.inf
    h = softmax(z) @ v
    return F @ layer["own.weight"].T + h if "own.weight" in layer else h


def norm(x, w, name):
    centerd = x - x.mean(-1, keepdims=True)
    return (
        centerd / np.sqrt((centerd**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]
        + w[f"{name}.bias"]
    )


def encoder(x, w, blocks, heads):
    """(t, d) -> (t, d): causal pre-norm blocks, as SASRec's."""
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    x = norm(x, w, "enter")
    x = x + w["positions"][: len(x)] if "positions" in w else x
    for name in [*(f"earlier.{n}" for n in range(blocks - 1)), "latest"]:
        q, k, v = np.split(linear(norm(x, w, f"{name}.norm1"), f"{name}.qkv"), 3, axis=1)
        found = []
        back = np.maximum(np.arange(len(x))[:, None] - np.arange(len(x)), 0)  # how far, (t, t)
        for number, head in enumerate(np.split(np.arange(x.shape[1]), heads)):
            z = q[:, head] @ k[:, head].T / np.sqrt(len(head))
            if f"{name}.distances" in w:
                z += 10 * w[f"{name}.distances"][number][back]
            z[np.triu_indices(len(x), 1)] = -np.inf
            found.append(softmax(z) @ v[:, head])
        x = x + linear(np.concatenate(found, axis=1), f"{name}.project")
        inner = linear(norm(x, w, f"{name}.norm2"), f"{name}.inner")
        gelu = inner * (1 + np.vectorize(math.erf)(inner / np.sqrt(2))) / 2
        x = x + linear(gelu, f"{name}.outer")
    return norm(x, w, "norm")


def branch_states(sequence, tables, layers, encoders, s):
    """The last state of each modality's branch of sequence number s."""
    if encoders is None:
        pairs = zip(tables, layers[s], strict=True)
        return [attention(inputs[sequence], layer)[-1] for (inputs, _), layer in pairs]
    entering, weights, blocks, heads = encoders
    state = encoder(entering[sequence], weights[s], blocks, heads)[-1]
    return [state @ head["weight"].T + head["bias"] if head else state for head in layers[s]]


def cosine(h, E):
    """(2), where a row of E that stands for a missing picture keeps its length below 1."""
    return E @ (h / np.linalg.norm(h))


def sequences(history, domains):
    """S^X, S^Y, ..., S^{X+Y}."""
    return [[i for i in history if start <= i < stop] for start, stop in domains] + [list(history)]


def counted(sequence, among, again):
    """How much each item of `among` counts: those of the sequence `again` times."""
    return np.where(np.isin(among, sequence), again, 1.0)


def mixture(h, tables, among, weights, tau, counts):
    """(4)-(7): one state per modality -> P over the items `among`."""
    found = np.zeros(len(among))
    for w, state, (_, E) in zip(weights, h, tables, strict=True):
        e = counts * np.exp(cosine(state, E[among]) / tau)
        found += w * e / e.sum()
    return found


def loss(histories, domains, tables, layers, encoders, again, weights, tau, lambda1, lambda2, met):
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
                h = branch_states(sequence[: t + 1], tables, layers, encoders, s)
                p = mixture(h, tables, among, weights[s], tau, counted(sequence[: t + 1], among, again))
                sums[s] -= np.log(p[np.searchsorted(among, sequence[t + 1])])
                counts[s] += 1
    terms = sums / np.maximum(counts, 1)
    return np.mean(
        [
            terms[x] + lambda1 * sum(terms[y] for y in range(len(domains)) if y != x) + lambda2 * terms[-1]
            for x in range(len(domains))
        ]
    )


def with_unmet(h, tables, among, weights, tau, counts, met, content, new_items):
    """(4)-(7) as scores are made: softmaxes over what was met; an item never met has no id.

    met: (V,) bool; content: per modality whether it is no id.
    """
    rest = sum(w for w, known in zip(weights, content, strict=True) if known)
    found = np.zeros(len(among))
    for w, state, (_, E), known in zip(weights, h, tables, content, strict=True):
        e = counts * np.exp(cosine(state, E[among]) / tau)
        p = e / e[met[among]].sum()
        found += np.where(met[among], w * p, new_items * w / rest * p if known else 0)
    return found


def scores(
    history,
    domain,
    domains,
    tables,
    layers,
    encoders,
    again,
    weights,
    tau,
    lambda1,
    lambda2,
    met,
    content,
    new_items,
    renormalized,
):
    """(10): scores of all items of a domain; what the history has counts `again` times in every branch.

    renormalized: whether the merged sequence's softmax is over that domain, or over everything.
    """
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
        h = branch_states(sequence, tables, layers, encoders, s)
        rank_targets = everything if s == len(domains) and not renormalized else mine
        rest = tau, counted(history, rank_targets, again), met, content, new_items
        p = with_unmet(h, tables, rank_targets, weights[s], *rest)
        lambdas = {domain: 1, len(domains): lambda2}
        found += lambdas.get(s, lambda1) * p[np.isin(rank_targets, mine)]
    return found
