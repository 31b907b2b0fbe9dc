# SPDX-License-Identifier: Apache-2.0
"""Classes that are added to a head: what it knew keeps every bit, and only the new ones learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from muntin.configs import with_texts
from muntin.errors import ConfigError
from muntin.heads.detector import FixedDetector
from muntin.heads.extended_head import ExtendedClassifier, copy_part, select_objects
from muntin.heads.network import Network
from muntin.samples import Classes
from muntin.targets import BoxTargets
from muntin.tasks.task_table import find_task
from muntin.zoo import create_backbone
from tests.detectors import _BODY, BODY, head_settings

HEADS = [("classify", ""), ("semantic", "light_small"), ("detect", "dense_small")]
HEADS += [
    pytest.param(*head, marks=pytest.mark.slow)
    for head in (
        ("semantic", "upernet"),
        ("detect", "fcos_small"),
        ("detect", "faster_rcnn_small"),
        ("instance", "dense_small"),
        ("instance", "mask_rcnn_small"),
        ("instance", "cascade_mask_rcnn_small"),
    )
]
NAMES = ("a", "b", "c", "d")


def build(task, head, old, *, seed=0):
    """A network with classes of NAMES: all of one part, or two that were there and two added."""
    row, config = find_task(task), None
    if head:
        rows = {"channels": "16", "pool_sides": "1,2"} if task == "semantic" else {}
        if not rows:
            rows = {
                k[5:]: v for k, v in head_settings(head, **{"select.score_threshold": 0}).items()
            }
        config = with_texts(row.dense.heads[head], [(k, str(v)) for k, v in rows.items()])
    torch.manual_seed(seed)
    body = create_backbone(BODY, **_BODY)
    names = NAMES if old else NAMES[:2]
    head = row.build_head(body, Classes(names=names), config, old=old)
    return row, Network(body, head).eval()


def extended(task, head):
    row, before = build(task, head, ())
    _, after = build(task, head, (2,), seed=1)
    after.backbone.load_state_dict(before.backbone.state_dict())
    after.head.parts[0].load_state_dict(before.head.state_dict())
    copy_part(before.head, after.head.parts[1], [*before.head.class_layers()])
    after.backbone.requires_grad_(False)
    after.holds_backbone = True
    return row, before, after


def losses_of(task, network, images):
    features = network.features(images)
    if task == "classify":
        return network.head.losses(features, torch.tensor([2, 3, 0]), label_smoothing=0.1)
    if task == "semantic":
        labels = torch.randint(-1, 4, (3, 64, 64))
        return network.head.losses(features, labels)
    return network.head.losses(features, [objects() for _ in images])


def objects():
    boxes = torch.tensor([[4.0, 4, 30, 30], [20, 10, 60, 50], [2, 30, 20, 60]])
    layers = torch.zeros(1, 64, 64, dtype=torch.int32)
    layers[0, 4:30, 4:20], layers[0, 10:50, 30:60] = 1, 2
    return BoxTargets(
        boxes=boxes, class_ids=torch.tensor([0, 2, 3]), ignored=torch.zeros(0, 4), layers=layers,
        layer_of=torch.tensor([0, 0, -1]),
    )  # fmt: skip


def scores_of(raw):
    """Raw scores with classes on the second side."""
    return raw if isinstance(raw, torch.Tensor) else raw.scores.transpose(1, 2)


@pytest.mark.parametrize(("task", "head"), HEADS)
def test_what_was_known_keeps_every_bit(task, head):
    _, before, after = extended(task, head)
    images = torch.randn(3, 3, 64, 64)
    start = {k: v.clone() for k, v in after.state_dict().items()}
    learning = [p for p in after.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.05)
    after.train()
    for _ in range(2):
        optimizer.zero_grad()
        sum(value.sum() for value in losses_of(task, after, images).values()).backward()
        optimizer.step()
    after.eval()
    changed = {k for k, v in after.state_dict().items() if not torch.equal(v, start[k])}
    assert changed
    assert all(name.startswith("head.parts.1.") for name in changed)
    for size in ((64, 64), (50, 83)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            old, new = before(images), after(images)
        kept = scores_of(new)[:, :2]
        if task in ("detect", "instance"):  # rows of the first part come first
            assert torch.equal(old.boxes, new.parts[0].boxes)
            kept = kept[:, :, : scores_of(old).shape[2]]
        assert torch.equal(scores_of(old), kept)
        assert scores_of(new).shape[1] == 4


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("instance", "dense_small"),
        pytest.param("detect", "fcos_small", marks=pytest.mark.slow),
        pytest.param("instance", "mask_rcnn_small", marks=pytest.mark.slow),
    ],
)
def test_instances_are_those_of_the_parts(task, head):
    _, before, after = extended(task, head)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (alone,) = before.decode(before(images))
        raw = after(images)
        (every,) = after.decode(raw)
        (second,) = after.head.parts[1].decode(raw.parts[1])
    best = torch.cat([alone.scores, second.scores]).sort(descending=True).values
    assert len(every.boxes) == min(len(best), after.head.config.select.max_detections)
    assert (every.scores.diff() <= 0).all()
    assert torch.equal(every.scores, best[: len(every.scores)])
    for n, class_id in enumerate(every.class_ids.tolist()):
        one, own = (alone, class_id) if class_id < 2 else (second, class_id - 2)
        same = (one.boxes == every.boxes[n]).all(dim=1) & (one.class_ids == own)
        assert same.any()
        if every.masks is not None:
            assert any(torch.equal(mask, every.masks[n]) for mask in one.masks[same])
    fixed = FixedDetector(after, after.head)
    with torch.no_grad():
        boxes, scores, class_ids, *_ = fixed(images, torch.tensor([[64, 64]]))
    assert torch.allclose(scores[0][: len(every.scores)], every.scores, atol=1e-6)
    assert set(class_ids.unique().tolist()) <= {0, 1, 2, 3}
    assert boxes.shape[2] == 4


def test_earlier_classes_are_one_class_in_the_loss():
    _, _, after = extended("classify", "")
    features = after.features(torch.randn(2, 3, 64, 64))
    logits = after.head(features).detach().double()
    (loss,) = after.head.losses(features, torch.tensor([1, 3])).values()
    scores = logits.softmax(dim=1)
    by_hand = torch.stack([-(scores[0, 0] + scores[0, 1]).log(), -scores[1, 3].log()])
    torch.testing.assert_close(loss.double(), by_hand, atol=1e-6, rtol=1e-6)
    shares = F.one_hot(torch.tensor([1, 3]), 4).float()
    torch.testing.assert_close(*after.head.losses(features, shares).values(), loss)
    (many,) = after.head.losses(features, shares, multi_label=True).values()
    wanted = F.binary_cross_entropy_with_logits(
        logits[:, 2:], shares[:, 2:].double(), reduction="none"
    )
    torch.testing.assert_close(many.double(), wanted.mean(dim=1), atol=1e-6, rtol=1e-6)


def test_objects_of_earlier_classes_are_none_of_the_added():
    kept = select_objects(objects(), 2)
    assert kept.class_ids.tolist() == [0, 1]
    assert kept.layer_of.tolist() == [0, -1]
    assert kept.layers.unique().tolist() == [0, 1]
    assert int((kept.layers == 1).sum()) == 40 * 30
    empty = select_objects(BoxTargets.empty((8, 8)), 2)
    assert empty.boxes.shape == (0, 4)


def test_a_head_of_fewer_classes_than_before_is_refused():
    with pytest.raises(ConfigError, match="4"):
        build("classify", "", (4,))
    assert isinstance(build("classify", "", (3,))[1].head, ExtendedClassifier)
