# SPDX-License-Identifier: Apache-2.0
"""Keypoints from scratch on 72 frames in 15 minutes, compared with a ResNet-18 baseline.

The frames of mirror_mouse_pose: the first 72 by name for training, the last 18 for testing. Each
contestant gets the same frames, the same wall time, reading and start-up included, the same cores,
no trained weights, and is scored by the same metric in pixels of the original. muntin is called as
a user would: ``muntin train pose DATA --max-time 15m``. The peer is the network and recipe of
"Simple Baselines" (three deconvolutions of 256 channels on torchvision's ResNet-18, Adam at 1e-3
falling to a tenth twice, a Gaussian of two cells, random scale and rotation), at the size that
muntin chose, its learning rate following the clock as muntin's does.
"""

from __future__ import annotations

import csv
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms.v2 import functional as tvf

from muntin.data.pose import list_pose
from muntin.metrics.pose_metric import PoseInstance, PoseMetric
from muntin.prediction.from_run import load as load_run
from muntin.results import Poses
from muntin.samples import Listing

LEARNT = 72
BATCH = 8
SIGMA = 2.0
PEER = "resnet18_deconv"


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, data=record.DATA, minutes=15.0, out="", skip_peer=False)
    with tempfile.TemporaryDirectory() as folder:
        learn, score = arrange(Path(options.data) / "mirror_mouse_pose", Path(folder))
        run = Path(options.out or folder).resolve() / "mouse"
        # Part of the training set is used for validation.
        ours, _ = record.train_and_score("pose", learn, score, run, options.minutes)
        crops = time_crops(run, score)
        side = ours["img_size"]
        peer = {} if options.skip_peer else train_peer(learn, score, options.minutes, side)
    content = {
        "what": f"mirror_mouse_pose, {options.minutes:g} minutes of wall time from scratch, "
        f"{LEARNT} frames to learn from, the rest to score on",
        "muntin_command": f"muntin train pose DATA --weights none --max-time {options.minutes:g}m",
        "minutes": options.minutes,
        "muntin": ours,
        "crops": crops,
        **({PEER: peer} if peer else {}),
    }
    record.save("pose_mouse", content)


def arrange(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write training and test set to separate folders, each with its table."""
    rows = list(csv.reader((source / "CollectedData.csv").open(encoding="utf-8")))
    frames = sorted(rows[3:], key=lambda row: row[0])
    parts = {"learn": frames[:LEARNT], "score": frames[LEARNT:]}
    for name, chosen in parts.items():
        for row in chosen:
            place = folder / name / row[0]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / row[0], place)
        with (folder / name / "CollectedData.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([*rows[:3], *chosen])
    return folder / "learn", folder / "score"


def time_crops(run: Path, score: Path, count: int = 1000) -> dict[str, float]:
    """Predict `count` crops, and measure the network's share of the time."""
    predictor = load_run(run)
    network, inside = predictor.network, 0.0
    forward = network.forward

    def timed(*inputs: Tensor) -> Tensor:
        nonlocal inside
        begun = time.perf_counter()
        answer = forward(*inputs)
        inside += time.perf_counter() - begun
        return answer

    pixels = np.asarray(Image.open(next(score.rglob("*.png"))).convert("RGB"))
    high, wide = pixels.shape[:2]
    boxes = [[[0, 0, wide, high]]] * count
    predictor([pixels] * 8, boxes=boxes[:8])
    network.forward = timed
    begun = time.perf_counter()
    predictor([pixels] * count, boxes=boxes)
    seconds = time.perf_counter() - begun
    return {
        "crops": count,
        "seconds": round(seconds, 2),
        "in_network": round(inside / seconds, 4),
    }


class Deconvolutions(nn.Module):
    """A ResNet-18 and three transposed convolutions."""

    def __init__(self, num_keypoints: int) -> None:
        super().__init__()
        body = resnet18(weights=None)
        layers: list[nn.Module] = [*body.children()][:-2]
        width = 512
        for _ in range(3):
            layers += [
                nn.ConvTranspose2d(width, 256, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(256),
                nn.ReLU(inplace=True),
            ]
            width = 256
        self.layers = nn.Sequential(*layers, nn.Conv2d(256, num_keypoints, 1))
        for module in self.layers[8:]:
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps at a quarter of the sides."""
        return self.layers(images)


def train_peer(learn: Path, score: Path, minutes: float, size: list[int]) -> dict[str, Any]:
    """Train it for the same time, and score it."""
    begun = time.monotonic()
    train, test = list_pose(learn).train, list_pose(score).train
    assert train is not None
    assert test is not None
    torch.manual_seed(0)
    random.seed(0)
    network = Deconvolutions(len(train.skeleton.names))  # type: ignore[union-attr]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    frames = [load(train, place, size) for place in range(len(train))]
    network.train()

    def losses() -> Iterator[Tensor]:
        while True:
            rows = [change(*random.choice(frames)) for _ in range(BATCH)]
            maps = network(torch.stack([row[0] for row in rows]))
            points, known = (torch.stack([row[part] for row in rows]) for part in (1, 2))
            wanted = draw(points / 4, maps.shape[2], maps.shape[3])
            yield ((maps - wanted).square().mean(dim=(2, 3)) * known).mean()

    result = record.train_peer(
        network, optimizer, losses(), limit=(begun, minutes),
        rate=lambda done, _: 1e-3 * (1 if done < 0.65 else 0.1 if done < 0.85 else 0.01),
    )  # fmt: skip
    return {
        **result,
        "test": score_rival(network, test, size),
        "images_per_s": round(result["steps"] * BATCH / result["wall_seconds"], 2),
    }


def load(listing: Listing, place: int, size: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """A frame, float, its points in pixels of it, and which are visible."""
    entry = listing.entries[place]
    original = Image.open(Path(listing.source, entry.path)).convert("RGB")
    scale = torch.tensor([size[1] / original.width, size[0] / original.height])
    image = tvf.to_dtype(tvf.to_image(original), torch.float32, scale=True)
    assert entry.objects is not None
    rows = torch.from_numpy(entry.objects.keypoints[0]).float()  # type: ignore[index]
    resized = tvf.resize(image, size, antialias=True)
    points = (rows[:, :2] + 0.5) * scale - 0.5
    return normal(resized), points, (rows[:, 2] > 0).float()


def normal(image: Tensor) -> Tensor:
    """Normalise as ImageNet's models do."""
    return tvf.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def change(image: Tensor, points: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate and scale at random, as the published recipe does without flips."""
    angle = float(np.clip(random.gauss(0, 1), -2, 2)) * 40 if random.random() < 0.6 else 0.0
    factor = 1 + 0.3 * float(np.clip(random.gauss(0, 1), -1, 1))
    turned = tvf.affine(image, angle, [0, 0], factor, [0, 0])
    middle = torch.tensor([(image.shape[2] - 1) / 2, (image.shape[1] - 1) / 2])
    radians = np.deg2rad(angle)
    matrix = torch.tensor(
        [[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]]
    ).float()
    moved = (points - middle) @ matrix.T * factor + middle
    limits = torch.tensor([image.shape[2] - 1, image.shape[1] - 1])
    inside = ((moved >= 0) & (moved <= limits)).all(dim=1)
    return turned, moved, known * inside


def draw(cells: Tensor, high: int, wide: int) -> Tensor:
    """Gaussians around the nearest cells."""
    near = cells.round()
    x = torch.arange(wide)[None, None] - near[..., :1]
    y = torch.arange(high)[None, None] - near[..., 1:]
    return torch.exp(-(y[..., :, None] ** 2 + x[..., None, :] ** 2) / (2 * SIGMA**2))


@torch.inference_mode()
def score_rival(network: nn.Module, test: Listing, size: list[int]) -> dict[str, Any]:
    """Read the highest cell and a quarter towards its neighbour, as published."""
    network.eval()
    assert test.skeleton is not None
    metric = PoseMetric(test.skeleton)
    for place, entry in enumerate(test.entries):
        image, _, _ = load(test, place, size)
        maps = network(image[None])[0]
        wide = maps.shape[2]
        places = maps.flatten(1).argmax(dim=1)
        cells = torch.stack([places % wide, places // wide], dim=1).float()
        for k, (x, y) in enumerate(cells.long().tolist()):
            if 0 < x < wide - 1 and 0 < y < maps.shape[1] - 1:
                cells[k, 0] += 0.25 * torch.sign(maps[k, y, x + 1] - maps[k, y, x - 1])
                cells[k, 1] += 0.25 * torch.sign(maps[k, y + 1, x] - maps[k, y - 1, x])
        assert entry.objects is not None
        assert entry.size is not None
        scale = torch.tensor([entry.size[1] / size[1], entry.size[0] / size[0]])
        points = (cells * 4 + 0.5) * scale - 0.5
        scores = maps.flatten(1).amax(dim=1)[:, None]
        poses = Poses(
            path=entry.path,
            size=entry.size,
            keypoints=torch.cat([points, scores], dim=1)[None].double().numpy(),
            scores=np.ones(1),
            keypoint_names=test.skeleton.names,
        )
        truth = PoseInstance(path=entry.path, size=entry.size, objects=entry.objects, row=0)
        metric.update([poses], [truth])
    return metric.compute()


if __name__ == "__main__":
    main()
