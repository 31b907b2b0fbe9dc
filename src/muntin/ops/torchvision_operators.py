# SPDX-License-Identifier: Apache-2.0
"""Compiled operators of torchvision, without its Python package where that is not needed.

Importing torchvision takes longer than importing PyTorch: it loads all models and the compiler.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muntin.shapes import Float, Int

_MAX_SHIFTED = {"cpu": 4000}
"""More numbers than these are suppressed group by group; shifting boxes apart is slower then."""


def load_operators() -> Any:  # noqa: ANN401 (a namespace of operators)
    """Give ``torch.ops.torchvision``.

    Derivatives and shapes of its operators are in its Python package, which is imported if
    gradients are on. Whoever records a graph imports it before.
    """
    if "torchvision" not in sys.modules:
        library = None if torch.is_grad_enabled() else _find_library()
        if library is None:
            importlib.import_module("torchvision")
        elif library not in torch.ops.loaded_libraries:
            torch.ops.load_library(library)
    return torch.ops.torchvision


@functools.cache
def _find_library() -> str | None:
    """The file of the operators; None where torchvision has none of a known name."""
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    if folder is None:
        return None
    files = (folder / f"{name}.so" for name in ("_C_stable", "_C"))
    return next((str(file) for file in files if file.is_file()), None)


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
