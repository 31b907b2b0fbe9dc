# SPDX-License-Identifier: Apache-2.0
"""Patches, windows, shifts and stages, against loops."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from muntin.explaining.context import record_forward
from muntin.explaining.figures import ExplanationFigure, MissingFigure
from muntin.explaining.patch_partition import show_patches
from muntin.explaining.window_partition import find_regions, shifted_indices
from muntin.models.swin import Swin
from muntin.models.vit import ViT
from muntin.ops.positions import SIZE_RULES
from muntin.ops.windows import lay_out, shift_mask
from tests.explaining.small_contexts import BUILDERS, build, make_context, timm_body
from tests.parity.peers import SWIN, VIT, batch_images, perturb

WANTED = {
    "vit": {"cut-patches"},
    "registers": {"cut-patches"},
    "swin": {"cut-patches", "cut-windows", "cut-shift-mask", "cut-stages"},
    "swin_v2": {"cut-patches", "cut-windows", "cut-shift-mask", "cut-stages"},
    "hiera": {"cut-patches", "cut-windows", "cut-stages"},
    "t2t": {"cut-patches", "cut-stages"},
    "t2t_quadratic": {"cut-patches", "cut-stages"},
}


def results(context):
    return {
        shown.name: shown for shown in show_patches(context) if isinstance(shown, ExplanationFigure)
    }


@pytest.mark.parametrize("name", BUILDERS)
def test_figures_of_every_family(name):
    shown = show_patches(make_context(build(name), (46, 58)))
    found = {each.name: each for each in shown if isinstance(each, ExplanationFigure)}
    assert found.keys() == WANTED[name]
    if name in ("swin", "hiera", "t2t"):
        for result in found.values():
            result.figure.canvas.draw()
    assert ("cut-windows" in found) != any(isinstance(each, MissingFigure) for each in shown)


@pytest.mark.parametrize("name", ["swin", "swin_v2", "hiera", "t2t"])
def test_stages_match_the_feature_maps(name):
    context = make_context(build(name), (46, 58))
    with torch.no_grad():
        maps = context.backbone(context.images)
    stages = results(context)["cut-stages"].facts["stages"]
    if name == "t2t":
        assert [row["grid"] for row in stages] == [[11, 14], [6, 7], [3, 4]]
        stages = stages[-1:]
    assert [row["channels"] for row in stages] == [each.shape[1] for each in maps]
    if name != "hiera":  # whose maps are given without the padding
        assert [tuple(row["grid"]) for row in stages] == [each.shape[2:] for each in maps]
    assert [row["stride"] for row in stages] == list(context.backbone.spec.strides)


@pytest.mark.parametrize("rule", ["muntin", "timm", "torchvision", "openmmlab"])
@pytest.mark.parametrize("size", [(8, 8), (13, 21), (4, 9), (3, 2)])
def test_regions_match_the_mask(size, rule):
    layout = lay_out(size, (4, 4), True, SIZE_RULES[rule])
    regions = find_regions(layout)
    mask = shift_mask(layout)
    if mask is None:
        assert not regions.any()
        return
    (rows, columns), (wh, ww) = layout.grid, layout.window
    for window in range(rows * columns):
        top, left = window // columns * wh, window % columns * ww
        inside = regions[top : top + wh, left : left + ww].ravel()
        apart = inside[:, None] != inside[None]
        assert np.array_equal(apart, mask[window].numpy() != 0)


@pytest.mark.parametrize("size", [(32, 32), (46, 58)])
def test_rolled_map_equals_torch_roll(size):
    for layer in record_forward(build("swin"), batch_images(size, 1)).layers:
        layout = layer.layout
        numbers = np.arange(layer.grid[0] * layer.grid[1]).reshape(layer.grid)
        padded = np.pad(numbers, [(0, layout.pad[0]), (0, layout.pad[1])], constant_values=-1)
        rolled = np.roll(padded, (-layout.shift[0], -layout.shift[1]), (0, 1))
        assert np.array_equal(shifted_indices(layer), rolled)


def test_mask_units_cover_the_same_area_until_attention_is_global():
    result = results(make_context(build("hiera"), (64, 96)))["cut-windows"]
    rows = result.facts["stages"]
    assert [row["windows"] for row in rows] == [[2, 3], [2, 3], [1, 1], [1, 1]]
    assert [row["window"] for row in rows] == [[8, 8], [4, 4], [4, 6], [2, 3]]
    layers = record_forward(build("hiera"), batch_images((64, 96), 1)).layers
    assert [title for row in rows for title in row["blocks"]] == [one.title for one in layers]
    titles = [axes.get_title() for axes in result.figure.axes]
    assert titles[0] == "blocks 1 to 2\n6 units of 8 x 8 tokens"
    assert titles[-1].endswith("global: 2 x 3 tokens")


def test_detector_padding_is_explained():
    context = make_context(build("vit"), (48, 56))
    enlarged = torch.nn.functional.pad(context.images, (0, 8, 0, 16))
    text = results(replace(context, images=enlarged))["cut-patches"].text
    assert re.search(r"48 x 56.*64 x 64.*8 x 8.*\b32\b", text)


@pytest.mark.parametrize("size", [(46, 58), (32, 32)])
def test_panels_of_windows_are_drawn_at_one_scale(size):
    figure = results(make_context(build("swin"), size))["cut-windows"].figure
    figure.canvas.draw()
    for start in range(0, len(figure.axes), 4):
        line = [axes for axes in figure.axes[start : start + 4] if axes.images]
        assert len({(axes.get_xlim(), axes.get_ylim()) for axes in line}) == 1
        titles = [axes.get_title() for axes in line]
        assert " 1 windows" not in titles[0]
        assert "\n1 windows" not in titles[0]


def test_facts_of_padding_and_windows():
    facts = results(make_context(build("swin"), (46, 58)))["cut-windows"].facts
    assert facts["stages"][0] == {
        "stage": 1,
        "tokens": [23, 29],
        "window": [4, 4],
        "windows": [6, 8],
        "padding": [1, 3],
        "shift": [2, 2],
    }


def test_cropped_pixels_are_mentioned():
    body = perturb(ViT(replace(VIT, size_rule="transformers")))
    patches = results(make_context(body, (45, 60)))["cut-patches"]
    assert patches.facts["grid"] == [5, 7]
    patches = results(make_context(build("vit"), (45, 60)))["cut-patches"]
    assert patches.facts["grid"] == [6, 8]


def test_image_smaller_than_a_window():
    found = results(make_context(build("swin"), (3, 5)))
    assert found.keys() == {"cut-patches", "cut-windows", "cut-stages"}
    for result in found.values():
        result.figure.canvas.draw()


def test_stages_outside_out_indices_are_shown():
    body = perturb(Swin(replace(SWIN, out_indices=(2,))))
    stages = results(make_context(body))["cut-stages"].facts["stages"]
    assert [row["channels"] for row in stages] == [16, 32, 64]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_timm_models(name):
    found = results(make_context(timm_body(name), (224, 224)))
    assert found["cut-patches"].facts["tokens"] == {"s": 3136, "v": 196}[name[0]]
    if name[0] == "s":
        channels = [row["channels"] for row in found["cut-stages"].facts["stages"]]
        assert channels == [96, 192, 384, 768]


def test_reason_without_patches():
    (shown,) = show_patches(make_context(None))
    assert isinstance(shown, MissingFigure)
    (shown,) = show_patches(make_context(timm_body("convnext_atto"), (64, 64)))
    assert isinstance(shown, MissingFigure)
