# SPDX-License-Identifier: Apache-2.0
"""Traced attention, compared with timm, transformers and plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from muntin.errors import ShapeError
from muntin.explaining.context import record_forward
from muntin.models.hiera import MaskUnitAttention
from muntin.models.swin import WindowAttention
from muntin.models.swin_v2 import CosineWindowAttention, SwinV2
from muntin.models.t2t_vit import TokenAttention, TokenPerformer
from muntin.models.vit import SelfAttention, ViT
from muntin.ops.windows import cut_heads, join_heads
from muntin.weights.weight_loading import load_weights
from tests.explaining.small_contexts import (
    BUILDERS,
    SWIN_V2,
    assert_untouched,
    build,
    state_of,
    timm_body,
)
from tests.parity.peers import SWIN, SWINS, TOLERANCE, VIT, VITS, batch_images, network, perturb
from tests.parity.test_swin_v2_parity import timm_peer as timm_swin_v2

ODD = [(32, 32), (40, 64), (46, 58), (6, 10)]


def weights_of(layer):
    """All heads: G, h, Q, N."""
    return torch.stack(list(layer.attention_weights()), dim=1)


def listen(peer):
    """Attention of a timm model, recorded at its dropout layers with fused attention off."""
    heard = []
    for part in peer.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
        if hasattr(part, "attn_drop"):
            part.attn_drop.register_forward_hook(lambda _, args, out: heard.append(args[0]))
    return heard


def assert_same_weights(layers, theirs):
    assert len(layers) == len(theirs)
    for layer, expected in zip(layers, theirs, strict=True):
        ours = weights_of(layer)
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() < TOLERANCE
        assert ours.std() > 1e-3  # or anything would equal anything


@pytest.mark.parity
@pytest.mark.parametrize("size", [(32, 32), (40, 72), (16, 24)])
def test_vit_attends_as_timm_does(size):
    peer = perturb(VITS["timm"](VIT))
    model = network(VIT)
    load_weights(model, peer.state_dict())
    heard = listen(peer)
    with torch.no_grad():
        peer(batch_images(size, 1))
    assert_same_weights(record_forward(model.backbone, batch_images(size, 1)).layers, heard)


@pytest.mark.parity
@pytest.mark.parametrize("attention", ["reference", "sdpa", "lean"])
@pytest.mark.parametrize("size", [(32, 32), (32, 64), (46, 58), (6, 10)])
def test_swin_attends_as_timm_does(size, attention):
    peer = perturb(SWINS["timm"](SWIN))
    model = network(replace(SWIN, attention=attention))
    load_weights(model, peer.state_dict())
    heard = listen(peer)
    with torch.no_grad():
        peer(batch_images(size, 1))
    layers = record_forward(model.backbone, batch_images(size, 1)).layers
    assert_same_weights(layers, heard)
    assert any(any(layer.layout.shift) for layer in layers)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(32, 32), (46, 58)])
def test_swin_v2_attends_as_timm_does(size):
    peer = perturb(timm_swin_v2(SWIN_V2))
    model = SwinV2(replace(SWIN_V2, size_rule="timm")).eval()
    load_weights(model, peer.state_dict())
    heard = listen(peer)
    with torch.no_grad():
        peer(batch_images(size, 1))
    assert_same_weights(record_forward(model, batch_images(size, 1)).layers, heard)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(32, 64), (45, 59), (51, 37)])
def test_swin_attends_as_transformers_does_where_it_pads(size):
    peer = perturb(SWINS["transformers"](SWIN))
    peer.set_attn_implementation("eager")
    model = network(SWIN)
    load_weights(model, peer.state_dict())
    with torch.no_grad():
        theirs = peer(batch_images(size, 1), output_attentions=True).attentions
    layers = record_forward(model.backbone, batch_images(size, 1)).layers[
        1::2
    ]  # it tells the last of each stage
    assert_same_weights(layers, theirs)
    assert (size == (32, 64)) != any((layer.keys < 0).any() for layer in layers)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"],
)
def test_timm_models_match_their_own_attention(name):
    body = timm_body(name)
    images = batch_images((224, 224), 1)
    layers = record_forward(body, images).layers
    heard = listen(body.net)
    with torch.no_grad():
        body(images)
    assert_same_weights(layers, heard)
    assert len(layers[0].prefix) == {"v": 1, "d": 2, "s": 0}[name[0]]


def test_unsupported_timm_model_has_no_layers():
    assert record_forward(timm_body("convnext_atto"), batch_images((64, 64), 1)).layers == ()
    assert record_forward(timm_body("cait_xxs24_224"), batch_images((224, 224), 1)).layers == ()


ATTENTION = (
    WindowAttention,
    CosineWindowAttention,
    SelfAttention,
    MaskUnitAttention,
    TokenAttention,
    TokenPerformer,
)


def attend_by_hand(module, layer, args):
    """Output of the layer, recomputed from the attention weights."""
    x, weights = args[0], weights_of(layer)
    if isinstance(module, TokenPerformer):
        v = module.kqv(module.norm1(x)).chunk(3, dim=-1)[2]
        x = v + module.proj(weights[:, 0] @ v)
        return x + module.mlp(module.norm2(x))
    if isinstance(module, TokenAttention):
        v = module.qkv(x).chunk(3, dim=-1)[2]
        return v + module.proj(weights[:, 0] @ v)
    if isinstance(module, SelfAttention):
        v = module.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        return module.proj((weights @ v).transpose(1, 2).flatten(2))
    fill, given = getattr(module.qkv, "bias", None), ()
    if isinstance(module, CosineWindowAttention):
        query, value = module.qv_bias.chunk(2)
        fill = torch.cat([query, torch.zeros_like(query), value])
        given = (fill,)
    v = cut_heads(module.qkv(x, *given), layer.layout, 3, module.num_heads, fill)[2, 0]
    layout = layer.layout
    if layer.pooled == 2:
        halves = ((side // 2 for side in pair) for pair in (layout.size, layout.window))
        size, window = (tuple(pair) for pair in halves)
        layout = replace(layout, size=size, window=window)
    return module.proj(join_heads((weights @ v)[None, None], layout))


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("name", BUILDERS)
def test_weights_reproduce_the_layer_outputs(name, size):
    body = build(name)
    results, arguments = {}, {}

    def keep(place):
        def hook(module, args, kwargs, out):
            norm = kwargs.get("norm") or nn.Identity()
            results[place], arguments[place] = out, (norm(args[0]), *args[1:])

        return hook

    for place, module in body.named_modules():
        if isinstance(module, ATTENTION):
            module.register_forward_hook(keep(place), with_kwargs=True)
    layers = record_forward(body, batch_images(size, 1)).layers
    assert [layer.name for layer in layers] == list(results)
    with torch.no_grad():
        for layer in layers:
            module = body.get_submodule(layer.name)
            ours = attend_by_hand(module, layer, arguments[layer.name])
            assert (ours - results[layer.name]).abs().max() < 1e-4 * results[layer.name].abs().max()


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("name", BUILDERS)
def test_rows_sum_to_1_and_every_token_is_a_query_once(name, size):
    for layer in record_forward(build(name), batch_images(size, 1)).layers:
        sums = weights_of(layer).sum(dim=-1)
        assert (sums - 1).abs().max() < 1e-5
        asked = layer.queries[layer.queries >= 0].sort().values
        assert torch.equal(asked, torch.arange(layer.query_grid[0] * layer.query_grid[1]))
        average = weights_of(layer).mean(dim=1)
        assert torch.allclose(layer.mean_attention(), average, atol=1e-6)


@pytest.mark.parametrize("rule", ["muntin", "timm", "torchvision", "transformers", "openmmlab"])
@pytest.mark.parametrize("size", [(32, 32), (46, 58), (30, 22)])
def test_key_positions_equal_a_loop(size, rule):
    body = perturb(network(replace(SWIN, size_rule=rule)).backbone)
    for layer in record_forward(body, batch_images(size, 1)).layers:
        layout = layer.layout
        (height, width), (wh, ww) = layout.size, layout.window
        high, wide = height + layout.pad[0], width + layout.pad[1]
        expected = []
        for top in range(0, high, wh):
            for left in range(0, wide, ww):
                window = []
                for row in range(top, top + wh):
                    for column in range(left, left + ww):
                        if layout.pad_first:  # the roll moves padding too
                            y, x = (row + layout.shift[0]) % high, (column + layout.shift[1]) % wide
                        elif row < height and column < width:
                            y = (row + layout.shift[0]) % height
                            x = (column + layout.shift[1]) % width
                        else:
                            y, x = height, width
                        inside = y < height and x < width
                        window.append(y * width + x if inside else -1)
                expected.append(window)
        assert layer.keys.tolist() == expected


def test_strides_and_titles_of_a_hierarchy():
    layers = record_forward(build("hiera"), batch_images((64, 96), 1)).layers
    assert [layer.stride for layer in layers] == [4, 4, 8, 8, 16, 16, 16, 32]
    assert [layer.stage for layer in layers] == [1, 2, 2, 3, 3, 3, 4, 4]
    assert [layer.pooled for layer in layers] == [1, 2, 1, 2, 1, 1, 2, 1]
    layers = record_forward(build("swin"), batch_images((32, 64), 1)).layers
    assert [layer.stride for layer in layers] == [2, 2, 4, 4, 8, 8]
    assert layers[1].title == "stage 1, block 2 (shifted)"


@pytest.mark.parametrize("name", BUILDERS)
def test_network_is_unchanged(name):
    body = build(name)
    images = batch_images((46, 58), 1)
    with torch.no_grad():
        first = body(images)
    before = state_of(body)
    record_forward(body, images)
    assert_untouched(before, body)
    with torch.inference_mode():
        layers = record_forward(body, images.clone()).layers
        sums = [layer.mean_attention().sum(dim=-1) for layer in layers]
    with torch.no_grad():
        second = body(images)
    assert all(map(torch.equal, first, second))
    assert all(torch.allclose(each, torch.ones_like(each)) for each in sums)


def test_gradient_mode_is_unchanged_between_two_heads():
    (layer, *_) = record_forward(build("vit"), batch_images((32, 32), 1)).layers
    for _ in layer.attention_weights():
        assert torch.is_grad_enabled()


def test_hooks_are_removed_after_an_error():
    body = ViT(replace(VIT, size_rule="timm")).eval()
    before = state_of(body)
    with pytest.raises(ShapeError, match=r"patch_size=8.*33"):
        record_forward(body, batch_images((33, 40), 1))
    assert_untouched(before, body)


def test_position_bias_is_part_of_the_weights():
    config = replace(VIT, relative_pos_bias=True, key_bias=False, absolute_pos_embed=False)
    body = perturb(ViT(config))
    outputs = []
    hook = body.blocks[1].attn.register_forward_hook(
        lambda _, args, kwargs, out: outputs.append((kwargs["norm"](args[0]), out)),
        with_kwargs=True,
    )
    layer = record_forward(body, batch_images((40, 24), 1)).layers[1]
    hook.remove()
    ((x, out),) = outputs
    attention = body.blocks[1].attn
    with torch.no_grad():
        v = nn.functional.linear(x, attention.qkv.weight[48:], attention.qv_bias[24:])
        v = v.unflatten(-1, (3, -1)).transpose(1, 2)
        ours = attention.proj((weights_of(layer) @ v).transpose(1, 2).flatten(2))
    assert (ours - out).abs().max() < 1e-5
