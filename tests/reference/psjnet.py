"""pi-Net (PSJNet-I) and PSJNet-II in plain numpy and float64, one prefix at a time, from scratch."""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(inputs, w, name):
    """Reset before the product; weights are (out, in) over [x; h]."""
    d = len(w[f"{name}.candidate.bias"])
    h, states = np.zeros(d), []
    for x in inputs:
        gates = sigmoid(w[f"{name}.gates.weight"] @ np.concatenate([x, h]) + w[f"{name}.gates.bias"])
        r, u = gates[:d], gates[d:]
        c = np.tanh(w[f"{name}.candidate.weight"] @ np.concatenate([x, r * h]) + w[f"{name}.candidate.bias"])
        h = u * h + (1 - u) * c
        states.append(h)
    return np.array(states).reshape(-1, d)


def encoded(history, w, border):
    """Encoder states of both domains, and for each item of a domain the other's state before it."""
    parts = [[i for i in history if i < border], [i for i in history if i >= border]]
    h = [gru(w["items.weight"][part], w, f"encoders.{n}") for n, part in enumerate(parts)]
    others = [[], []]
    seen = [0, 0]
    for item in history:
        n = int(item >= border)
        others[n].append(h[1 - n][seen[1 - n] - 1] if seen[1 - n] else np.zeros(h[n].shape[1]))
        seen[n] += 1
    return h, others


def pinet_logits(history, domain, w, border):
    h, others = encoded(history, w, border)
    n = 1 - domain  # the unit that feeds this prediction
    u = f"filters.{n}"
    d = w["items.weight"].shape[1]
    s, filtered = np.zeros(d), []
    for own, other in zip(h[n], others[n], strict=True):
        fs, cs = [], []
        for user in w[f"{u}.users"]:
            z = w[f"{u}.filter.weight"] @ np.concatenate([own, other, s]) + w[f"{u}.filter.bias"]
            fs.append(sigmoid(z + w[f"{u}.v_f.weight"] @ user))
            z = w[f"{u}.candidate.weight"] @ np.concatenate([own, s]) + w[f"{u}.candidate.bias"]
            cs.append(np.tanh(z + w[f"{u}.v_s.weight"] @ user))
        s = np.mean([f * s + (1 - f) * c for f, c in zip(fs, cs, strict=True)], axis=0)
        filtered.append(s)
    t = gru(filtered, w, f"transfers.{n}")
    state = np.concatenate(
        [t[-1] if len(t) else np.zeros(d), h[domain][-1] if len(h[domain]) else np.zeros(d)]
    )
    return w[f"outputs.{domain}.weight"] @ state + w[f"outputs.{domain}.bias"]


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def psjnet_logits(history, domain, w, border):
    h, others = encoded(history, w, border)
    n = 1 - domain
    u = f"splits.{n}"
    d, num_users = w["items.weight"].shape[1], len(w[f"{u}.users"])
    s, split = np.zeros((num_users, d)), [[] for _ in range(num_users)]
    for own, other in zip(h[n], others[n], strict=True):
        both = np.concatenate([own, other])
        f, c = [], []
        for k, user in enumerate(w[f"{u}.users"]):
            z = w[f"{u}.filter.weight"] @ np.concatenate([both, s[k]]) + w[f"{u}.filter.bias"]
            f.append(sigmoid(z + w[f"{u}.v_f.weight"] @ user))
            z = w[f"{u}.candidate.weight"] @ np.concatenate([own, s[k]]) + w[f"{u}.candidate.bias"]
            c.append(np.tanh(z + w[f"{u}.v_s.weight"] @ user))
        z = w[f"{u}.no_user.weight"] @ both + w[f"{u}.no_user.bias"]
        z = z + sum((w[f"{u}.v_n1.weight"] @ s[k]) * w[f"{u}.v_n2"][k] for k in range(num_users))
        g = sigmoid(z)
        total = sum(f) + g + 1e-10
        s = np.array([f[k] / total * c[k] + g / total * s[k] for k in range(num_users)])
        for k in range(num_users):
            split[k].append(s[k])
    t = [gru(part, w, f"transfers.{n}") for part in split]

    def match(name, hi, tj):
        w1, w2, w3 = w[f"{name}.{n}.weight"]
        return w1 @ hi + w2 @ tj + w3 @ (hi * tj)

    def best(name, vector):
        matches = [match(name, hi, vector) for hi in h[domain]]
        return max(matches) if matches else 0.0

    c = []
    for k in range(num_users):
        if len(t[k]):
            weight = softmax(np.array([best("over_time", tj) for tj in t[k]]))
            c.append(weight @ t[k])
        else:
            c.append(np.zeros(d))
    weight = softmax(np.array([best("over_users", ck) for ck in c]))
    own = h[domain][-1] if len(h[domain]) else np.zeros(d)
    state = np.concatenate([own, weight @ np.array(c)])
    return w[f"outputs.{domain}.weight"] @ state + w[f"outputs.{domain}.bias"]


def loss(histories, logits, w, border):
    """The mean cross-entropy of every item after the first of each history."""
    losses = []
    for history in histories:
        for length in range(1, len(history)):
            target = history[length]
            domain = int(target >= border)
            z = logits(history[:length], domain, w, border)
            losses.append(-np.log(softmax(z)[target - domain * border]))
    return np.mean(losses)
