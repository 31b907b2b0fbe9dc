# SPDX-License-Identifier: Apache-2.0
"""Comparison of the outputs of an engine with those of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader
from muntin.data.transforms import Preprocessing, to_tensor
from muntin.engines.engine_network import EngineNetwork, head_info
from muntin.engines.graphs import Precision
from muntin.errors import RunError
from muntin.heads.detector import Instances, SelectConfig
from muntin.heads.network import Network
from muntin.shapes import Int, Real, Size
from muntin.synthetic.scenes import make_scene
from muntin.tasks.task import run_forward

BATCHES = (1, 3, 8)

LIMITS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.1, "int8": float("inf")}
"""Maximum difference relative to the largest value; int8 is bounded by its metric instead."""

LIMIT_FOUND = 1e-3
"""For detections: scores, masks, and box edges relative to the longer image side."""

MAX_UNMATCHED = 0.02
"""Share of detections that may lack a match.

Suppression compares overlaps with a threshold and keeps the higher of two scores: where they tie,
rounding decides which of two boxes is returned.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison, on "random", "drawn" or "real" images of a size (height, width).

    The difference is the largest one, relative to the largest value.
    """

    size: Size
    batch: int
    examples: str
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit; NaN is not."""
        return self.difference <= self.limit


def comparison_images(
    store: ImageCache | None, pre: Preprocessing, canvas: Size
) -> Iterator[tuple[str, Real[Tensor, "B C H W"], Int[Tensor, "B 2"]]]:
    """Yield images for the comparison in batches of 1, 3 and 8: random pixels, then real images.

    Without a data set, synthetic scenes replace the real images.
    """
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        images = torch.randint(0, 256, (batch, pre.in_chans, *canvas), generator=generator)
        yield "random", images.to(pre.pixel_type), torch.tensor([canvas] * batch)
    kind = "drawn" if store is None else "real"
    images, sizes = _draw(pre, canvas) if store is None else _read(store)
    high, wide = images.shape[2:]
    images = F.pad(images, (0, max(0, canvas[1] - wide), 0, max(0, canvas[0] - high)))
    images = images[:, :, : canvas[0], : canvas[1]]
    sizes = torch.minimum(sizes, torch.tensor(canvas))
    for batch in BATCHES:
        rows = torch.arange(batch) % len(images)
        yield kind, images[rows].contiguous(), sizes[rows]


def _read(store: ImageCache) -> tuple[Real[Tensor, "B C H W"], Int[Tensor, "B 2"]]:
    batch = next(iter(EvalLoader(store, batch_size=min(len(store), max(BATCHES)))))
    return batch.images, batch.sizes


def _draw(pre: Preprocessing, canvas: Size) -> tuple[Real[Tensor, "B C H W"], Int[Tensor, "B 2"]]:
    size = (max(16, canvas[0]), max(16, canvas[1]))
    scenes = [make_scene(0, number, size=size, max_objects=6) for number in range(max(BATCHES))]
    images = torch.stack([to_tensor(scene.image, pre.in_chans) for scene in scenes])
    images = images[:, [number % images.shape[1] for number in range(pre.in_chans)]]
    images = images.to(pre.pixel_type)
    return images, torch.tensor([size] * len(scenes))


@torch.no_grad()
def compare(
    network: Network,
    engine: EngineNetwork,
    pre: Preprocessing,
    examples: tuple[str, Real[Tensor, "B C H W"], Int[Tensor, "B 2"]],
    *,
    finds: bool,
    precision: Precision,
) -> Row:
    """Compare an engine with the network on a batch, an item of `comparison_images`.

    `finds` says whether both output detections; the precision defines the allowed difference.
    """
    kind, images, sizes = examples
    inside = sizes if finds else None
    truth, said = (one.decode(run_forward(one, images, pre, inside)) for one in (network, engine))
    size: Size = (images.shape[2], images.shape[3])
    limit = LIMIT_FOUND if finds and precision == "fp32" else LIMITS[precision]
    if finds:
        select = head_info(network).config.select
        difference = difference_of_instances(truth, said, max(size), limit, select)
    else:
        scale = max(float(truth.abs().max()), 1e-6)
        difference = float((truth - said).abs().max()) / scale
    return Row(size=size, batch=len(images), examples=kind, difference=difference, limit=limit)


def difference_of_instances(
    truth: Sequence[Instances],
    said: Sequence[Instances],
    side: int,
    limit: float,
    select: SelectConfig,
) -> float:
    """Largest difference of box edges, scores and masks between matched detections of a batch.

    Detections of either side without a match within the limit count only where they are more than
    `MAX_UNMATCHED`; near the cut-off of `select`, where the list ends, they never count.
    """
    matched, unmatched = [0.0], []
    for wanted, given in zip(truth, said, strict=True):
        for one, other in ((wanted, given), (given, wanted)):
            # Below this score a detection would not be in the other list.
            full = len(other.scores) >= select.max_detections
            cut = float(other.scores.min()) if full else select.score_threshold
            for row in range(len(one.boxes)):
                difference, best = _find_match(one, row, other, side)
                if difference > limit:
                    if float(one.scores[row]) - cut >= limit:
                        unmatched.append(difference)
                    continue
                if one.masks is not None and other.masks is not None:
                    masks = (other.masks[best] - one.masks[row]).abs().max()
                    difference = max(difference, float(masks))
                matched.append(difference)
    if len(unmatched) > MAX_UNMATCHED * sum(len(one.boxes) for one in [*truth, *said]):
        matched += unmatched
    return float(torch.tensor(matched).max())  # NaN stays NaN


def _find_match(one: Instances, row: int, other: Instances, side: int) -> tuple[float, int]:
    """Difference of the most similar detection of `other`, and its row; 1 and -1 without any."""
    if not len(other.boxes):
        return 1.0, -1
    apart = (other.boxes - one.boxes[row]).abs().amax(dim=1) / side
    apart = torch.maximum(apart, (other.scores - one.scores[row]).abs())
    apart[other.class_ids != one.class_ids[row]] = 1.0
    best = int(apart.argmin())
    return float(apart[best]), best


def require_agreement(rows: Sequence[Row], what: str) -> None:
    """Check that every comparison passed."""
    failed = [row for row in rows if not row.passed]
    if not failed:
        return
    worst: Any = max(failed, key=lambda row: (row.difference != row.difference, row.difference))
    message = (
        f"outputs of {what} must match the network within {worst.limit:g} of the largest value, "
        f"got a difference of {worst.difference:.2g} on {worst.examples} images of "
        f"{worst.size[0]}x{worst.size[1]} in batches of {worst.batch}. No file was written."
    )
    raise RunError(message)
