# SPDX-License-Identifier: Apache-2.0
"""Position embeddings and biases, compared with loops and timm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from muntin.explaining.context import record_forward
from muntin.explaining.figures import ExplanationFigure, MissingFigure
from muntin.explaining.position_embedding import (
    compare_positions,
    find_biases,
    find_positions,
    show_positions,
)
from muntin.models.swin import SWIN_NANO_256, Swin
from muntin.models.swin_v2 import SwinV2
from muntin.models.vit import ViT
from muntin.ops.positions import expand_relative_position_bias
from tests.explaining.small_contexts import BUILDERS, SWIN_V2, build, make_context, timm_body
from tests.parity.peers import VIT, batch_images, perturb
from tests.parity.test_swin_v2_parity import timm_peer as timm_swin_v2

EXPECTED = {
    "vit": {"positions-similarity", "positions-class-token"},
    "registers": {"positions-similarity", "positions-class-token"},
    "swin": {"positions-relative-bias"},
    "swin_v2": {"positions-relative-bias", "positions-continuous-bias"},
    "hiera": {"positions-similarity"},
    "t2t": {"positions-similarity", "positions-class-token"},
    "t2t_quadratic": {"positions-similarity", "positions-class-token"},
}


def results(context):
    return {
        shown.name: shown
        for shown in show_positions(context)
        if isinstance(shown, ExplanationFigure)
    }


@pytest.mark.parametrize("name", BUILDERS)
def test_figures_of_every_family(name):
    found = results(make_context(build(name), (46, 58)))
    assert found.keys() == EXPECTED[name]
    for result in found.values():
        result.figure.canvas.draw()


def test_similarity_equals_a_loop():
    table = torch.randn(7, 5)
    found = compare_positions(table, torch.tensor([2, 6]))
    for row, first in enumerate((2, 6)):
        for column in range(7):
            a, b = table[first].numpy(), table[column].numpy()
            expected = a @ b / np.sqrt((a @ a) * (b @ b))
            assert found[row, column] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
def test_resized_embedding_equals_that_of_the_model(size):
    body = build("vit")
    grid = (size[0] // 8, size[1] // 8)
    blank = torch.zeros(1, grid[0] * grid[1], 24)
    with torch.no_grad():
        added = body.add_tokens(blank, grid)[0, 1:]
    assert torch.equal(find_positions(body).resize(grid), added)


def test_original_and_resized_grid():
    native = results(make_context(build("vit"), (32, 32)))["positions-similarity"]
    assert native.arrays["native"].shape == (4, 4, 4, 4)
    assert native.arrays["resized"].shape == (8, 8, 8, 8)
    other = results(make_context(build("vit"), (40, 128)))["positions-similarity"]
    assert other.arrays["resized"].shape == (5, 8, 5, 16)
    for row in range(4):
        for column in range(4):
            assert native.arrays["native"][row, column, row, column] == pytest.approx(1, abs=1e-5)


def test_class_token_similarity():
    body = build("vit")
    found = results(make_context(body))["positions-class-token"].arrays["similarity"]
    table = body.pos_embed.detach()[0]
    expected = torch.cosine_similarity(table[:1], table[1:], dim=1).view(4, 4)
    assert np.allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"prefix_positions": False}, {"positions-similarity"}),
        (
            {"class_token": False, "shared_position": True, "pool": "mean"},
            {"positions-similarity", "positions-class-token"},
        ),
        ({"distillation_token": True}, {"positions-similarity", "positions-class-token"}),
        (
            {"relative_pos_bias": True, "absolute_pos_embed": False},
            {"positions-relative-bias"},
        ),
    ],
)
def test_variants_of_vit(changes, names):
    found = results(make_context(perturb(ViT(replace(VIT, **changes)))))
    assert found.keys() == names
    if "distillation_token" in changes:
        told = found["positions-class-token"].facts["tokens"]
        assert told == ["class token", "distillation token"]


def test_absolute_positions_of_a_swin():
    config = replace(SWIN_NANO_256, embed_dim=12, img_size=(64, 64), num_heads=(1, 2, 4))
    found = results(make_context(perturb(Swin(config))))
    assert found.keys() == {"positions-similarity", "positions-relative-bias"}
    assert found["positions-similarity"].facts["native grid"] == [16, 16]


@pytest.mark.parametrize("name", ["swin", "swin_v2"])
def test_bias_table_orientation(name):
    body = build(name)
    layers = record_forward(body, batch_images((64, 48), 1)).layers
    for layer, bias in zip(layers, find_biases(body, layers), strict=True):
        module = body.get_submodule(layer.name)
        window = layer.layout.window
        if name == "swin":
            pairs = expand_relative_position_bias(
                module.relative_position_bias_table, table_window=(4, 4), window=window
            )
        else:
            pairs = module.relative_position_bias(layer.layout)
        pairs = pairs.detach().numpy()
        middle = [(side - 1) // 2 for side in bias.values.shape[1:]]
        for query in range(window[0] * window[1]):
            for key in range(window[0] * window[1]):
                down = key // window[1] - query // window[1]
                right = key % window[1] - query % window[1]
                read = bias.values[:, middle[0] + down, middle[1] + right].numpy()
                assert np.allclose(read, pairs[:, query, key], atol=1e-6)


def test_continuous_bias_matches_the_table():
    context = make_context(build("swin_v2"), (64, 64))
    found = results(context)["positions-continuous-bias"].arrays
    layers = context.recording.layers
    table = find_biases(context.backbone, layers)[1].values[:, 3]  # h, 7: the row of the query
    offsets, values = found["offsets_stage_1"], found["bias_stage_1"]
    for place, offset in enumerate(range(-3, 4)):
        read = values[:, int(np.flatnonzero(offsets == offset)[0])]
        assert np.allclose(read, table[:, place], atol=1e-5)


@pytest.mark.parity
def test_swin_v2_bias_equals_timm():
    from muntin.weights.weight_loading import load_weights

    peer = perturb(timm_swin_v2(SWIN_V2))
    model = SwinV2(replace(SWIN_V2, size_rule="timm")).eval()
    load_weights(model, peer.state_dict())
    layers = record_forward(model, batch_images((32, 32), 1)).layers
    ours = find_biases(model, layers)[0].values
    attention = peer.layers[0].blocks[0].attn
    with torch.no_grad():
        theirs = 16 * torch.sigmoid(attention.cpb_mlp(attention.relative_coords_table))[0]
    assert torch.allclose(ours, theirs.permute(2, 0, 1).flip(1, 2), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_timm_models(name):
    found = results(make_context(timm_body(name), (224, 224)))
    if name[0] == "s":
        assert found["positions-relative-bias"].arrays["table_01"].shape == (3, 13, 13)
    else:
        assert found["positions-similarity"].facts["native grid"] == [14, 14]


def test_reason_without_positions():
    (shown,) = show_positions(make_context(None))
    assert isinstance(shown, MissingFigure)
    (shown,) = show_positions(make_context(timm_body("convnext_atto"), (64, 64)))
    assert isinstance(shown, MissingFigure)
