# SPDX-License-Identifier: Apache-2.0
"""Masks of tokens: what is dropped is not computed, what is filled is another patch."""

from __future__ import annotations

import pytest
import torch

from muntin.errors import ConfigError, ShapeError
from muntin.features import Backbone, TokenMask
from muntin.ops.masks import draw_quarters
from muntin.zoo import create_backbone

VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "mean": ("vit_tiny_patch16_224", {**VIT, "pool": "mean", "class_token": False}),
    "relative": ("vit_tiny_patch16_224", {**VIT, "relative_pos_bias": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "hiera": (
        "hiera_tiny_224",
        {"depths": (1, 1, 1, 1), "embed_dim": 16, "mask_unit": 8, "img_size": 64},
    ),
    "swin": ("swin_nano", {"embed_dim": 16, "depths": (2, 1, 1), "num_heads": (1, 2, 2)}),
    "swin_v2": (
        "swinv2_tiny_window8_256",
        {"embed_dim": 16, "depths": (2, 1), "num_heads": (1, 2), "img_size": 64},
    ),
}
DROPPING = ("vit", "mean", "relative", "distilled", "hiera")


def build(name: str) -> Backbone:
    torch.manual_seed(0)
    family, fields = FAMILIES[name]
    body = create_backbone(family, out_norm="last", **fields).eval()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return body


def keep_some(body: Backbone, count: int, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    """A mask that keeps so many parts, other ones in each of two images."""
    rows, columns = body.mask_grid(size)
    order = torch.rand(2, rows * columns).argsort(dim=1)
    return order < count


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_mask_that_keeps_everything_changes_nothing(name):
    body, images = build(name), torch.randn(2, 3, 64, 80)
    rows, columns = body.mask_grid((64, 80))
    fill = torch.randn(body.config.embed_dim)
    mask = TokenMask(torch.ones(2, rows * columns, dtype=torch.bool), fill)
    assert body.features(images, mask=mask).vector.equal(body.embed(images))
    if name in DROPPING:
        dropped = body.features(images, mask=TokenMask(mask.keep)).vector
        # A bias for each image takes another kernel, and units of a Hiera lie in another order.
        exact = name not in ("relative", "hiera")
        room = 0.0 if exact else 1e-5
        torch.testing.assert_close(dropped, body.embed(images), rtol=room, atol=room)


@pytest.mark.parametrize("name", ["vit", "mean", "relative", "distilled"])
@torch.no_grad()
def test_a_vit_computes_only_what_is_kept(name):
    body, images = build(name), torch.randn(2, 3, 64, 64)
    keep = keep_some(body, 6)
    features = body.features(images, mask=TokenMask(keep))
    prefix = body.num_prefix
    assert features.tokens.shape == (2, prefix + 6, 32)
    for image in range(2):
        # By hand: tokens with their positions, those that are kept, one image at a time.
        patches = body.patch_embed(images[image : image + 1]).flatten(2).transpose(1, 2)
        tokens = body.add_tokens(patches, (4, 4))[0]
        places = [*range(prefix), *(prefix + place for place in torch.where(keep[image])[0])]
        x = torch.stack([tokens[place] for place in places])[None]
        for block in body.blocks:
            if body.config.relative_pos_bias:
                bias = block.attn.relative_position_bias((4, 4))[:, places][:, :, places]
                normed = block.norm1(x)
                q, k, v = block.attn.qkv(normed).view(len(places), 3, 2, 16).permute(1, 2, 0, 3)
                weights = (q @ k.transpose(1, 2) / 4 + bias).softmax(dim=2)
                x = x + block.attn.proj((weights @ v).transpose(0, 1).flatten(1))[None]
                x = x + block.mlp(block.norm2(x))
            else:
                x = block(x, (4, 4))
        torch.testing.assert_close(body.norm(x)[0], features.tokens[image], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="maps"):
        _ = features.maps


@torch.no_grad()
def test_a_hiera_that_keeps_half_a_picture_sees_that_half():
    body = build("hiera")
    half = create_backbone(
        "hiera_tiny_224", out_norm="last", **{**FAMILIES["hiera"][1], "img_size": (64, 32)}
    ).eval()
    state = body.state_dict()
    grid = state["pos_embed"].unflatten(1, (16, 16))
    half.load_state_dict({**state, "pos_embed": grid[:, :, :8].flatten(1, 2)})
    images = torch.randn(2, 3, 64, 64)
    keep = torch.tensor([[True, False, True, False]] * 2)
    features = body.features(images, mask=TokenMask(keep))
    assert features.tokens.shape == (2, 2, 128)
    wanted = half.features(images[:, :, :, :32])
    torch.testing.assert_close(features.vector, wanted.vector, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.tokens, wanted.tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DROPPING)
@torch.no_grad()
def test_what_is_dropped_is_not_seen(name):
    body, images = build(name), torch.randn(2, 3, 64, 64)
    rows, columns = body.mask_grid((64, 64))
    mask = TokenMask(keep_some(body, 2))
    high, wide = 64 // rows, 64 // columns
    seen = mask.keep.unflatten(1, (rows, columns))
    seen = seen.repeat_interleave(high, 1).repeat_interleave(wide, 2)[:, None]
    others = torch.where(seen, images, torch.nan)
    vector = body.features(others, mask=mask).vector
    assert vector.equal(body.features(images, mask=mask).vector)
    assert vector.isfinite().all()


@pytest.mark.parametrize("name", ["vit", "distilled", "swin", "swin_v2"])
@torch.no_grad()
def test_a_fill_is_what_a_patch_would_have_been(name):
    body, images = build(name), torch.randn(2, 3, 64, 64)
    rows, columns = body.mask_grid((64, 64))
    keep = keep_some(body, rows * columns // 2)
    colour = torch.tensor([0.3, -1.0, 2.0])[:, None, None]
    token = body.patch_embed(colour.expand(3, 64, 64)[None])
    # Channels come first in a ViT, last in a Swin.
    fill = token[0, :, 0, 0] if name in ("vit", "distilled") else token[0, 0, 0]
    seen = keep.unflatten(1, (rows, columns))
    seen = seen.repeat_interleave(64 // rows, 1).repeat_interleave(64 // columns, 2)[:, None]
    painted = body.features(torch.where(seen, images, colour))
    filled = body.features(images, mask=TokenMask(keep, fill))
    for one, other in zip(filled.maps, painted.maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(filled.vector, painted.vector, rtol=1e-4, atol=1e-4)


def test_a_fill_learns():
    for name in ("vit", "hiera", "swin"):
        body = build(name)
        fill = torch.zeros(body.config.embed_dim, requires_grad=True)
        mask = TokenMask(keep_some(body, 1), fill)
        body.features(torch.randn(2, 3, 64, 64), mask=mask).vector.sum().backward()
        assert fill.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["swin", "swin_v2"])
@torch.no_grad()
def test_a_swin_of_quarters_sees_the_image_that_they_form(name):
    body, images, unit = build(name), torch.randn(2, 3, 64, 96), 8
    mask = draw_quarters(2, body.mask_grid((64, 96)), unit // 4, 0.0, torch.Generator())
    small = torch.empty(2, 3, 32, 48)  # the chosen unit of each block, side by side
    for image in range(2):
        for row in range(4):
            for column in range(6):
                place = int(mask.quarter[image, row, column])
                top, left = 2 * row + place // 2, 2 * column + place % 2
                small[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = images[
                    image, :, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8
                ]
    fill = torch.zeros(body.config.embed_dim)
    kept = body.features(images, mask=TokenMask(mask.keep, fill, mask.quarter))
    for ours, wanted in zip(kept.maps, body.features(small).maps, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept.vector, body.embed(small), rtol=1e-4, atol=1e-5)
    with pytest.raises(ShapeError, match="16 x 23"):
        TokenMask(mask.keep, fill, mask.quarter).take_quarter(torch.zeros(2, 16, 23, 1))


def test_what_cannot_be_masked():
    everything = TokenMask(torch.ones(1, 16, dtype=torch.bool))
    images = torch.randn(1, 3, 64, 64)
    with pytest.raises(ConfigError, match="fill"):
        build("swin").features(images, mask=TokenMask(torch.ones(1, 256, dtype=torch.bool)))
    t2t = create_backbone("t2t_vit_7", depth=1)
    for ask in (lambda: t2t.features(images, mask=everything), lambda: t2t.mask_grid((64, 64))):
        with pytest.raises(ConfigError, match="T2TViT"):
            ask()
    with pytest.raises(ShapeError, match="mask_grid"):
        build("vit").features(images, mask=TokenMask(torch.ones(1, 9, dtype=torch.bool)))
    with pytest.raises(ShapeError, match=r"\[1, 2\]"):
        TokenMask(torch.tensor([[True, False], [True, True]]))
    quarters = TokenMask(everything.keep[:, :4], None, torch.zeros(1, 1, 1, dtype=torch.long))
    with pytest.raises(ConfigError, match="Hiera"):
        build("hiera").features(images, mask=quarters)
    with pytest.raises(ConfigError, match="tokens"):
        _ = build("swin").features(images).tokens
