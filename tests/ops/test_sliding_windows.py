# SPDX-License-Identifier: Apache-2.0
"""Windows that leave no seams, and as little memory as they say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from muntin.ops import sliding_windows
from muntin.ops.sliding_windows import slide


class Local(nn.Module):
    """Looks at pixels nearby only: a map with cells of 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Conv2d(8, 5, 3, padding=1)
        )
        self.sizes: list[tuple[int, ...]] = []

    @torch.no_grad()
    def forward(self, images):
        self.sizes.append(tuple(images.shape))
        return self.body(images.float() / 255 - 0.5)


def pixels(height, width):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def whole(model, image, size):
    high, wide = (-(-side // 4) * 4 for side in image.shape[1:])
    filled = F.pad(
        image[None].float(), (0, wide - image.shape[2], 0, high - image.shape[1]), "replicate"
    )
    logits = model(filled)
    # Cells cover the filled image; the result only what was there.
    rows = (torch.arange(size[0]) + 0.5) * image.shape[1] / 4 / size[0] - 0.5
    columns = (torch.arange(size[1]) + 0.5) * image.shape[2] / 4 / size[1] - 0.5
    grid = torch.stack(
        torch.meshgrid(
            (columns + 0.5) / logits.shape[3] * 2 - 1, (rows + 0.5) / logits.shape[2] * 2 - 1,
            indexing="xy",
        ),
        dim=2,
    )  # fmt: skip
    return F.grid_sample(logits, grid[None], padding_mode="border", align_corners=False)[0]


def join(strips):
    rows = list(strips)
    tops = [strip.top for strip in rows]
    heights = [strip.logits.shape[1] for strip in rows]
    assert tops == [sum(heights[:i]) for i in range(len(heights))], "strips follow each other"
    return torch.cat([strip.logits for strip in rows], dim=1)


@pytest.mark.parametrize(
    "size", [(64, 64), (300, 420), (257, 193), (90, 1001), (1001, 90), (33, 5)]
)
@pytest.mark.parametrize("window", [(96, 128), (64, 64)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_no_seams(size, window, overlap):
    model, image = Local(), pixels(*size)
    found = join(slide(image, model, window, size, stride=4, overlap=overlap))
    wanted = whole(model, image, size)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.shape == (5, *size)


@pytest.mark.parametrize("out", [(150, 210), (601, 900), (31, 17), (1, 1)])
@pytest.mark.parametrize("rows", [0, 1, 13])
def test_any_size_of_the_result_and_any_strips(out, rows):
    model, image = Local(), pixels(300, 420)
    found = join(slide(image, model, (96, 128), out, stride=4, rows=rows))
    torch.testing.assert_close(found, whole(model, image, out), rtol=1e-4, atol=1e-5)


def test_windows_are_no_larger_than_asked_for():
    model = Local()
    for _ in slide(pixels(1000, 700), model, (128, 96), (1000, 700), stride=4):
        pass
    assert max(size[2] for size in model.sizes) <= 128
    assert max(size[3] for size in model.sizes) <= 96


def test_logits_of_a_strip_are_all_that_is_held():
    """The band is as high as a window, however high the image is."""
    model = Local()
    tallest = 0
    for strip in slide(pixels(2000, 128), model, (128, 128), (2000, 128), stride=4):
        tallest = max(tallest, strip.logits.shape[1])
    assert tallest <= sliding_windows.STRIP_VALUES // (5 * 128)
