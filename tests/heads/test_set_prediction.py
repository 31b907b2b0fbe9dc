# SPDX-License-Identifier: Apache-2.0
"""A head that finds each object once (as DETR) needs nothing but the promises of a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import nn
from torchvision.ops import box_convert

from muntin.heads.detector import Candidates, Detector, FixedDetector, SelectConfig
from muntin.heads.network import Network
from muntin.targets import BoxTargets
from muntin.zoo import create_backbone


class Queries(Detector):
    """Learned queries look at the coarsest map; every layer answers, and the last one counts."""

    select = SelectConfig(suppression="none", score_threshold=0.0)

    def __init__(self, channels, num_classes, queries=8, layers=2):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, channels))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(channels, 4, 2 * channels, 0.0, batch_first=True)
            for _ in range(layers)
        )
        self.classes, self.boxes = nn.Linear(channels, num_classes), nn.Linear(channels, 4)

    def answers(self, features):
        tokens = features.maps[-1].flatten(2).transpose(1, 2)
        x = self.queries.expand(len(tokens), -1, -1)
        sides = features.sizes.flip(1).repeat(1, 2)[:, None]  # B, 1, 4
        for layer in self.layers:
            x = layer(x, tokens)
            boxes = box_convert(self.boxes(x).sigmoid(), "cxcywh", "xyxy") * sides
            yield self.classes(x), boxes

    def forward(self, features):
        *_, (logits, boxes) = self.answers(features)
        return Candidates([], boxes[:, :, None], logits.sigmoid(), self.decode)

    def losses(self, features, targets):
        return {
            f"layer{n}": self.loss(*one, targets) for n, one in enumerate(self.answers(features))
        }

    def loss(self, logits, boxes, targets):
        rows = []
        for logit, box, target in zip(logits, boxes, targets, strict=True):
            far = torch.cdist(box, target.boxes, p=1) / 100
            cost = far - logit.sigmoid()[:, target.class_ids]
            at, match = map(torch.as_tensor, linear_sum_assignment(cost.detach()))
            wanted = torch.zeros_like(logit)
            wanted[at, target.class_ids[match]] = 1.0
            rows.append(F.binary_cross_entropy_with_logits(logit, wanted) + far[at, match].mean())
        return torch.stack(rows)


def one_object(class_id: int) -> BoxTargets:
    return BoxTargets(
        boxes=torch.tensor([[8.0, 8.0, 40.0, 48.0]]), class_ids=torch.tensor([class_id]),
        ignored=torch.zeros(0, 4), layers=torch.zeros(0, 64, 64, dtype=torch.int32),
        layer_of=torch.tensor([-1]),
    )  # fmt: skip


def test_a_set_is_learnt_and_read_without_suppression():
    torch.manual_seed(0)
    body = create_backbone("swin_nano")
    network = Network(body, Queries(body.spec.channels[-1], 3)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    images, targets = torch.randn(2, 3, 64, 64), [one_object(0), one_object(2)]
    totals = []
    for _ in range(3):
        losses = network.head.losses(network.features(images), targets)
        assert {name: tuple(part.shape) for name, part in losses.items()} == {
            "layer0": (2,), "layer1": (2,),
        }  # fmt: skip
        total = sum(part.sum() for part in losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]
    with torch.no_grad():
        raw = network.eval()(images)
        boxes, scores, _ = FixedDetector(network, network.head)(images)
    # All of 8 queries with 3 classes count: nothing is suppressed.
    assert [len(found.boxes) for found in network.decode(raw)] == [24, 24]
    assert (raw[0].scores.diff() <= 0).all()
    assert boxes.shape == (2, 24, 4)
    assert scores[0].equal(raw[0].scores)
