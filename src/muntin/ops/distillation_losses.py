# SPDX-License-Identifier: Apache-2.0
"""Losses by which a student agrees with a teacher.

Letters: B images, K classes, C channels.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.shapes import Bool, Float

_BETA = 2.0
"""Where the smooth L1 loss of features turns from square to linear, as published."""


def hard_losses(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], *, multi_label: bool = False
) -> Float[Tensor, " B"]:
    """Cross-entropy with the class that the teacher's logits rank first.

    With `multi_label`, binary cross-entropy with its decision for each class, averaged.
    Touvron et al. 2021 (arXiv 2012.12877), section 4, without smoothing of the teacher's label.
    """
    student = student.float()
    if multi_label:
        chosen = (teacher > 0).float()
        return F.binary_cross_entropy_with_logits(student, chosen, reduction="none").mean(dim=1)
    return F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")


def soft_losses(
    student: Float[Tensor, "B K"],
    teacher: Float[Tensor, "B K"],
    temperature: float,
    *,
    multi_label: bool = False,
) -> Float[Tensor, " B"]:
    """Divergence (KL) from the student's probabilities to the teacher's, times temperature squared.

    Both logits are divided by the temperature. With `multi_label`, the divergence of each class
    from 1 - its probability counts too, averaged over classes. Hinton et al. 2015 (arXiv
    1503.02531); a mean over images follows, as in the formula of arXiv 2012.12877, whose published
    code also divides by the number of classes.
    """
    ours, theirs = student.float() / temperature, teacher.float() / temperature
    diverge, log = partial(F.kl_div, reduction="none", log_target=True), F.logsigmoid
    if multi_label:
        each = diverge(log(ours), log(theirs)) + diverge(log(-ours), log(-theirs))
        return temperature**2 * each.mean(dim=1)
    return temperature**2 * diverge(ours.log_softmax(dim=1), theirs.log_softmax(dim=1)).sum(dim=1)


def feature_losses(
    student: Float[Tensor, "B C h w"],
    teacher: Float[Tensor, "B C H W"],
    inside: Bool[Tensor, "B h w"] | None = None,
) -> Float[Tensor, " B"]:
    """Smooth L1 loss between a student's map and a teacher's, resized to the cells of the student.

    The teacher's channels are normalised at each cell to mean 0 and variance 1; the mean is over
    channels and the cells `inside` the image. Wei et al. 2022 (arXiv 2205.14141), section 3.
    """
    size = (student.shape[2], student.shape[3])
    resized = F.interpolate(
        teacher.float(), size, mode="bilinear", align_corners=False, antialias=True
    )
    # At each cell, not over the image: channels with large values would count alone.
    wanted = F.layer_norm(resized.permute(0, 2, 3, 1), (teacher.shape[1],))
    found = student.float().permute(0, 2, 3, 1)
    cells = F.smooth_l1_loss(found, wanted, beta=_BETA, reduction="none").mean(dim=3)
    if inside is None:
        return cells.mean(dim=(1, 2))
    return (cells * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)


def find_inside(
    sizes: Tensor, image_size: tuple[int, int], cells: tuple[int, int]
) -> Bool[Tensor, "B h w"]:
    """Cells of a map whose middle lies inside the image, whose (height, width) are `sizes`."""
    masks = []
    for axis in (0, 1):
        middle = (torch.arange(cells[axis], device=sizes.device) + 0.5) / cells[axis]
        masks.append(middle * image_size[axis] < sizes[:, axis, None])
    return masks[0][:, :, None] & masks[1][:, None, :]
