# SPDX-License-Identifier: Apache-2.0
"""From raw output to pixels of the original: masks of objects, and windows of maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import muntin
from muntin.data.transforms import Preprocessing
from muntin.heads.detector import Instances
from muntin.prediction.predictor import Predictor
from muntin.run_lengths import decode_mask
from muntin.samples import Classes
from muntin.tasks.semantic_task import AT_ONCE, WINDOW_FACTOR
from muntin.tasks.task import ImageMeta
from muntin.tasks.task_table import find_task

CLASSES = Classes(names=("a", "b"))


def sample_on_a_grid(mask, box, size):
    """Scores at every pixel of the image, as detectron2 has them; 0 beyond the box's pixels."""
    x1, y1, x2, y2 = box.tolist()
    y = (torch.arange(size[0]).double() + 0.5 - y1) / max(y2 - y1, 1e-6) * 2 - 1
    x = (torch.arange(size[1]).double() + 0.5 - x1) / max(x2 - x1, 1e-6) * 2 - 1
    grid = torch.stack([x.expand(size[0], -1), y[:, None].expand(-1, size[1])], dim=2)
    scores = F.grid_sample(mask[None, None].double(), grid[None], align_corners=False)[0, 0]
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    inside = (rows >= int(y1)) & (rows < -(-y2 // 1)) & (columns >= int(x1))
    return (scores * (inside & (columns < -(-x2 // 1)))).numpy()


@pytest.mark.parametrize("count", [0, 1, 300])
@pytest.mark.parametrize("size", [(37, 53), (64, 48)])
def test_masks_are_those_of_a_grid(count, size):
    generator = torch.Generator().manual_seed(count)
    inner = (32, 48)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([44.0, 28.0]) - 3
    sides = 0.2 + torch.rand(count, 2, generator=generator) * 30
    # Some touch the borders of the image, and some have one row or column.
    boxes = torch.cat([corners, corners + sides], dim=1).clamp(min=0)
    boxes = boxes.minimum(torch.tensor([48.0, 32.0, 48.0, 32.0]))
    masks = torch.rand(count, 28, 28, generator=generator)
    found = Instances(boxes, torch.ones(count), torch.zeros(count, dtype=torch.long), masks)
    meta = ImageMeta(path="", size=size, input_size=inner)
    (result,) = find_task("instance").decode([found], [meta], CLASSES)
    assert len(result) == len(result.masks) == count
    for mask, box, given in zip(result.masks, result.boxes, masks, strict=True):
        scores = sample_on_a_grid(given, torch.from_numpy(box).float(), size)
        sure = np.abs(scores - 0.5) > 1e-5  # of others rounding decides
        np.testing.assert_array_equal(decode_mask(mask)[sure], (scores >= 0.5)[sure])


@pytest.mark.parametrize("whole", [True, False])
def test_images_of_little_more_than_a_window_are_seen_at_once(whole):
    small = {"embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 1, 2)}
    name = "swin_nano_patch4_window4_64"
    network = muntin.create("semantic", name, head="light_small", num_classes=2, **small)
    side = 32 * WINDOW_FACTOR
    wide = int(AT_ONCE * side) if whole else int(AT_ONCE * side) + 1
    pre = Preprocessing(img_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, fit="sliding_window")
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    predict = Predictor(network, find_task("semantic"), CLASSES, pre, device="cpu")
    (result,) = predict(np.zeros((side, wide, 3), np.uint8))
    assert result.labels.shape == (side, wide)
    columns = {size[1] for size in seen}
    assert columns == {-(-wide // 4) * 4} if whole else max(columns) <= side
