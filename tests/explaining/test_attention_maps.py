# SPDX-License-Identifier: Apache-2.0
"""Attention of a point and of the class token, rollout and distances, against loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from muntin.explaining.attention_layers import (
    can_roll_out,
    make_point_layers,
    roll_out,
)
from muntin.explaining.attention_maps import show_attention
from muntin.explaining.figures import ExplanationFigure, MissingFigure
from muntin.explaining.plotting import blend_tokens
from muntin.models.vit import ViT
from muntin.tasks.task_table import find_task
from tests.explaining.small_contexts import (
    BUILDERS,
    build,
    make_context,
    timm_body,
)
from tests.parity.peers import VIT, batch_images, perturb


def results(context):
    return {
        shown.name: shown
        for shown in show_attention(context)
        if isinstance(shown, ExplanationFigure)
    }


def missing(context):
    return [shown for shown in show_attention(context) if isinstance(shown, MissingFigure)]


@pytest.mark.parametrize("name", BUILDERS)
def test_figures_of_every_family(name):
    context = make_context(build(name))
    found = results(context)
    wanted = {"attention-point", "attention-point-heads", "attention-distance"}
    if name in ("vit", "registers", "t2t", "t2t_quadratic"):
        wanted |= {"attention-class-token", "attention-class-token-heads", "attention-rollout"}
        assert not missing(context)
    else:
        assert len(missing(context)) == 2
    assert found.keys() == wanted
    for result in found.values():
        assert result.formula.startswith("<math")
        assert result.arrays
        if name in ("swin", "t2t"):
            result.figure.canvas.draw()


@pytest.mark.parametrize("name", BUILDERS)
def test_point_layers_match_attention_weights(name):
    context = make_context(build(name), (46, 58))
    layers = context.recording.layers
    tables = make_point_layers(layers)
    assert len(tables) == sum(1 + layer.num_heads * (layer.num_heads > 1) for layer in layers)
    place = iter(tables)
    for layer in layers:
        heads = list(layer.attention_weights())
        heads = [layer.mean_attention(), *heads] if len(heads) > 1 else heads
        for weights in heads:
            table = next(place)
            assert table.grid == layer.grid
            assert table.covered == (layer.grid[0] * layer.stride, layer.grid[1] * layer.stride)
            for group, queries in enumerate(layer.queries.tolist()):
                for query, number in enumerate(queries):
                    if number < 0:
                        continue
                    down, across = divmod(number, layer.query_grid[1])
                    token = down * layer.pooled * layer.grid[1] + across * layer.pooled
                    assert table.keys[token].tolist() == layer.keys[group].tolist()
                    read = table.weights[token] / 255 * table.largest[token]
                    step = float(table.largest[token]) / 255
                    assert np.abs(read - weights[group, query].numpy()).max() <= 0.51 * step


def test_tables_fit_the_limit_and_keep_the_largest_weights():
    context = make_context(build("vit"), (128, 128))
    layers = context.recording.layers
    tables = make_point_layers(layers, max_bytes=3 * 256 * 30)
    assert len(tables) == 3
    for table, layer in zip(tables, layers, strict=True):
        assert table.weights.shape == (256, 30)
        best = layer.mean_attention()[0, 1:].sort(dim=1, descending=True)
        assert np.allclose(table.largest, best.values[:, 0])
        chosen = layer.keys[0][best.indices[:, :30]]
        assert torch.equal(chosen.sort().values, torch.from_numpy(table.keys).long().sort().values)
    whole = make_point_layers(layers, max_bytes=4 * 256 * 257 + 3 * 256 * 257)
    assert sum(table.weights.nbytes for table in whole) <= 7 * 256 * 257
    assert [table.title for table in whole if "head" in table.title.split(", ")[-1][:4]] == [
        "block 3, head 1",
        "block 3, head 2",
        "block 3, head 3",
    ]
    assert make_point_layers(layers, max_bytes=256 * 10) == ()


@pytest.mark.parametrize("name", ["swin", "swin_v2"])
def test_shifted_window_is_drawn_in_place(name):
    context = make_context(build(name), (64, 64))
    layer = context.recording.layers[1]
    assert layer.layout.shift == (2, 2)
    row = int(layer.query_rows()[5 * 32 + 9])
    found = layer.weights_to_map(layer.query_attention(row), row).isfinite().all(dim=0)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[2:6, 6:10] = True
    assert torch.equal(found, expected)
    # At the corner only what really lies there is looked at, not the other end of the image.
    row = int(layer.query_rows()[0])
    found = layer.weights_to_map(layer.query_attention(row), row).isfinite().all(dim=0)
    expected[:] = False
    expected[:2, :2] = True
    assert torch.equal(found, expected)


def _boxes(image_grid):
    """Bounding boxes of the texts of a figure."""
    canvas = FigureCanvasAgg(image_grid)
    canvas.draw()
    renderer = canvas.get_renderer()
    words = [text for text in image_grid.axes[0].texts if text.get_text()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in words]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("hiera", size) for size in ((64, 96), (96, 64), (32, 128))),  # the longest titles
        ("swin", (96, 64)),
        ("t2t", (32, 128)),
    ],
)
def test_titles_do_not_overlap(name, size):
    found = results(make_context(build(name), size))
    for result in ("attention-point", "attention-point-heads"):
        figure = found[result].figure
        boxes = _boxes(figure)
        for place, (words, box) in enumerate(boxes):
            assert box.x0 >= 0, words
            assert box.x1 <= figure.bbox.x1, words
            assert not any(box.overlaps(other) for _, other in boxes[:place]), words


@pytest.mark.parametrize("name", ["vit", "swin", "hiera"])
def test_marked_cell_is_the_query_token(name):
    context = make_context(build(name), (64, 96), point=(0.5, 0.5))
    for layer in context.recording.layers:
        left, top, right, bottom = layer.cell_at(context.query)
        row = int(layer.query_rows()[layer.token_at(context.query)])
        number = int(layer.queries.flatten()[row])
        side = layer.stride * layer.pooled
        down, across = divmod(number, layer.query_grid[1])
        assert (left, top) == (across * side, down * side)
        assert (right, bottom) == (left + side, top + side)


def test_uniform_attention_is_noted():
    context = make_context(build("vit"))
    layers = context.backbone.blocks
    text = results(context)["attention-point"].text
    with torch.no_grad():
        for block in layers:
            block.attn.qkv.weight.mul_(1e-3)
            block.attn.qkv.bias.mul_(1e-3)
    assert results(context)["attention-point"].text != text


def test_colours_match_the_scale():
    image = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    brightest = blend_tokens(image, np.ones((2, 2), np.float32), 4)
    yellow = np.array([0.993, 0.906, 0.144])
    assert np.abs(brightest - yellow).max() < 0.15
    assert np.ptp(brightest[..., 0]) > 0.1, "the image shines through"


@pytest.mark.parametrize(("name", "words"), [
    ("vit", "the class token"), ("swin", "padding"), ("hiera", ""),
])  # fmt: skip
def test_attention_outside_the_image_is_named(name, words):
    size = (46, 58) if name == "swin" else (64, 64)
    context = make_context(build(name), size)
    assert {table.elsewhere for table in make_point_layers(
        context.recording.layers
    )} <= {words, ""}  # fmt: skip
    assert context.recording.layers[0].elsewhere == words


def test_reason_depends_on_the_head():
    context = replace(make_context(build("swin")), task=find_task("semantic"))
    (mapper, _), (classifier, _) = missing(context), missing(make_context(build("swin")))
    assert mapper.reason != classifier.reason


def test_padding_is_mentioned():
    context = make_context(perturb(build("swin")), (46, 58), point=(1.0, 1.0))
    facts = results(context)["attention-point"].facts
    assert facts["layers"][0]["elsewhere"] > 0.05
    assert facts["point"] == [57, 45]


@pytest.mark.parametrize("name", ["vit", "registers", "t2t"])
def test_rollout_equals_the_product_of_full_matrices(name):
    context = make_context(build(name))
    layers = [layer for layer in context.recording.layers if layer.stage]
    assert can_roll_out(layers)
    product = torch.eye(layers[0].queries.shape[1])
    for layer in layers:
        attention = torch.stack(list(layer.attention_weights())).mean(dim=0)[0]
        mixed = attention + torch.eye(len(attention))
        product = mixed / mixed.sum(dim=1, keepdim=True) @ product
    assert torch.allclose(roll_out(layers, torch.eye(len(product))), product, atol=1e-6)
    shown = results(context)["attention-rollout"].arrays["rollout"]
    before = len(layers[0].prefix)
    assert np.allclose(shown[0].ravel(), product[0, before:], atol=1e-6)
    place = before + layers[0].token_at(context.query)
    assert np.allclose(shown[1].ravel(), product[place, before:], atol=1e-6)


@pytest.mark.parametrize("registers", [0, 2])
def test_rollout_without_class_token_starts_from_all_tokens(registers):
    body = replace(VIT, class_token=False, pool="mean", pool_norm="after", registers=registers)
    body = perturb(ViT(body))
    shown = results(make_context(body))
    assert shown["attention-rollout"].facts["rows"][0] == "the mean of all tokens"
    assert "attention-class-token" not in shown
    if not registers:
        total = shown["attention-rollout"].arrays["rollout"].sum(axis=(1, 2))
        assert np.allclose(total, 1, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "swin", "hiera"])
def test_distances_equal_a_loop(name):
    context = make_context(build(name), (22, 30))
    for layer in context.recording.layers[:3]:
        distances, uniform = layer.measure_distances()
        expected, equal = [], []
        for weights in layer.attention_weights():
            means = []
            for group, queries in enumerate(layer.queries.tolist()):
                for query, number in enumerate(queries):
                    if number < 0:
                        continue
                    side = layer.stride * layer.pooled
                    y, x = ((part + 0.5) * side for part in divmod(number, layer.query_grid[1]))
                    total = far = reach = count = 0.0
                    for key, weight in zip(
                        layer.keys[group].tolist(), weights[group, query], strict=True
                    ):
                        if key < 0 or weight < 1e-30:
                            continue
                        down, across = (
                            (p + 0.5) * layer.stride for p in divmod(key, layer.grid[1])
                        )
                        away = math.hypot(down - y, across - x)
                        total, far = total + float(weight), far + float(weight) * away
                        reach, count = reach + away, count + 1
                    means.append(far / total)
                    equal.append(reach / count)
            expected.append(np.mean(means))
        assert np.allclose(distances, expected, rtol=1e-4)
        assert uniform == pytest.approx(np.mean(equal), rel=1e-4)


def test_the_point_follows_the_crop():
    context = make_context(build("vit"), (40, 56))
    assert context.query == (28, 20)
    wide = replace(context, pixels=np.zeros((80, 224, 3), np.uint8), point=(0.25, 0.5))
    assert wide.query == (0, 20)  # the image's sides were cut off
    assert replace(wide, point=(0.75, 1.0)).query == (55, 39)
    inside = replace(context.pre, fit="letterbox")
    assert replace(wide, pre=inside).query == (14, 20)
    cut = replace(context.pre, fit="instance_crop", padding=1.0)
    assert replace(wide, pre=cut, point=(0.5, 0.5)).query == pytest.approx((27.5, 19.5), 0.02)


def test_reason_without_attention():
    (shown,) = show_attention(make_context(None))
    assert isinstance(shown, MissingFigure)
    (shown,) = show_attention(make_context(timm_body("convnext_atto"), (64, 64)))
    assert isinstance(shown, MissingFigure)


def test_layers_with_too_many_tokens_are_skipped_and_named():
    context = make_context(build("t2t"), (64, 64))
    found = show_attention(context, max_pairs=1000)
    assert "step 1" in found[-1].reason
    (distances,) = [shown for shown in found if getattr(shown, "name", "") == "attention-distance"]
    assert len(distances.facts["layers"]) == 2


def test_one_channel_and_an_image_smaller_than_a_window():
    body = perturb(ViT(replace(VIT, in_chans=1)))
    pre = replace(make_context(build("vit")).pre, in_chans=1, mean=(0.5,), std=(0.25,))
    grey = make_context(None, (40, 56))
    context = replace(make_context(body), pre=pre, shown=grey.shown[:1], images=grey.images[:, :1])
    results(context)["attention-point"].figure.canvas.draw()
    tiny = results(make_context(build("swin"), (3, 5)))
    tiny["attention-point"].figure.canvas.draw()
    assert tiny["attention-point"].facts["layers"][0]["grid"] == [2, 3]


def test_thirteen_channels():
    body = perturb(ViT(replace(VIT, in_chans=13)))
    context = make_context(body)
    many = torch.randint(0, 256, (13, 40, 56), dtype=torch.uint8)
    found = results(
        replace(context, shown=many, images=batch_images((40, 56), 1).repeat(1, 5, 1, 1)[:, :13])
    )
    found["attention-point"].figure.canvas.draw()
