# SPDX-License-Identifier: Apache-2.0
"""DINOv2 and BEiT against timm, transformers and facebookresearch/dinov2, with random weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm.models.beit
import torch
import torch.nn.functional as F
import transformers
from timm.layers import SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from muntin.models.vit import ViT, ViTConfig
from muntin.models.vit_presets import beit_preset
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_files import write_weights
from muntin.weights.weight_loading import load_weights
from muntin.zoo import change_model
from tests.layout_table import record_layout
from tests.parity.peers import (
    NUM_CLASSES,
    TOLERANCE,
    assert_equal_outputs,
    batch_images,
    distance,
    network,
    perturb,
    run_peer,
)

pytestmark = pytest.mark.parity

PLAIN = ViTConfig(
    embed_dim=24, depth=3, num_heads=3, patch_size=7, img_size=(42, 42), layer_scale=1e-5
)
GATED = replace(PLAIN, activation="swiglu", mlp_ratio=8 / 3)
TIMMS = {
    "layer scale": PLAIN,
    "registers": replace(PLAIN, registers=4, prefix_positions=False),
    "gated": GATED,
    "gated, registers": replace(GATED, registers=2, prefix_positions=False),
    "registers, no class token": replace(
        PLAIN, registers=2, prefix_positions=False, class_token=False, pool="mean"
    ),
}
OURS = {
    **TIMMS,
    "registers": replace(PLAIN, registers=4),
    "gated, registers": replace(GATED, registers=2),
}
SIZES = [(42, 42), (28, 63), (70, 35)]


def timm_dinov2(config: ViTConfig, num_classes: int = NUM_CLASSES, **parts) -> nn.Module:
    gated = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2 * config.mlp_ratio}
    return VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=num_classes,
        init_values=1e-5,
        class_token=config.class_token,
        reg_tokens=config.registers,
        no_embed_class=not config.prefix_positions,
        global_pool="token" if config.pool == "token" else "avg",
        fc_norm=False,
        dynamic_img_size=True,
        **(gated if config.activation == "swiglu" else {}) | parts,
    )


def transformers_dinov2(config: ViTConfig, num_classes: int = NUM_CLASSES) -> nn.Module:
    kind = "Dinov2WithRegisters" if config.registers else "Dinov2"
    fields = {"num_register_tokens": config.registers} if config.registers else {}
    peer_config = getattr(transformers, f"{kind}Config")(
        image_size=config.img_size[0],
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        mlp_ratio=4,
        use_swiglu_ffn=config.activation == "swiglu",
        num_labels=num_classes,
        **fields,
    )
    return getattr(transformers, f"{kind}ForImageClassification")(peer_config)


class Facebook(nn.Module):
    """A twin of facebookresearch/dinov2, from its formulas; `chunks` groups blocks for training."""

    def __init__(self, config: ViTConfig, chunks: int = 0) -> None:
        super().__init__()
        self.config, dim = config, config.embed_dim
        count = config.grid[0] * config.grid[1]
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, count + 1, dim))
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        )
        blocks = [self._block() for _ in range(config.depth)]
        self.chunked = bool(chunks)
        if chunks:
            step = config.depth // chunks
            blocks = [
                nn.ModuleList([nn.Identity()] * first + blocks[first : first + step])
                for first in range(0, config.depth, step)
            ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def _block(self) -> nn.Module:
        config, dim = self.config, self.config.embed_dim
        block = nn.Module()
        block.norm1, block.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        block.attn, block.mlp, block.ls1, block.ls2 = (nn.Module() for _ in range(4))
        block.attn.qkv, block.attn.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        if config.activation == "swiglu":
            hidden = (int(int(4 * dim) * 2 / 3) + 7) // 8 * 8
            block.mlp.w12, block.mlp.w3 = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)
        else:
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        for scale in (block.ls1, block.ls2):
            scale.gamma = nn.Parameter(torch.ones(dim))
        return block

    def _positions(self, height: int, width: int):
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (height, width) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if self.register_tokens is None:
            scales = ((height + 0.1) / side, (width + 0.1) / side)
            grid = F.interpolate(grid, scale_factor=scales, mode="bicubic")
        else:
            grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images):
        x = self.patch_embed.proj(images)
        height, width = x.shape[2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(height, width)
        if self.register_tokens is not None:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        blocks = [part for chunk in self.blocks for part in chunk] if self.chunked else self.blocks
        for block in blocks:
            if isinstance(block, nn.Identity):
                continue
            q, k, v = (
                part.unflatten(2, (self.config.num_heads, -1)).transpose(1, 2)
                for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
            )
            weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
            x = x + block.ls1.gamma * block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
            if self.config.activation == "swiglu":
                gate, value = block.mlp.w12(block.norm2(x)).chunk(2, dim=2)
                hidden = block.mlp.w3(F.silu(gate) * value)
            else:
                hidden = block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
            x = x + block.ls2.gamma * hidden
        return self.norm(x)[:, 0]


@pytest.mark.parametrize("name", TIMMS)
def test_equals_timm(name):
    peer = perturb(timm_dinov2(TIMMS[name]))
    model = network(TIMMS[name])
    assert load_weights(model, peer.state_dict()).size_rule == "timm"
    for size in SIZES:
        assert_equal_outputs(model, peer, size)
    back = to_dialect(model, "timm")
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in peer.state_dict().items())


def test_a_gated_mlp_of_three_layers_is_that_of_two():
    parts = {"mlp_layer": SwiGLU, "mlp_ratio": GATED.mlp_ratio}
    peer = perturb(timm_dinov2(GATED, **parts))
    model = network(GATED)
    load_weights(model, peer.state_dict())
    assert_equal_outputs(model, peer, (42, 42))


@pytest.mark.parametrize("chunks", [0, 3])
@pytest.mark.parametrize("name", ["layer scale", "registers", "gated", "gated, registers"])
@pytest.mark.parametrize("configs", [TIMMS, OURS], ids=["timm", "ours"])
def test_equals_facebook(configs, name, chunks):
    peer = perturb(Facebook(configs[name], chunks))
    body = ViT(configs[name]).eval()
    report = load_weights(body, peer.state_dict())
    assert report.size_rule == ("timm" if body.config.registers else "dino")
    assert report.ignored == ("mask_token",)
    gaps = []
    for size in SIZES:
        images = batch_images(size)
        with torch.no_grad():
            gaps.append(distance(body.embed(images), peer(images)))
    chunked = "blocks.0.0." if chunks else ""
    record_layout(
        container="DINOv2", prefix=chunked, report=report, model=body, peer="twin",
        difference=max(gaps),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["layer scale", "registers"])
def test_facebook_at_another_size_is_resized_once(name):
    peer = perturb(Facebook(TIMMS[name]))
    body = ViT(replace(TIMMS[name], img_size=(28, 28))).eval()
    report = load_weights(body, peer.state_dict())
    assert report.resized == ("pos_embed",)
    images = batch_images((28, 28))
    with torch.no_grad():
        assert distance(body.embed(images), peer(images)) < TOLERANCE


def test_timm_reads_what_is_written_after_facebook():
    peer = perturb(Facebook(OURS["gated, registers"]))
    body = ViT(OURS["gated, registers"]).eval()
    load_weights(body, peer.state_dict())
    written = timm_dinov2(TIMMS["gated, registers"], num_classes=0).eval()
    written.load_state_dict(to_dialect(body, "timm"), strict=True)
    theirs = timm_dinov2(TIMMS["gated, registers"], num_classes=0).eval()
    theirs.load_state_dict(checkpoint_filter_fn(dict(peer.state_dict()), theirs), strict=True)
    images = batch_images((42, 42))
    with torch.no_grad():
        assert distance(written(images), peer(images)) < TOLERANCE
        assert distance(written(images), theirs(images)) < TOLERANCE


@pytest.mark.parametrize("name", ["layer scale", "registers", "gated", "gated, registers"])
@pytest.mark.parametrize("configs", [TIMMS, OURS], ids=["timm", "ours"])
def test_equals_transformers_from_file_and_from_memory(tmp_path, configs, name):
    config = replace(configs[name], pool="token_and_mean")
    peer = perturb(transformers_dinov2(config))
    peer.save_pretrained(tmp_path / "theirs")
    for source in (tmp_path / "theirs", peer.state_dict()):
        model = network(config)
        report = load_weights(model, source)
        assert report.dialect == "transformers"
        assert [key.rpartition(".")[2] for key in report.ignored] == ["mask_token"]
        gaps = []
        for size in [*SIZES, (45, 40)]:
            images = batch_images(size)
            with torch.no_grad():
                gaps.append(distance(model(images), run_peer(peer, images)))
        record_layout(
            container="folder" if isinstance(source, Path) else "state dict in memory",
            prefix=f"{peer.base_model_prefix}.", report=report, model=model, peer="transformers",
            difference=max(gaps),
        )  # fmt: skip
    write_weights(tmp_path / "ours" / "model.safetensors", to_dialect(model, "transformers"))
    peer.config.save_pretrained(tmp_path / "ours")
    again, info = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    # Of pre-training, which no model here has.
    assert all(key.endswith("mask_token") for key in info["missing_keys"])
    assert not info["unexpected_keys"]
    images = batch_images((42, 42))
    with torch.no_grad():
        assert distance(model(images), run_peer(again.eval(), images)) < TOLERANCE


def test_a_headless_model_of_transformers_is_read():
    config = transformers_dinov2(OURS["registers"]).config
    peer = perturb(transformers.Dinov2WithRegistersModel(config))
    body = ViT(OURS["registers"]).eval()
    load_weights(body, peer.state_dict())
    images = batch_images((28, 63))
    with torch.no_grad():
        assert distance(body.embed(images), peer(images).pooler_output) < TOLERANCE


def test_positions_move_into_tokens_and_back():
    body = perturb(ViT(OURS["registers"]))
    moved = change_model(body, prefix_positions=False)
    again = change_model(moved, prefix_positions=True)
    assert not again.pos_embed[:, 0].any()
    images = batch_images((28, 63))
    with torch.no_grad():
        for other in (moved, again):
            assert distance(other.embed(images), body.embed(images)) < TOLERANCE


BEIT = replace(
    beit_preset("tiny", 32, 0.1), embed_dim=24, depth=2, num_heads=3, patch_size=8,
)  # fmt: skip


def test_beit_equals_timm():
    peer = timm.models.beit.Beit(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=NUM_CLASSES,
        use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1,
    )  # fmt: skip
    perturb(peer)
    model = network(BEIT)
    load_weights(model, peer.state_dict())
    assert_equal_outputs(model, peer, (32, 32))


def test_beit_equals_transformers(tmp_path):
    peer_config = transformers.BeitConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, num_labels=NUM_CLASSES, use_relative_position_bias=True,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    peer = perturb(transformers.BeitForImageClassification(peer_config))
    peer.save_pretrained(tmp_path / "theirs")
    for source in (tmp_path / "theirs", peer.state_dict()):
        model = network(BEIT)
        report = load_weights(model, source)
        assert (report.dialect, report.ignored) == ("transformers", ())
        gaps = []
        for size in ((48, 24), (16, 40), (32, 32)):
            images = batch_images(size)
            with torch.no_grad():
                gaps.append(distance(model(images), run_peer(peer, images)))
        record_layout(
            container="folder" if isinstance(source, Path) else "state dict in memory",
            prefix="beit.", report=report, model=model, peer="transformers", difference=max(gaps),
        )  # fmt: skip
    write_weights(tmp_path / "ours" / "model.safetensors", to_dialect(model, "transformers"))
    peer_config.save_pretrained(tmp_path / "ours")
    again, info = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert distance(model(images), run_peer(again.eval(), images)) < TOLERANCE
