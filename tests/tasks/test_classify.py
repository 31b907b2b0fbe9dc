# SPDX-License-Identifier: Apache-2.0
"""The row of classification: what an image's classes mean, and what raw output means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from muntin.errors import ConfigError
from muntin.features import Features
from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.samples import Classes, Entry, Listing
from muntin.tasks.task import ImageMeta, TrainBatch
from muntin.tasks.task_table import TASKS, find_task
from muntin.zoo import create_backbone

CLASSIFY = TASKS["classify"]
ONE = Classes(names=("a", "b", "c"))
SEVERAL = Classes(names=("a", "b", "c"), multi_label=True)


def listing(*ids, multi_label=False):
    entries = tuple(Entry(path=str(i), class_ids=each) for i, each in enumerate(ids))
    return Listing(source="s", entries=entries, class_names=ONE.names, multi_label=multi_label)


def loss_of(logits, labels, classes, *, smoothing=0.0, class_weights=None):
    """What training takes, from given logits."""
    images = torch.zeros(len(logits), 3, 16, 16)
    batch = TrainBatch(
        images=images,
        sizes=torch.full((len(logits), 2), 16),
        labels=labels,
        class_weights=class_weights,
        label_smoothing=smoothing,
    )
    features = Features(images, maps=list, vector=lambda: logits)
    parts = CLASSIFY.losses(LinearHead(3, 0), features, batch, classes)
    assert list(parts) == ["classes"]
    return parts["classes"]


def test_targets():
    assert CLASSIFY.ground_truth(listing((2,), (0,)), ONE).tolist() == [2, 0]
    several = CLASSIFY.ground_truth(listing((0, 2), (), multi_label=True), SEVERAL)
    assert several.tolist() == [[1, 0, 1], [0, 0, 0]]
    # Single-label data for a run that knows several an image.
    assert CLASSIFY.ground_truth(listing((1,)), SEVERAL).tolist() == [[0, 1, 0]]


def test_losses():
    logits = torch.randn(4, 3)
    ids = torch.tensor([0, 2, 1, 1])
    loss = loss_of(logits, ids, ONE, smoothing=0.1)
    expected = F.cross_entropy(logits, ids, reduction="none", label_smoothing=0.1)
    assert loss.equal(expected)
    shares = F.one_hot(ids, 3).float()
    torch.testing.assert_close(loss_of(logits, shares, ONE, smoothing=0.1), expected)
    several = loss_of(logits, shares, SEVERAL)
    by_hand = -(shares * logits.sigmoid().log() + (1 - shares) * (-logits).sigmoid().log()).mean(1)
    torch.testing.assert_close(several, by_hand)
    weights = torch.tensor([0.5, 1.0, 4.0])
    weighted = loss_of(logits, ids, ONE, class_weights=weights)
    plain = F.cross_entropy(logits, ids, reduction="none")
    torch.testing.assert_close(weighted, plain * weights[ids])


def test_comparing_answers_is_the_loss_without_smoothing():
    logits, ids = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    metas = [ImageMeta(path="", size=(2, 2), input_size=(2, 2))] * 4
    answers = CLASSIFY.answers(logits.bfloat16(), metas, ONE)
    assert answers.dtype == torch.float32
    losses = CLASSIFY.compare(answers, ids, ONE)
    assert losses.equal(F.cross_entropy(answers, ids, reduction="none"))


@pytest.mark.parametrize("classes", [ONE, SEVERAL])
def test_decoding(classes):
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, -1.0]])
    metas = [
        ImageMeta(path="x.png", size=(4, 6), input_size=(16, 16)),
        ImageMeta(path="", size=(2, 2), input_size=(16, 16)),
    ]
    results = CLASSIFY.decode(logits, metas, classes)
    assert results[0].class_names == ("b", "c", "a")
    assert results[1].class_names == ("a", "b", "c"), "a tie keeps the order of the classes"
    assert (results[0].path, results[0].size) == ("x.png", (4, 6))
    scores = logits.double().sigmoid() if classes.multi_label else logits.double().softmax(1)
    np.testing.assert_allclose(results[0].scores, scores[0].sort(descending=True)[0])


def test_one_batch_is_learnt():
    torch.manual_seed(0)
    body = create_backbone(
        "swin_nano_patch2_window4_32", embed_dim=16, depths=(1, 1), num_heads=(1, 2),
        out_indices=(0, 1), out_norm="last",
    )  # fmt: skip
    network = Network(body, CLASSIFY.build_head(body, ONE, None))
    images, targets = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of(network(images), targets, ONE).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.5 * losses[0]


def test_goal():
    assert CLASSIFY.goal({"top1": 0.5, "macro_f1": 0.4}) == ("top1", 0.5)
    assert CLASSIFY.goal({"map": None, "macro_f1": 0.4}) == ("macro_f1", 0.4)
    assert CLASSIFY.goal({}) == ("", 0.0)


def test_unknown_task():
    with pytest.raises(ConfigError, match=r"'clasify'.*'classify'"):
        find_task("clasify")
