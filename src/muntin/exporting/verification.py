# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Whether an engine says what the network says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader
from muntin.data.synthetic_scenes import make_scene
from muntin.data.transforms import Preprocessing, normalise, to_tensor
from muntin.engines.engine_network import EngineNetwork
from muntin.engines.graphs import Precision
from muntin.errors import RunError
from muntin.heads.instances import Instances
from muntin.heads.network import Network
from muntin.shapes import Int, Size, UInt8

__all__ = ["Row", "compare", "comparison_images", "require_agreement"]

BATCHES = (1, 3, 8)

LIMITS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.1, "int8": float("inf")}
"""Largest difference, as a part of the largest value. int8 answers for its loss on data instead."""

LIMIT_FOUND = 1e-3
"""Of scores and masks of objects, and of edges of boxes as a part of the image's longer side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        size: (height, width) of the images.
        batch: Images at a time.
        examples: "random", "drawn" or "real".
        difference: The largest one, as a part of the largest value.
        limit: What is allowed.
    """

    size: Size
    batch: int
    examples: str
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is small enough; a difference that is no number is not."""
        return self.difference <= self.limit


def comparison_images(
    store: ImageCache | None, pre: Preprocessing, canvas: Size
) -> Iterator[tuple[str, UInt8[Tensor, "B C H W"], Int[Tensor, "B 2"]]]:
    """Give images to compare on, in batches of 1, 3 and 8: random pixels, and real images.

    Where there is no set, drawn scenes take the place of the real ones.
    """
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        images = torch.randint(
            0, 256, (batch, pre.in_chans, *canvas), dtype=torch.uint8, generator=generator
        )
        yield "random", images, torch.tensor([canvas] * batch)
    kind = "drawn" if store is None else "real"
    part = _draw(pre, canvas) if store is None else _read(store)
    most = len(part.images)
    high, wide = part.images.shape[2:]
    images = F.pad(part.images, (0, max(0, canvas[1] - wide), 0, max(0, canvas[0] - high)))
    images = images[:, :, : canvas[0], : canvas[1]]
    sizes = torch.minimum(part.sizes, torch.tensor(canvas))
    for batch in BATCHES:
        rows = torch.arange(batch) % most
        yield kind, images[rows].contiguous(), sizes[rows]


class _Part(NamedTuple):
    images: UInt8[Tensor, "B C H W"]
    sizes: Int[Tensor, "B 2"]


def _read(store: ImageCache) -> _Part:
    batch = next(iter(EvalLoader(store, batch_size=min(len(store), max(BATCHES)))))
    return _Part(batch.images, batch.sizes)


def _draw(pre: Preprocessing, canvas: Size) -> _Part:
    size = (max(16, canvas[0]), max(16, canvas[1]))
    scenes = [make_scene(0, number, size=size, max_objects=6) for number in range(max(BATCHES))]
    images = torch.stack([to_tensor(scene.image, pre.in_chans) for scene in scenes])
    return _Part(images, torch.tensor([size] * len(scenes)))


@torch.no_grad()
def compare(
    network: Network,
    engine: EngineNetwork,
    pre: Preprocessing,
    examples: tuple[str, UInt8[Tensor, "B C H W"], Int[Tensor, "B 2"]],
    *,
    finds: bool,
    precision: Precision,
) -> Row:
    """Show images to both.

    Args:
        network: Reads normalised images.
        engine: Reads pixels.
        pre: How they are normalised.
        examples: Of `comparison_images`.
        finds: Whether both tell objects.
        precision: Of the engine.
    """
    kind, images, sizes = examples
    inside = sizes if finds else None
    truth = network.decode(network(normalise(images, pre, inside), inside))
    said = engine.decode(engine(images, inside))
    size: Size = (images.shape[2], images.shape[3])
    if finds:
        difference = max(
            _difference_of_found(one, other, max(size))
            for one, other in zip(truth, said, strict=True)
        )
    else:
        scale = max(float(truth.abs().max()), 1e-6)
        difference = float((truth - said).abs().max()) / scale
    limit = LIMIT_FOUND if finds and precision == "fp32" else LIMITS[precision]
    return Row(size=size, batch=len(images), examples=kind, difference=difference, limit=limit)


def _difference_of_found(truth: Instances, said: Instances, side: int) -> float:
    """The largest difference between objects that belong together; 1 where one has no partner."""
    worst = 0.0
    last = float(truth.scores.min()) if len(truth.scores) else 0.0
    for row in range(len(truth.boxes)):
        same = said.class_ids == truth.class_ids[row]
        apart = (said.boxes - truth.boxes[row]).abs().amax(dim=1) / side
        apart = torch.maximum(apart, (said.scores - truth.scores[row]).abs())
        apart[~same] = 1.0
        best = int(apart.argmin()) if len(apart) else -1
        difference = float(apart[best]) if len(apart) else 1.0
        if difference > LIMIT_FOUND and float(truth.scores[row]) - last < LIMIT_FOUND:
            continue  # the last of the list: another one may have come before it
        if truth.masks is not None and said.masks is not None and difference < 1:
            masks = (said.masks[best] - truth.masks[row]).abs().max()
            difference = max(difference, float(masks))
        worst = max(worst, difference)
    return worst


def require_agreement(rows: Sequence[Row], what: str) -> None:
    """Make sure that every comparison passed.

    Raises:
        RunError: One did not.
    """
    failed = [row for row in rows if not row.passed]
    if not failed:
        return
    worst: Any = max(failed, key=lambda row: (row.difference != row.difference, row.difference))
    message = (
        f"{what} must say what the network says, to {worst.limit:g} of the largest value, got a "
        f"difference of {worst.difference:.2g} on {worst.examples} images of "
        f"{worst.size[0]}x{worst.size[1]}, {worst.batch} at a time. Nothing was written."
    )
    raise RunError(message)
