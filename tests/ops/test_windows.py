# SPDX-License-Identifier: Apache-2.0
"""Windows against twins written with loops, and the size rules one by one."""

from __future__ import annotations

import pytest
import torch

from muntin.errors import ShapeError
from muntin.ops.positions import SIZE_RULES, fit_patches
from muntin.ops.windows import (
    MASKED,
    WindowLayout,
    cut_windows,
    join_windows,
    lay_out,
    merge_neighbours,
    shift_mask,
)

SIZES = [(8, 8), (7, 10), (3, 5), (1, 1), (4, 9), (12, 4)]
LAYOUTS = [
    lay_out(size, window, shifted, SIZE_RULES[rule], built_size=(8, 8))
    for size in SIZES
    for window in ((4, 4), (3, 5))
    for shifted in (False, True)
    for rule in SIZE_RULES
]


def slow_cut(x, layout, fill):
    """Which token stands where in which window, one by one."""
    batch, height, width, channels = x.shape
    (wh, ww), (rows, columns) = layout.window, layout.grid
    total = (rows * wh, columns * ww)
    out = torch.empty(batch, rows * columns, wh * ww, channels)
    outside = torch.zeros(channels) if fill is None else fill
    for top in range(total[0]):
        for left in range(total[1]):
            # Padding that comes after the roll is not rolled.
            over = total if layout.pad_first else (height, width)
            if layout.pad_first or (top < height and left < width):
                y = (top + layout.shift[0]) % over[0]
                x_ = (left + layout.shift[1]) % over[1]
            else:
                y, x_ = height, width
            value = x[:, y, x_] if y < height and x_ < width else outside
            window = (top // wh) * columns + left // ww
            out[:, window, (top % wh) * ww + left % ww] = value
    return out


def slow_mask(layout):
    """Tokens attend when no seam of the roll lies between them."""
    (wh, ww), (rows, columns) = layout.window, layout.grid
    total = (rows * wh, columns * ww)
    out = torch.zeros(rows * columns, wh * ww, wh * ww)

    def side(place, axis):
        return layout.shift[axis] > 0 and place >= total[axis] - layout.shift[axis]

    for window in range(rows * columns):
        first = (window // columns * wh, window % columns * ww)
        for query in range(wh * ww):
            for key in range(wh * ww):
                q = (first[0] + query // ww, first[1] + query % ww)
                k = (first[0] + key // ww, first[1] + key % ww)
                if any(side(q[axis], axis) != side(k[axis], axis) for axis in (0, 1)):
                    out[window, query, key] = MASKED
    return out


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_cut_join_and_mask_equal_their_slow_twins(layout):
    x = torch.randn(2, *layout.size, 3)
    for fill in (None, torch.tensor([1.0, -2.0, 3.0])):
        windows = cut_windows(x, layout, fill)
        assert torch.equal(windows, slow_cut(x, layout, fill))
        assert torch.equal(join_windows(windows, layout), x)
    mask = shift_mask(layout)
    if layout.shift == (0, 0):
        assert mask is None
    else:
        assert torch.equal(mask, slow_mask(layout))


def test_mask_has_the_type_asked_for():
    layout = lay_out((8, 8), (4, 4), True, SIZE_RULES["muntin"])
    assert shift_mask(layout, dtype=torch.bfloat16).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("rule", "size", "window", "shift", "pad"),
    [
        # A map of several windows: all agree but on the padding.
        *((rule, (14, 21), (7, 7), (3, 3), (0, 0)) for rule in SIZE_RULES),
        *((rule, (10, 16), (7, 7), (3, 3), (4, 5)) for rule in SIZE_RULES),
        # One window exactly.
        ("muntin", (7, 7), (7, 7), (0, 0), (0, 0)),
        ("timm", (7, 7), (7, 7), (3, 3), (0, 0)),
        ("torchvision", (7, 7), (7, 7), (0, 0), (0, 0)),
        ("transformers", (7, 7), (7, 7), (0, 0), (0, 0)),
        ("microsoft", (7, 7), (7, 7), (0, 0), (0, 0)),
        ("openmmlab", (7, 7), (7, 7), (3, 3), (0, 0)),
        # One side shorter than the window.
        ("muntin", (5, 16), (5, 7), (0, 3), (0, 5)),
        ("timm", (5, 16), (7, 7), (3, 3), (2, 5)),
        ("torchvision", (5, 16), (7, 7), (0, 3), (2, 5)),
        ("transformers", (5, 16), (5, 5), (0, 0), (0, 4)),
        ("microsoft", (5, 16), (5, 5), (0, 0), (0, 4)),
        ("openmmlab", (5, 16), (7, 7), (3, 3), (2, 5)),
        # One token.
        ("muntin", (1, 1), (1, 1), (0, 0), (0, 0)),
        ("torchvision", (1, 1), (7, 7), (0, 0), (6, 6)),
        ("transformers", (1, 1), (1, 1), (0, 0), (0, 0)),
    ],
)
def test_rules_for_a_shifted_block_with_window_7(rule, size, window, shift, pad):
    layout = lay_out(size, (7, 7), True, SIZE_RULES[rule], built_size=(28, 28))
    assert (layout.window, layout.shift, layout.pad) == (window, shift, pad)
    assert layout.pad_first is (rule != "timm")
    assert lay_out(size, (7, 7), False, SIZE_RULES[rule], built_size=(28, 28)).shift == (0, 0)


@pytest.mark.parametrize(
    ("built", "window", "shift"),
    [
        ((4, 4), (4, 4), (0, 0)),
        ((4, 9), (4, 7), (0, 3)),
        ((7, 8), (7, 7), (0, 3)),
        (None, (7, 7), (3, 3)),
    ],
)
def test_timm_decides_by_the_size_it_was_built_for(built, window, shift):
    layout = lay_out((20, 30), (7, 7), True, SIZE_RULES["timm"], built_size=built)
    assert (layout.window, layout.shift) == (window, shift)


def test_layout_counts_windows_and_tokens():
    layout = WindowLayout(
        size=(5, 8), window=(3, 4), shift=(0, 0), pad=(1, 0), pad_first=True, built_window=(3, 4)
    )
    assert (layout.grid, layout.num_windows, layout.num_tokens) == ((2, 2), 4, 12)


@pytest.mark.parametrize(
    ("how", "size", "expected"),
    [
        ("pad", (8, 8), (8, 8)),
        ("pad", (5, 9), (8, 12)),
        ("pad", (1, 1), (4, 4)),
        ("crop", (5, 9), (4, 8)),
        ("crop", (8, 8), (8, 8)),
        ("refuse", (8, 12), (8, 12)),
    ],
)
def test_images_are_brought_to_whole_patches(how, size, expected):
    images = torch.randn(1, 2, *size)
    fitted = fit_patches(images, 4, how)
    assert fitted.shape == (1, 2, *expected)
    common = [min(pair) for pair in zip(size, expected, strict=True)]
    assert torch.equal(fitted[..., : common[0], : common[1]], images[..., : common[0], : common[1]])
    torch.testing.assert_close(fitted.sum(), images[..., : common[0], : common[1]].sum())


@pytest.mark.parametrize(("how", "size"), [("refuse", (5, 8)), ("crop", (3, 8))])
def test_images_that_cannot_be_cut_into_patches_are_refused(how, size):
    text = rf"patch_size=4\b.*\b{size[0]}\b.*\b{size[1]}\b"
    with pytest.raises(ShapeError, match=text):
        fit_patches(torch.zeros(1, 3, *size), 4, how)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ShapeError, match="B, C, H, W"):
        fit_patches(torch.zeros(1, 3, 0, 8), 4, "pad")


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (2, 3)])
def test_merging_equals_its_slow_twin(size):
    x = torch.randn(2, *size, 3)
    merged = merge_neighbours(x)
    height, width = size
    assert merged.shape == (2, -(-height // 2), -(-width // 2), 12)
    for row in range(merged.shape[1]):
        for column in range(merged.shape[2]):
            for part, (down, right) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
                y, x_ = 2 * row + down, 2 * column + right
                inside = y < height and x_ < width
                expected = x[:, y, x_] if inside else torch.zeros(2, 3)
                assert torch.equal(merged[:, row, column, 3 * part : 3 * part + 3], expected)
