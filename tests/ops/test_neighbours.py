# SPDX-License-Identifier: Apache-2.0
"""A vote of the nearest neighbours, beside its naive loop."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize

from muntin.ops.similarity import classify_by_neighbours


def naive(queries, examples, labels, num_classes, count, temperature):
    found = []
    for query in queries.tolist():
        cosines = [sum(a * b for a, b in zip(query, one, strict=True)) for one in examples.tolist()]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:count]
        votes = [0.0] * num_classes
        for place in nearest:
            votes[int(labels[place])] += math.exp(cosines[place] / temperature)
        found.append(votes.index(max(votes)))
    return found


def test_equals_the_loop():
    queries = normalize(torch.randn(30, 4, dtype=torch.float64), dim=1)
    examples = normalize(torch.randn(50, 4, dtype=torch.float64), dim=1)
    labels = torch.randint(0, 3, (50,))
    for count, temperature in ((5, 0.07), (20, 0.5), (90, 0.07)):
        got = classify_by_neighbours(
            queries, examples, labels, 3, count=count, temperature=temperature
        )
        assert got.tolist() == naive(queries, examples, labels, 3, count, temperature)


def test_one_near_neighbour_outvotes_many_far_ones():
    examples = normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-0.1, 1.0]]), dim=1)
    labels = torch.tensor([1, 0, 0, 0])
    query = normalize(torch.tensor([[1.0, 0.05]]), dim=1)
    assert classify_by_neighbours(query, examples, labels, 2).tolist() == [1]
