# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation from scratch, on few images, in 25 minutes, compared with LR-ASPP.

Aerial images, tiles 1 to 6 to learn from and 7 and 8 to be scored on. Each contestant gets the
same images, the same wall time, reading and start-up included, the same cores, no trained
weights, and is scored by the same metric at the full size of the images. muntin is called as a
user would: ``muntin train semantic DATA --max-time 25m``. torchvision's model is trained with its
reference recipe for segmentation (SGD with momentum, random sizes from half to twice, crops,
flips), at the scale and window that muntin chose, its learning rate following the clock as
muntin's does.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.transforms.v2 import functional as tvf

from muntin.data.archives import read_bytes
from muntin.data.decoding import decode
from muntin.data.mask_values import read_mask
from muntin.data.semantic import list_semantic
from muntin.metrics.class_metrics import SemanticMetric
from muntin.prediction.from_run import load as load_run
from muntin.results import SemanticMap
from muntin.samples import Listing

COLORS = {
    "building": "#3C1098", "land": "#8429F6", "road": "#6EC1E4", "vegetation": "#FEDD3A",
    "water": "#E2A929", "ignored": "#000000", "unlabeled": "#9B9B9B",
}  # fmt: skip
TEST = ("Tile 7", "Tile 8")
BATCH = 4
PEER = "lraspp_mobilenet_v3_large"


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, data=record.DATA, minutes=25.0, out="")
    with tempfile.TemporaryDirectory() as folder:
        learn, score = arrange(Path(options.data) / "dubai_aerial", Path(folder) / "data")
        run = Path(options.out or folder).resolve() / "dubai"
        # Part of the training set is used for validation.
        ours, config = record.train_and_score("semantic", learn, score, run, options.minutes)
        ours["scale"] = config["data_config"]["scale"]
        preprocessing = json.loads((run / "preprocessing.json").read_text())
        ours["windows"] = compare_windows(score, run)
        peer = train_peer(learn, score, options.minutes, preprocessing)
    content = {
        "what": f"dubai_aerial, {options.minutes:g} minutes of wall time from scratch, tiles 7, 8",
        "muntin_command": f"muntin train semantic DATA --weights none --max-time "
        f"{options.minutes:g}m",
        "minutes": options.minutes,
        "muntin": ours,
        PEER: peer,
    }
    record.save("semantic_dubai", content)


def arrange(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write training and test set to separate folders, each with its palette."""
    places = folder / "learn", folder / "score"
    for tile in sorted(source.glob("Tile *")):
        place = places[tile.name in TEST]
        place.mkdir(parents=True, exist_ok=True)
        (place / tile.name).symlink_to(tile.resolve(), target_is_directory=True)
    for place in places:
        (place / "classes.json").write_text(json.dumps(COLORS), encoding="utf-8")
    return places


def compare_windows(score: Path, run: Path) -> dict[str, float]:
    """Score the test images seen at once, and in windows of the size of training."""
    opened = load_run(run)
    test = list_semantic(score).train  # a single set without splits
    assert test is not None
    whole, parts = SemanticMetric(test.class_names), SemanticMetric(test.class_names)
    same = []
    for entry in test.entries:
        truth = read_mask(test, entry).labels
        path = Path(test.source, entry.path)
        once = opened(path, tile=max(truth.shape))
        seen = opened(path, tile=max(opened.preprocessing.img_size))
        whole.update(once, [truth])
        parts.update(seen, [truth])
        same.append(float((once[0].labels == seen[0].labels).mean()))
    return {
        "miou_at_once": whole.compute()["miou"],
        "miou_in_windows": parts.compute()["miou"],
        "same_pixels": float(np.mean(same)),
    }


def train_peer(
    learn: Path, score: Path, minutes: float, preprocessing: dict[str, Any]
) -> dict[str, Any]:
    """Train torchvision's model for the same time, and score it."""
    begun = time.monotonic()
    train, test = list_semantic(learn).train, list_semantic(score).train
    assert train is not None
    assert test is not None
    torch.manual_seed(0)
    random.seed(0)
    window, scale = preprocessing["img_size"], preprocessing["scale"]
    network = lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=train.num_classes
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    images = [load(train, place, scale) for place in range(len(train))]
    network.train()

    def losses() -> Iterator[Tensor]:
        while True:
            rows = [crop(*random.choice(images), window) for _ in range(BATCH)]
            logits = network(torch.stack([row[0] for row in rows]))["out"]
            labels = torch.stack([row[1] for row in rows])
            if (labels >= 0).any():
                yield F.cross_entropy(logits, labels, ignore_index=-1)

    result = record.train_peer(
        network, optimizer, losses(), limit=(begun, minutes),
        rate=lambda done, _: 0.02 * (1 - done) ** 0.9,
    )  # fmt: skip
    return {
        **result,
        "test": score_rival(network, test, scale),
        "images_per_s": round(result["steps"] * BATCH / result["wall_seconds"], 2),
    }


def load(listing: Listing, place: int, scale: float) -> tuple[Tensor, Tensor]:
    """An image, uint8, and its labels, at the scale at which it is seen."""
    entry = listing.entries[place]
    pixels = decode(read_bytes(listing.source, entry.path), where=entry.path)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    labels = torch.from_numpy(read_mask(listing, entry).labels).long()[None]
    size = [round(side * scale) for side in image.shape[1:]]
    nearest = tvf.InterpolationMode.NEAREST
    return tvf.resize(image, size), tvf.resize(labels, size, nearest)[0]


def crop(image: Tensor, labels: Tensor, window: list[int]) -> tuple[Tensor, Tensor]:
    """A part of random size, mirrored every second time."""
    factor = random.uniform(0.5, 2.0)
    size = [max(1, round(side * factor)) for side in image.shape[1:]]
    image = tvf.resize(image, size)
    labels = tvf.resize(labels[None], size, tvf.InterpolationMode.NEAREST)[0]
    rest = [max(0, want - have) for want, have in zip(window, size, strict=True)]
    image, labels = (
        F.pad(image, (0, rest[1], 0, rest[0])),
        F.pad(labels, (0, rest[1], 0, rest[0]), value=-1),
    )
    top = random.randint(0, image.shape[1] - window[0])
    left = random.randint(0, image.shape[2] - window[1])
    image = image[:, top : top + window[0], left : left + window[1]]
    labels = labels[top : top + window[0], left : left + window[1]]
    if random.random() < 0.5:
        image, labels = image.flip(2), labels.flip(1)
    return normalise(image), labels


def normalise(image: Tensor) -> Tensor:
    """As torchvision's recipe does."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return tvf.normalize(image.float() / 255, mean, std)


@torch.inference_mode()
def score_rival(network: nn.Module, test: Listing, scale: float) -> dict[str, Any]:
    """Whole images, answers brought to the size of the masks."""
    network.eval()
    metric = SemanticMetric(test.class_names)
    for place, entry in enumerate(test.entries):
        truth = read_mask(test, entry).labels
        image, _ = load(test, place, scale)
        logits = network(normalise(image)[None])["out"]
        large = F.interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)[0]
        predicted = SemanticMap(
            path=entry.path, size=truth.shape, labels=large.argmax(0).numpy().astype(np.int16),
            class_names=test.class_names,
        )  # fmt: skip
        metric.update([predicted], [truth])
    return metric.compute()


if __name__ == "__main__":
    main()
