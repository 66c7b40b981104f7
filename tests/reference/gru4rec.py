"""GRU4Rec's equations in plain numpy and float64, one history at a time."""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def states(history, items, layers):
    """The state after each item; a layer is (W_ih, W_hh, b_ih, b_hh), rows r, z, n; reset after product."""
    inputs = items[history]
    for w_ih, w_hh, b_ih, b_hh in layers:
        h, outputs = np.zeros(w_hh.shape[1]), []
        for x in inputs:
            i_r, i_z, i_n = np.split(w_ih @ x + b_ih, 3)
            h_r, h_z, h_n = np.split(w_hh @ h + b_hh, 3)
            r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
            h = (1 - z) * np.tanh(i_n + r * h_n) + z * h
            outputs.append(h)
        inputs = np.array(outputs)
    return inputs


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def catalog_loss(histories, items, bias, layers, domains):
    losses = []
    for history in histories:
        for h, target in zip(states(history[:-1], items, layers), history[1:], strict=True):
            start, stop = next((a, b) for a, b in domains if a <= target < b)
            logits = items[start:stop] @ h + bias[start:stop]
            losses.append(-log_softmax(logits)[target - start])
    return np.mean(losses)


def sampled_loss(histories, items, bias, layers, samples, popularity, kind, alpha, logq, bpreg, elu):
    """Step by step: the histories that are still running, their targets, and the samples items."""
    all_states = [states(history[:-1], items, layers) for history in histories]
    losses = []
    for step in range(max(map(len, all_states))):
        running = [n for n, s in enumerate(all_states) if step < len(s)]
        targets = [histories[n][step + 1] for n in running]
        columns = np.array([*targets, *samples])
        q = np.array([*popularity[targets], *(popularity[samples] ** alpha)])
        for row, n in enumerate(running):
            scores = items[columns] @ all_states[n][step] + bias[columns]
            if kind == "cross-entropy":
                losses.append(-log_softmax(scores - logq * np.log(np.maximum(q, 1e-24)))[row])
                continue
            if elu:
                scores = np.where(scores > 0, scores, elu * (np.exp(scores) - 1))
            others = np.delete(scores, row)
            weight = np.exp(log_softmax(others))
            wins = (weight * sigmoid(scores[row] - others)).sum()
            losses.append(-np.log(wins + 1e-24) + bpreg * (weight * others**2).sum())
    return np.mean(losses)
