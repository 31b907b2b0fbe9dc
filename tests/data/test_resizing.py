# SPDX-License-Identifier: Apache-2.0
"""Resizing, cutting and luminance have the bits of torchvision's, whose import takes seconds."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as peer

from muntin.data.batches import center_crop
from muntin.data.transforms import Preprocessing, resize, resize_part, to_luminance

SIZES = [((37, 50), (20, 24)), ((37, 50), (61, 24)), ((8, 9), (8, 32)), ((5, 1), (2, 3))]


def pixels(shape, dtype, *, together=False):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, shape, generator=generator).to(dtype)
    if together:  # channels last in memory, as decoders give them
        values = values.movedim(-3, -1).contiguous().movedim(-1, -3)
    return values


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.bfloat16])
def test_resizing(interpolation, dtype):
    for before, after in SIZES:
        for lead in ((3,), (1,), (2, 3)):
            for together in (False, True):
                image = pixels((*lead, *before), dtype, together=together)
                mode = InterpolationMode(interpolation)
                wanted = peer.resize(image, list(after), mode, antialias=True)
                # Ours ends at the limits of bytes whatever the type, as integers do.
                wanted = wanted.clamp(0, 255) if dtype.is_floating_point else wanted
                found = resize(image, after, interpolation)
                assert found.dtype == dtype
                assert torch.equal(found, wanted)
                assert found.stride() == wanted.stride()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "aliased"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_part_has_the_bits_of_the_whole(interpolation, dtype):
    rng = random.Random(0)
    for number in range(150):
        before, after = ((rng.randint(1, 70), rng.randint(1, 70)) for _ in range(2))
        after = (before[0], after[1]) if number % 5 == 0 else after
        bottom, right = (rng.randint(1, side) for side in after)
        top, left = rng.randrange(bottom), rng.randrange(right)
        # A part as long as the image was: it must be resized all the same.
        right = before[1] if left < before[1] < after[1] else right
        lead = ((3,), (1,), (2, 3), (5,))[number % 4]
        image = pixels((*lead, *before), dtype, together=number % 3 == 0)
        wanted = resize(image, after, interpolation)[..., top:bottom, left:right]
        found = resize_part(image, after, (top, left, bottom, right), interpolation)
        assert torch.equal(found, wanted)


def test_luminance():
    for dtype in (torch.uint8, torch.float32):
        image = pixels((2, 3, 7, 9), dtype)
        assert torch.equal(to_luminance(image), peer.rgb_to_grayscale(image))


@pytest.mark.parametrize("size", [(40, 40), (41, 60), (60, 41), (20, 60), (21, 23), (40, 39)])
def test_cutting_the_middle(size):
    image = pixels((3, *size), torch.uint8)
    for target in ((40, 40), (31, 44), (20, 23)):
        whole = Preprocessing(img_size=target, resize_to=size, mean=(0.0,) * 3, std=(1.0,) * 3)
        assert torch.equal(center_crop(image, whole), peer.center_crop(image, list(target)))
        before = replace(whole, crop_rounding="before")
        top, left = (int((have - want) / 2) for have, want in zip(size, target, strict=True))
        wanted = peer.crop(image, top, left, *target)
        assert torch.equal(center_crop(image, before), wanted)
