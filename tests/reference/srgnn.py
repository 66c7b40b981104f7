"""SR-GNN's equations in plain numpy and float64, one history at a time, the graph as the authors build it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def session(history, w, steps, hybrid):
    """s_h of (7); w holds the weights by the module's names."""
    nodes, alias = np.unique(history, return_inverse=True)
    adjacent = np.zeros((len(nodes), len(nodes)))
    for u, v in pairwise(alias):
        adjacent[u, v] = 1
    into, out = adjacent.sum(0), adjacent.sum(1)
    a_in = (adjacent / np.where(into == 0, 1, into)).T
    a_out = (adjacent.T / np.where(out == 0, 1, out)).T
    h = w["items.weight"][nodes]
    for _ in range(steps):
        m_in = a_in @ (h @ w["edges_in.weight"].T + w["edges_in.bias"]) + w["bias_in"]
        m_out = a_out @ (h @ w["edges_out.weight"].T + w["edges_out.bias"]) + w["bias_out"]
        messages = np.concatenate([m_in, m_out], axis=1)
        i_r, i_z, i_n = np.split(messages @ w["cell.weight_ih"].T + w["cell.bias_ih"], 3, axis=1)
        h_r, h_z, h_n = np.split(h @ w["cell.weight_hh"].T + w["cell.bias_hh"], 3, axis=1)
        n = np.tanh(i_n + sigmoid(i_r + h_r) * h_n)
        h = n + sigmoid(i_z + h_z) * (h - n)
    h = h[alias]
    query = w["attention_query.weight"] @ h[-1] + w["attention_query.bias"]
    weight = (
        sigmoid(query + h @ w["attention_key.weight"].T + w["attention_key.bias"])
        @ w["attention_score.weight"][0]
    )
    s_global = (weight[:, None] * h).sum(0)
    if not hybrid:
        return s_global
    return w["combine.weight"] @ np.concatenate([s_global, h[-1]]) + w["combine.bias"]


def prefix_loss(history, length, w, steps, hybrid):
    logits = w["items.weight"] @ session(history[:length], w, steps, hybrid)
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[history[length]]
