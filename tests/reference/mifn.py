"""MIFN in plain numpy and float64, one prefix at a time, from scratch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np

from tests.reference.psjnet import gru, sigmoid
from tests.reference.tricdr import linear, softmax


def strongest(edges, counts, limit):
    """The strongest successors of each item, in order, and which of those a single pair made.

    Those that are tied in frequency and popularity are all strongest_links, or, beyond the limit, all left.
    """
    times = Counter((a, b) for a, b in edges if a != b)
    links = {}
    for item in {a for a, _ in times}:
        groups = {}
        for (a, b), n in times.items():
            if a == item:
                groups.setdefault((-n, -counts[b]), []).append(b)
        strongest_links = []
        for key in sorted(groups):
            if len(strongest_links) + len(groups[key]) > limit:
                break
            strongest_links += sorted(groups[key])
        links[item] = strongest_links
    return links, times


def links_of(item, relations, target, config, counts):
    """The links of an item in each relation, padded with None; `target` is what followed the last item."""
    rows = []
    for name, edges in relations.items():
        links, times = strongest(edges, counts, config.links_per_item)
        row = links.get(item, [])
        row = [None if name == "transition" and b == target and times[item, b] == 1 else b for b in row]
        rows.append(row + [None] * (config.links_per_item - len(row)))
    return rows


def graph(history, relations, counts, config, target=None):
    """Nodes and adjacency (R, N, N) of a history; target None outside of training."""
    last = history[-1]
    links = {}

    def of(item):
        if item not in links:
            links[item] = links_of(item, relations, target if item == last else None, config, counts)
        return links[item]

    nodes = list(dict.fromkeys(reversed(history)))[: config.max_nodes]
    for _ in range(config.hops):
        rows = [of(node) for node in nodes]
        neighbors = [
            row[r][k] for k in range(config.links_per_item) for r in range(len(relations)) for row in rows
        ]
        nodes = list(dict.fromkeys([*nodes, *(item for item in neighbors if item is not None)]))[
            : config.max_nodes
        ]
    adjacency = np.zeros((len(relations), len(nodes), len(nodes)))
    steps = set(pairwise(history))
    for r in range(len(relations)):
        for n, item in enumerate(nodes):
            for m, other in enumerate(nodes):
                linked = other in of(item)[r] or (item, other) in steps or n == m
                adjacency[r, n, m] = float(linked)
    return nodes, adjacency


def behavior(own, other, w, name):
    """The state transferred after each item of a domain; `other` is the other domain's state before it."""
    d = own.shape[1]
    s, states = np.zeros(d), []
    for h, o in zip(own, other, strict=True):
        f = sigmoid(linear(np.concatenate([h, o, s]), w, f"{name}.filter"))
        s = f * np.tanh(linear(np.concatenate([h, s]), w, f"{name}.candidate")) + (1 - f) * s
        states.append(s)
    return gru(np.array(states).reshape(-1, d), w, f"{name}.transfer")


def latest(states, count, width):
    return states[count - 1] if count else np.zeros(width)


def states(history, w, border, width):
    """Of each domain the last own and the last transferred state."""
    e = w["items.weight"]
    parts = [[i for i in history if i < border], [i for i in history if i >= border]]
    h = [gru(e[part].reshape(-1, width), w, f"encoders.{n}") for n, part in enumerate(parts)]
    t = []
    for n in range(2):
        before, seen = [], 0
        for item in history:
            if (item >= border) == bool(n):
                before.append(latest(h[1 - n], seen, width))
            else:
                seen += 1
        other = np.array(before).reshape(-1, width)
        t.append(behavior(h[n], other, w, f"behaviors.{n}"))
    return [latest(x, len(x), width) for x in h], [latest(x, len(x), width) for x in t]


def pointer(h, e, w, name):
    query = w[f"{name}.query.weight"] @ h
    return np.array([w[f"{name}.score.weight"][0] @ np.tanh(query + w[f"{name}.key.weight"] @ x) for x in e])


def masked_softmax(scores, mask):
    weights = np.zeros(len(scores))
    if mask.any():
        weights[mask] = softmax(scores[mask])
    return weights


def knowledge(h_own, h_other, e, own, other, adjacency, w):
    """One round of messages, node by node."""
    p = masked_softmax(pointer(h_own, e, w, "knowledge.own"), own)
    q = masked_softmax(pointer(h_other, e, w, "knowledge.other"), other)
    z_own, z_other = [], []
    for n, x in enumerate(e):
        g = sigmoid(linear(np.concatenate([h_own, h_other, x]), w, "knowledge.gate"))
        z_own.append(linear(g * p[n] * x, w, "knowledge.own_linear"))
        z = linear((1 - g) * q[n] * x, w, "knowledge.other_linear")
        if other[n]:
            for m in np.flatnonzero(own):
                z = z + (w["knowledge.match"] @ (x * e[m])) * e[m]
        z_other.append(z)
    d, relations = e.shape[1], len(adjacency)
    messages = []
    for z, name in ((np.array(z_own), "own_messages"), (np.array(z_other), "other_messages")):
        sent_messages = linear(z, w, f"knowledge.{name}")
        parts = [adjacency[r] @ sent_messages[:, r * d : (r + 1) * d] for r in range(relations)]
        messages.append(np.maximum(np.concatenate(parts, axis=1), 0))
    messages = np.concatenate(messages, axis=1)
    new_nodes = []
    for x, message in zip(e, messages, strict=True):
        r, u = np.split(sigmoid(linear(np.concatenate([message, x]), w, "knowledge.cell.gates")), 2)
        c = np.tanh(linear(np.concatenate([message, r * x]), w, "knowledge.cell.candidate"))
        new_nodes.append(u * x + (1 - u) * c)
    return np.array(new_nodes)


def probabilities(history, domain, w, border, history_graph, config):
    """P, P_S of the items of a domain, and P_S = 1 - P_G; `history_graph` is its nodes and adjacency."""
    nodes, adjacency = history_graph
    h, t = states(history, w, border, config.width)
    late = int(history[-1] >= border)
    inside = [np.array([(node >= border) == bool(n) for node in nodes]) for n in range(2)]
    e = w["items.weight"][nodes]
    e = knowledge(h[late], t[late], e, inside[late], inside[1 - late], adjacency, w)
    name, mine = f"decoders.{domain}", inside[domain]
    state = np.concatenate([h[domain], t[1 - domain]])
    e = e * mine[:, None]
    p_graph = sigmoid(linear(np.concatenate([state, e.sum(0)]), w, f"{name}.copy_gate"))[0]
    g = masked_softmax(pointer(h[domain], e, w, f"{name}.pointer"), mine)
    p = (1 - p_graph) * softmax(linear(state, w, f"{name}.output"))
    for node, copy_p in zip(nodes, g, strict=True):
        if (node >= border) == bool(domain):
            p[node - border * domain] += p_graph * copy_p
    return p, 1 - p_graph


def loss(histories, relations, counts, w, border, config):
    """The mean over all prefixes."""
    losses = []
    for history in histories:
        for length in range(1, len(history)):
            prefix, target = history[:length], history[length]
            domain = int(target >= border)
            history_graph = graph(prefix, relations, counts, config, target)
            p, plain = probabilities(prefix, domain, w, border, history_graph, config)
            missed = 0.0 if target in history_graph[0] else -np.log(plain + 1e-4)
            losses.append(missed - np.log(p[target - border * domain]))
    return np.mean(losses)
