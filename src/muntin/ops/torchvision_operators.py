# SPDX-License-Identifier: Apache-2.0
"""Compiled operators of torchvision, without its Python package where that is not needed.

Importing torchvision takes longer than importing PyTorch: it loads all models and the compiler.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muntin.shapes import Float, Int, Size, UInt8

_MAX_SHIFTED = {"cpu": 4000}
"""More numbers than these are suppressed group by group; shifting boxes apart is slower then."""


def load_operators() -> Any:  # noqa: ANN401 (a namespace of operators)
    """Give ``torch.ops.torchvision``.

    Derivatives and shapes of its operators are in its Python package, which is imported if
    gradients are on. Whoever records a graph imports it before.
    """
    if "torchvision" not in sys.modules and (
        torch.is_grad_enabled() or not _load_library("_C_stable", "_C")
    ):
        importlib.import_module("torchvision")
    return torch.ops.torchvision


# Not of PNG: damaged files end the process.
_DECODERS = {"JPEG": "decode_jpeg", "WEBP": "decode_webp"}


def decode_file(format_name: str, data: bytes, size: Size) -> UInt8[Tensor, "3 H W"] | None:
    """Decode a file of a format, in Pillow's words, to RGB; channels are last in memory.

    It is not turned. None where this torchvision has no decoder of it, where that fails, and where
    the image has not the `size` (height, width) that its header was said to have.
    """
    if not _load_library("image_stable", "image"):
        return None
    try:
        # A copy, as PyTorch takes no memory that cannot be written.
        encoded = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        found: Tensor = getattr(torch.ops.image, _DECODERS[format_name])(encoded, 3)
    except (KeyError, AttributeError, RuntimeError):
        return None
    return found if found.shape[1:] == size else None


@functools.cache
def _load_library(*names: str) -> bool:
    """Load the first of some libraries of torchvision; False where none can be."""
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    files = [folder / f"{name}.so" for name in names] if folder is not None else []
    for file in filter(Path.is_file, files):
        with contextlib.suppress(OSError):  # what it was built with is missing
            torch.ops.load_library(str(file))
            return True
    return False


def nms(boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], iou: float) -> Int[Tensor, " M"]:
    """Non-maximum suppression; indices of the kept boxes, best first."""
    return load_operators().nms(boxes, scores, iou)


def batched_nms(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], groups: Int[Tensor, " N"], iou: float
) -> Int[Tensor, " M"]:
    """Non-maximum suppression within each group; bits as ``torchvision.ops.batched_nms``."""
    if not boxes.numel():
        return groups.new_zeros(0, dtype=torch.long)
    if boxes.numel() <= _MAX_SHIFTED.get(boxes.device.type, 100_000):
        apart = groups.to(boxes) * (boxes.max() + torch.tensor(1).to(boxes))
        return nms(boxes + apart[:, None], scores, iou)
    found = (torch.where(groups == group)[0] for group in groups.unique())
    kept = torch.cat([here[nms(boxes[here], scores[here], iou)] for here in found]).sort()[0]
    return kept[scores[kept].sort(descending=True)[1]]


def roi_align(
    features: Float[Tensor, "B C H W"],
    regions: Float[Tensor, "Q 5"],
    side: int,
    *,
    scale: float,
    sampling: int,
    aligned: bool,
) -> Float[Tensor, "Q C side side"]:
    """Pool regions (image, x1, y1, x2, y2) of a map to `side` cells a side; `scale` is 1 / stride.

    `sampling` points a cell and axis, 0 for as many as it covers; `aligned` shifts by half a pixel.
    He et al. 2017 (arXiv 1703.06870), section 3.
    """
    if torch.are_deterministic_algorithms_enabled():  # of which the package has another on GPUs
        from torchvision.ops import roi_align as exact

        return exact(features, regions, side, scale, sampling, aligned)
    operators = load_operators()
    return operators.roi_align(features, regions, scale, side, side, sampling, aligned)
