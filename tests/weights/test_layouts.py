# SPDX-License-Identifier: Apache-2.0
"""Dialects without an installable peer: documented layouts, implemented here independently.

Random weights of a torchvision or timm model are renamed and permuted into a foreign layout by
functions of this file. A twin then computes from OpenMMLab's tensors alone, as its code does, with
an unfold and with windows that never shrink. Google's files are read by timm too. Ours must agree
with peer and twin, and must not where the layout is spoiled on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from muntin.errors import WeightError
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.models.swin import Swin, SwinConfig
from muntin.models.swin_v2 import SwinV2, SwinV2Config
from muntin.models.vit import ViT
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_files import write_weights
from muntin.weights.weight_loading import load_weights
from muntin.zoo import create_model
from tests.layout_table import record_layout
from tests.parity.peers import (
    NUM_CLASSES,
    SWIN,
    TOLERANCE,
    VIT,
    batch_images,
    distance,
    logits_and_gradient,
    perturb,
    timm_vit,
    torchvision_swin,
)

pytestmark = pytest.mark.parity

SWIN_V2 = SwinV2Config(
    **{field.name: getattr(SWIN, field.name) for field in fields(SwinConfig)},
    pretrained_windows=(0, 0, 0),
)
FAMILIES = {"V1": SWIN, "V2": SWIN_V2}
# Square wherever a kernel can be square, so that no shape tells a wrong layout from the right one.
SQUARE = replace(VIT, mlp_ratio=1.0)
BUILT = (32, 32)  # the last map is one window
ALIGNED = (64, 64)  # every map is several whole windows
ODD = (44, 60)  # no map is, but every map exceeds a window
# Half a patch is left over; maps no larger than a window, which detectors shift all the same.
HALF_A_PATCH, SMALL, TINY = (45, 59), (16, 24), (6, 10)
CAUGHT = 0.01

State = dict[str, Tensor]


def build(config, num_classes=NUM_CLASSES):
    body = {SwinConfig: Swin, SwinV2Config: SwinV2}.get(type(config), ViT)(config)
    return Network(body, build_classifier(body, num_classes)).eval()


def swin_peer(config, num_classes=NUM_CLASSES):
    """torchvision's, whose rule for odd sizes is OpenMMLab's while maps exceed the window."""
    second = isinstance(config, SwinV2Config)
    parts = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if second else {}
    peer = torchvision_swin(config, num_classes, **parts)
    perturb(peer)
    for name, parameter in peer.named_parameters():
        if second and name.endswith("attn.qkv.bias"):
            parameter.data.chunk(3)[1].zero_()
    return peer


def peer_maps(peer, images):
    """Maps of torchvision's stages before any last norm, channels last."""
    maps = []
    for index, layer in enumerate(peer.features):
        images = layer(images)
        maps += [images] if index % 2 else []
    return maps


def vit_peer(config=VIT, num_classes=NUM_CLASSES):
    return perturb(timm_vit(config, num_classes))


def rename(state, *pairs) -> State:
    """Apply regular expressions to every name, one after the other."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, text in pairs:
            name = re.sub(pattern, text, name)
        renamed[name] = tensor
    return renamed


def without(state, pattern) -> State:
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


def changed(state, pattern, change) -> State:
    """Change the tensors whose name has this pattern; it must be there."""
    assert any(re.search(pattern, name) for name in state)
    return {
        name: change(tensor) if re.search(pattern, name) else tensor
        for name, tensor in state.items()
    }


def under(prefix, state) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


# The documented layouts.


def position_index(side) -> Tensor:
    """The buffer `relative_position_index`, (N, N)."""
    grid = torch.arange(side)
    places = torch.stack(torch.meshgrid(grid, grid, indexing="ij")).flatten(1)  # 2, N
    rows, columns = places[:, :, None] - places[:, None, :] + side - 1
    return rows * (2 * side - 1) + columns


def offsets(side, reference=0) -> Tensor:
    """The buffer `relative_coords_table` of V2, (1, 2w-1, 2w-1, 2)."""
    grid = torch.arange(1 - side, side).float() / ((reference or side) - 1) * 8
    table = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), dim=-1)[None]
    return table.sign() * torch.log2(table.abs() + 1) / np.log2(8)


def buffers(state, side) -> State:
    """What Microsoft and OpenMMLab store beside the weights of each attention."""
    end = "qkv.weight"
    blocks = [name.removesuffix(end) for name in state if name.endswith(end)]
    found = {f"{block}relative_position_index": position_index(side) for block in blocks}
    if any("logit_scale" in name for name in state):
        found |= {f"{block}relative_coords_table": offsets(side) for block in blocks}
    return found


def masks(state) -> State:
    """Microsoft's masks of shifted blocks; nothing reads what is in them."""
    shifted = {m[1] for name in state if (m := re.match(r"(layers\.\d\.blocks\.1\.)", name))}
    return {f"{block}attn_mask": torch.zeros(4, 16, 16) for block in sorted(shifted)}


def split_bias(state) -> State:
    """V2 has biases of queries and values, and none of keys."""
    split = {}
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            split |= {name.replace("qkv.bias", "q_bias"): query}
            split |= {name.replace("qkv.bias", "v_bias"): value}
        else:
            split[name] = tensor
    return split


def microsoft(peer) -> State:
    """The weights of torchvision's model under Microsoft's names, without buffers."""
    stages = [
        pair
        for i in range(3)
        for pair in (
            (rf"^features\.{2 * i + 1}\.", f"layers.{i}.blocks."),
            (rf"^features\.{2 * i + 2}\.", f"layers.{i}.downsample."),
        )
    ]
    state = rename(
        peer.state_dict(),
        (r"^features\.0\.0\.", "patch_embed.proj."),
        (r"^features\.0\.2\.", "patch_embed.norm."),
        *stages,
        (r"(blocks\.\d+\.mlp\.)0\.", r"\1fc1."),
        (r"(blocks\.\d+\.mlp\.)3\.", r"\1fc2."),
    )
    state = without(state, r"relative_position_index|relative_coords_table")
    return split_bias(state) if any("logit_scale" in name for name in state) else state


def microsoft_of_timm(peer) -> State:
    """timm merges at the start of a stage, Microsoft at the end of the one before."""
    state = rename(peer.state_dict(), (r"^head\.fc\.", "head."))
    return rename(
        state, *((rf"^layers\.{i + 1}\.downsample", f"layers.{i}.downsample") for i in range(3))
    )


def unfold_order(channels) -> Tensor:
    """Which of Microsoft's merged channels stands where an unfold writes, tried with an unfold."""
    image = torch.empty(1, channels, 2, 2)
    for block, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        image[0, :, row, column] = block * channels + torch.arange(channels)
    return nn.Unfold(2, stride=2)(image).flatten().long()


def unfolded(tensor) -> Tensor:
    return tensor[..., unfold_order(tensor.shape[-1] // 4)]


MERGED = {"V1": r"downsample\.(norm|reduction)\.", "V2": r"downsample\.reduction\."}


def openmmlab(state, family) -> State:
    """Microsoft's tensors in OpenMMLab's layout, without "backbone." and buffers."""
    return rename(
        changed(state, MERGED[family], unfolded),
        (r"^layers\.(\d)\.", r"stages.\1."),
        *((rf"^stages\.{i}\.downs", f"stages.{i + 1}.downs") for i in (1, 0) if family == "V2"),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"\.attn\.", ".attn.w_msa."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^norm\.", "norm2."),
        (r"^head\.", "head.fc."),
    )


def as_classifier(state, side=4, buffered=True) -> State:
    """A file of mmpretrain: everything but the head under "backbone.", with buffers."""
    whole = {**state, **buffers(state, side)} if buffered else state
    return rename(whole, (r"^(?!head\.)", "backbone."))


def dense(peer, seed=5) -> State:
    """Microsoft's names as detectors and segmenters hold them: a norm for each map, no head."""
    generator = torch.Generator().manual_seed(seed)
    norms = {
        f"norm{stage}.{part}": torch.randn(SWIN.dim(stage), generator=generator)
        for stage in range(3)
        for part in ("weight", "bias")
    }
    return without(microsoft(peer), r"^(norm|head)\.") | norms


def normalised(maps, state):
    """Channels-last maps through their norms, then channels first."""
    return [
        F.layer_norm(x, x.shape[-1:], state[f"norm{i}.weight"], state[f"norm{i}.bias"]).permute(
            0, 3, 1, 2
        )
        for i, x in enumerate(maps)
    ]


def tensors(*names) -> State:
    return {name: torch.ones(2, 2) for name in names}


DETECTOR = tensors(
    "neck.lateral_convs.0.conv.weight",
    "neck.fpn_convs.3.conv.bias",
    "rpn_head.rpn_cls.weight",
    "roi_head.bbox_head.shared_fcs.0.weight",
    "roi_head.mask_head.convs.0.conv.weight",
)
SEGMENTER = tensors(
    "decode_head.psp_modules.0.1.conv.weight",
    "decode_head.psp_modules.0.1.bn.running_mean",
    "decode_head.conv_seg.weight",
    "auxiliary_head.convs.0.conv.weight",
)
DETECTRON = tensors(
    "backbone.fpn_lateral2.weight",
    "backbone.fpn_output5.bias",
    "proposal_generator.rpn_head.conv.weight",
    "proposal_generator.rpn_head.anchor_deltas.bias",
    "roi_heads.box_predictor.0.cls_score.weight",
    "roi_heads.mask_head.mask_fcn1.weight",
)


# The twin of OpenMMLab's Swin, V1 and V2.


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


class UnfoldMerging(nn.Module):
    """OpenMMLab's: even sides by padding, an unfold, then norm and reduction, or the reverse."""

    def __init__(self, dim, norm_dim):
        super().__init__()
        self.sampler = nn.Unfold(2, stride=2)
        self.norm = nn.LayerNorm(norm_dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        height, width = x.shape[1:3]
        x = F.pad(x.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2))
        height, width = x.shape[2] // 2, x.shape[3] // 2
        x = self.sampler(x).transpose(1, 2).unflatten(1, (height, width))  # B, h, w, 4C
        before = self.norm.weight.shape[0] == x.shape[-1]
        return self.reduction(self.norm(x)) if before else self.norm(self.reduction(x))


def merge(state, name, x):
    parts = {key.removeprefix(f"{name}."): state[key] for key in state if key.startswith(name)}
    module = UnfoldMerging(x.shape[-1], parts["norm.weight"].shape[0])
    module.load_state_dict(parts)
    return module(x)


def windows_of(x, side):
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).reshape(batch, -1, side * side, channels)  # B, nW, N, C


def shift_mask(height, width, side, shift):
    regions = torch.zeros(1, height, width, 1)
    slices = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((a, b) for a in slices for b in slices):
        regions[:, rows, columns] = number
    regions = windows_of(regions, side)[0, :, :, 0]  # nW, N
    return (regions[:, None, :] != regions[:, :, None]).float()[:, None] * -100.0


def scores_of(state, name, x, heads, side):
    """Scores with position bias, and values; both with axes B, nW, h, N."""
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(-2, -3)
        for part in F.linear(x, state[f"{name}.qkv.weight"], qkv_bias(state, name)).chunk(3, -1)
    )
    if f"{name}.logit_scale" in state:
        scale = state[f"{name}.logit_scale"].clamp(max=float(np.log(100.0))).exp()
        scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT * scale
        coordinates = state.get(f"{name}.relative_coords_table", offsets(side))
        hidden = F.relu(linear(state, f"{name}.cpb_mlp.0", coordinates))
        table = 16 * torch.sigmoid(linear(state, f"{name}.cpb_mlp.2", hidden)).flatten(0, 2)
    else:
        scores = query @ key.mT * query.shape[-1] ** -0.5
        table = state[f"{name}.relative_position_bias_table"]
    return scores + table[position_index(side)].permute(2, 0, 1), value


def qkv_bias(state, name):
    if f"{name}.q_bias" not in state:
        return state[f"{name}.qkv.bias"]
    query, value = state[f"{name}.q_bias"], state[f"{name}.v_bias"]
    return torch.cat([query, torch.zeros_like(query), value])


def attend(state, name, x, heads, side, shift):
    """Pad, roll, cut, attend, and back; the window never shrinks."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    batch, rows, columns, channels = x.shape
    x = windows_of(x.roll((-shift, -shift), (1, 2)), side)
    scores, value = scores_of(state, name, x, heads, side)
    if shift:
        scores = scores + shift_mask(rows, columns, side, shift)
    x = (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2)
    x = linear(state, f"{name}.proj", x)
    x = x.view(batch, rows // side, columns // side, side, side, channels)
    x = x.transpose(2, 3).reshape(batch, rows, columns, channels)
    return x.roll((shift, shift), (1, 2))[:, :height, :width]


def swin_block(state, name, x, heads, side, shift, always_shift=True):
    shift = shift if always_shift or min(x.shape[1:3]) > side else 0

    def feed(x):
        return linear(
            state, f"{name}.ffn.layers.1", F.gelu(linear(state, f"{name}.ffn.layers.0.0", x))
        )

    def attention(x):
        return attend(state, f"{name}.attn.w_msa", x, heads, side, shift)

    if f"{name}.attn.w_msa.logit_scale" in state:
        x = x + norm(state, f"{name}.norm1", attention(x))
        return x + norm(state, f"{name}.norm2", feed(x))
    x = x + attention(norm(state, f"{name}.norm1", x))
    return x + feed(norm(state, f"{name}.norm2", x))


def openmmlab_maps(state, images, config=SWIN, always_shift=True):
    """Maps of the stages before any last norm, channels last, from OpenMMLab's bare names.

    Classifiers do not shift on a map that is no larger than a window.
    """
    patch = config.patch_size
    images = F.pad(images, (0, -images.shape[3] % patch, 0, -images.shape[2] % patch))
    weight, bias = (state[f"patch_embed.projection.{part}"] for part in ("weight", "bias"))
    x = norm(state, "patch_embed.norm", F.conv2d(images, weight, bias, patch).permute(0, 2, 3, 1))
    maps = []
    early = "stages.0.downsample.reduction.weight" not in state
    for stage, depth in enumerate(config.depths):
        if stage and early:
            x = merge(state, f"stages.{stage}.downsample", x)
        for block in range(depth):
            name, heads = f"stages.{stage}.blocks.{block}", config.num_heads[stage]
            side = config.windows[stage]
            x = swin_block(state, name, x, heads, side, side // 2 * (block % 2), always_shift)
        maps.append(x)
        if not early and stage < len(config.depths) - 1:
            x = merge(state, f"stages.{stage}.downsample", x)
    return maps


def openmmlab_logits(state, images, config=SWIN, always_shift=True):
    maps = openmmlab_maps(state, images, config, always_shift)
    pooled = norm(state, "norm2", maps[-1]).mean((1, 2))
    return linear(state, "head.fc", pooled)


# Google's layout: timm has a reader of its own for it.


def google(config=VIT, num_classes=NUM_CLASSES):
    """A network of ours, and its weights as google-research/vision_transformer stores them."""
    # Flax computes GELU by the hyperbolic tangent.
    model = perturb(build(replace(config, activation="gelu_tanh"), num_classes))
    return model, to_dialect(model, "google")


def read_by_timm(path, state, config):
    np.savez(path, **{name: x.numpy() for name, x in state.items()})
    peer = timm_vit(replace(config, activation="gelu_tanh"))
    peer.load_pretrained(str(path))
    return peer.eval()


def big_vision(state, prefix="params/", stacked=False) -> State:
    """The same arrays as big_vision names and stacks them."""
    state = rename(
        state,
        (r"^Transformer/posembed_input/", ""),
        (r"MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
        (r"LayerNorm_2", "LayerNorm_1"),
        (r"MlpBlock_3", "MlpBlock_0"),
    )
    if stacked:
        first = {name: name.replace("_0/", "/", 1) for name in state if "encoderblock_0/" in name}
        blocks = {
            whole: torch.stack([state[name.replace("k_0/", f"k_{j}/", 1)] for j in range(3)])
            for name, whole in first.items()
        }
        state = without(state, "encoderblock_") | blocks
    return under(prefix, state)


# How ours are compared.


def assert_same_function(ours: Callable, theirs: Callable, size) -> float:
    """Outputs and input gradients agree; the difference of outputs."""
    pairs = list(
        zip(
            logits_and_gradient(ours, batch_images(size)),
            logits_and_gradient(theirs, batch_images(size)),
            strict=True,
        )
    )
    assert all(distance(mine, other) < TOLERANCE for mine, other in pairs)
    return float((pairs[0][0] - pairs[0][1]).abs().max())


def assert_maps(body, expected, size) -> float:
    """Maps agree; the largest difference."""
    with torch.no_grad():
        images = batch_images(size)
        pairs = list(zip(body(images), expected(images), strict=True))
        assert all(distance(ours, theirs) < TOLERANCE for ours, theirs in pairs)
        return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def record(model, report, difference, container, prefix="", peer="twin") -> None:
    record_layout(
        container=container,
        prefix=prefix,
        report=report,
        model=model,
        peer=peer,
        difference=difference,
    )


def assert_there_and_back(model, dialect, fresh, wanted=None) -> None:
    """Writing and reading gives the same bits; what is written is the foreign file itself."""
    written = to_dialect(model, dialect)
    report = load_weights(fresh, written)
    assert report.dialect == dialect
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    for name, tensor in (wanted or {}).items():
        assert torch.equal(written[name], tensor), name


def largest_gap(model, theirs, size=ALIGNED) -> float:
    with torch.no_grad():
        return distance(model(batch_images(size)), theirs(batch_images(size)))


def loaded(config, state, num_classes=NUM_CLASSES):
    model = build(config, num_classes)
    return model, load_weights(model, state)


def record_against(report, model, theirs, size, *, container, prefix) -> None:
    """Add a row to the table of layouts; `theirs` is computed by a twin of this file."""
    ours = model if isinstance(model, Network) else lambda images: model(images)[-1]
    with torch.no_grad():
        difference = distance(ours(batch_images(size)), theirs(batch_images(size)))
    record(model, report, difference, container, prefix)


# Microsoft.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_file_of_microsoft_equals_its_peer(family):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    weights = microsoft(peer)
    derived = buffers(weights, 4) | masks(weights)
    checkpoint = {"model": weights | derived, "epoch": 299, "optimizer": {"state": {}}}
    model, report = loaded(config, checkpoint)
    assert (report.dialect, report.size_rule) == ("microsoft", "microsoft")
    assert set(report.ignored) == set(derived)
    assert not report.reset
    assert not report.resized
    for size in (BUILT, ALIGNED):
        record(model, report, assert_same_function(model, peer, size), "{'model': ...}")
    assert_there_and_back(model, "microsoft", build(config), weights)


def test_a_head_of_22k_gives_rows_to_a_head_of_1k():
    peer = swin_peer(SWIN, num_classes=40)
    weights = microsoft(peer)
    rows = [39, 0, 7, 8, 3]
    model = build(SWIN)
    report = load_weights(model, weights | buffers(weights, 4), head_rows=rows)
    assert (report.dialect, report.size_rule, report.reset) == ("microsoft", "microsoft", ())
    assert_same_function(model, lambda images: peer(images)[:, rows], ALIGNED)


@pytest.mark.parametrize("bias", ["cpb_mlp", "rpe_mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_of_simmim_leaves_decoder_and_mask_behind(family, bias):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    weights = without(microsoft(peer), r"^head\.")
    derived = buffers(weights, 4) | masks(weights) | {"mask_token": torch.ones(1, 1, 16)}
    encoder = rename(under("encoder.", weights | derived), ("cpb_mlp", bias))
    decoder = {"decoder.0.weight": torch.ones(192, 64, 1, 1), "decoder.0.bias": torch.ones(192)}
    model, report = loaded(config, {"model": encoder | decoder})
    assert (report.dialect, report.size_rule) == ("microsoft", "microsoft")
    assert set(report.ignored) == {*under("encoder.", derived), *decoder}
    assert report.reset == ("head.fc.weight", "head.fc.bias")
    difference = assert_same_function(
        model.backbone.embed, lambda x: peer.norm(peer_maps(peer, x)[-1]).mean((1, 2)), BUILT
    )
    record(model, report, difference, "SimMIM with its decoder", "encoder.")


@pytest.mark.parametrize("others", [DETECTOR, SEGMENTER], ids=["detection", "segmentation"])
def test_a_fork_of_microsoft_gives_normalised_maps_at_odd_sizes(others):
    peer = swin_peer(SWIN)
    weights = dense(peer)
    derived = buffers(weights, 4)
    file = {"meta": {}, "state_dict": under("backbone.", weights | derived) | others}
    body = Swin(replace(SWIN, out_norm="each")).eval()
    report = load_weights(body, file)
    assert (report.dialect, report.size_rule) == ("microsoft", "openmmlab")
    assert set(report.ignored) == {*under("backbone.", derived), *others}
    for size in (ALIGNED, ODD):
        assert_maps(body, lambda images: normalised(peer_maps(peer, images), weights), size)
    twin = openmmlab(weights, "V1")
    for size in (HALF_A_PATCH, SMALL, TINY):
        difference = assert_maps(
            body, lambda images: normalised(openmmlab_maps(twin, images), weights), size
        )
        record(body, report, difference, "fork for detection or segmentation", "backbone.")
    assert_there_and_back(body, "microsoft", Swin(body.config), weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_that_microsoft_shrinks_to_its_map_is_the_window_of_the_file(family):
    # Stages of 16, 8 and 4 tokens a side: the last is built with a window of 4 and no shift, and a
    # table in its file is that of 4. timm does the same on square maps.
    kind = {"V1": TimmSwin, "V2": TimmSwinV2}[family]
    config = replace(FAMILIES[family], window_size=8)
    peer = perturb(
        kind(
            img_size=32,
            patch_size=2,
            num_classes=NUM_CLASSES,
            embed_dim=16,
            depths=(2, 2, 2),
            num_heads=(1, 2, 4),
            window_size=8,
        )
    )
    weights = microsoft_of_timm(peer)
    model, report = loaded(config, weights)
    assert (report.dialect, report.size_rule) == ("microsoft", "microsoft")
    assert_same_function(model, peer, BUILT)


def test_a_mixture_of_experts_is_rejected():
    weights = microsoft(swin_peer(SWIN))
    experts = tensors("layers.2.blocks.1.mlp._moe_layer.experts.batched_fc1_w")
    file = without(weights, r"layers\.2\.blocks\.1\.mlp\.") | buffers(weights, 4) | experts
    with pytest.raises(WeightError, match="_moe_layer"):
        loaded(SWIN, file)


# detectron2.


def test_a_detector_of_detectron2_gives_normalised_maps_at_odd_sizes():
    peer = swin_peer(SWIN)
    weights = dense(peer)
    derived = buffers(weights, 4)
    whole = under("backbone.bottom_up.", weights | derived) | DETECTRON
    body = Swin(replace(SWIN, out_norm="each")).eval()
    report = load_weights(body, {"model": whole, "iteration": 1})
    assert (report.dialect, report.size_rule) == ("detectron2", "openmmlab")
    assert set(report.ignored) == {*under("backbone.bottom_up.", derived), *DETECTRON}
    for size in (ALIGNED, ODD):
        difference = assert_maps(
            body, lambda images: normalised(peer_maps(peer, images), weights), size
        )
        record(body, report, difference, "detector", "backbone.bottom_up.")
    written = under("backbone.bottom_up.", weights)
    assert_there_and_back(body, "detectron2", Swin(body.config), written)


def test_the_plain_vit_of_detectron2_is_rejected():
    file = under("backbone.net.", tensors("blocks.0.norm1.weight", "blocks.0.attn.rel_pos_h"))
    with pytest.raises(WeightError, match=r"\bViT\b.*ViTDet"):
        load_weights(build(VIT), file)


# OpenMMLab.


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
@pytest.mark.parametrize("family", FAMILIES)
def test_merging_equals_an_unfold_with_the_same_weights(family, size):
    config = FAMILIES[family]
    state = openmmlab(microsoft(swin_peer(config)), family)
    twins = [perturb(UnfoldMerging(d, 4 * d if family == "V1" else 2 * d)) for d in (16, 32)]
    for stage, twin in enumerate(twins):
        state |= under(f"stages.{stage + (family == 'V2')}.downsample.", twin.state_dict())
    model, _ = loaded(config, as_classifier(state))
    for stage, twin in zip(model.backbone.layers, twins, strict=False):
        x = torch.randn(2, *size, twin.reduction.weight.shape[1] // 4)
        assert distance(stage.downsample(x), twin(x)) < TOLERANCE


@pytest.mark.parametrize("size", [ALIGNED, ODD])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_twin_of_openmmlab_is_itself_right(family, size):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    state = openmmlab(microsoft(peer), family)
    assert_same_function(lambda images: openmmlab_logits(state, images, config), peer, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_openmmlab_equals_peer_and_twin(family):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    weights = openmmlab(microsoft(peer), family)
    file = as_classifier(weights)
    model, report = loaded(config, {"state_dict": file, "meta": {"epoch": 300}})
    assert (report.dialect, report.size_rule) == ("openmmlab", "mmpretrain")
    assert set(report.ignored) == set(under("backbone.", buffers(weights, 4)))
    for size in (ALIGNED, ODD):
        assert_same_function(model, peer, size)
    for size in (ODD, HALF_A_PATCH):
        difference = assert_same_function(
            model, lambda x: openmmlab_logits(weights, x, config), size
        )
        record(model, report, difference, "classifier of mmpretrain", "backbone.")
    wanted = {name: file[name] for name in file if name not in report.ignored}
    assert_there_and_back(model, "openmmlab", build(config), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_openmmlab_equals_its_peer_where_a_map_is_one_window(family):
    # mmpretrain's attention leaves the shift out there (unless `pad_small_map`, for detectors), as
    # Microsoft's does: the last maps of every published classifier at its own image size.
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    model, _ = loaded(config, as_classifier(openmmlab(microsoft(peer), family)))
    assert_same_function(model, peer, BUILT)


@pytest.mark.parametrize("others", [DETECTOR, SEGMENTER], ids=["mmdet", "mmseg"])
def test_a_dense_file_of_openmmlab_gives_normalised_maps(others):
    peer = swin_peer(SWIN)
    weights = openmmlab(dense(peer), "V1")
    derived = buffers(weights, 4)
    body = Swin(replace(SWIN, out_norm="each")).eval()
    report = load_weights(body, under("backbone.", weights | derived) | others)
    assert (report.dialect, report.size_rule) == ("openmmlab", "openmmlab")
    assert set(report.ignored) == {*under("backbone.", derived), *others}
    assert_maps(body, lambda images: normalised(peer_maps(peer, images), weights), ALIGNED)
    for size in (ODD, HALF_A_PATCH, BUILT, SMALL, TINY):
        difference = assert_maps(
            body, lambda x: normalised(openmmlab_maps(weights, x), weights), size
        )
        record(body, report, difference, "mmdetection or mmsegmentation", "backbone.")
    assert_there_and_back(body, "openmmlab", Swin(body.config), weights)


def with_windows(state, windows, references) -> State:
    """Both buffers of every block, where stages have windows of their own."""
    whole = dict(state)
    for name in state:
        if name.endswith(".logit_scale"):
            stage, prefix = int(name.split(".")[1]), name.removesuffix("logit_scale")
            side, reference = windows[stage], references[stage]
            whole[f"{prefix}relative_coords_table"] = offsets(side, reference)
            whole[f"{prefix}relative_position_index"] = position_index(side)
    return whole


SMALLER = (48, 80)  # the last map is 6 x 10 tokens, which windows of 4 do not divide


@pytest.mark.parametrize("references", [(0, 0, 0), (6, 6, 3)], ids=["alone", "fine-tuned"])
def test_a_swin_v2_of_mmpretrain_has_the_windows_of_its_file(references):
    # Maps of 16, 8 and 4 tokens a side: their own classifiers set windows of 8, 8 and 4, where the
    # model here has one of 8, which would shrink on the last map.
    peer = swin_peer(SWIN_V2)
    weights = with_windows(openmmlab(microsoft(peer), "V2"), (8, 8, 4), references)
    config = replace(SWIN_V2, window_size=8)
    twin = replace(config, window_size=(8, 8, 4))
    model, report = loaded(config, as_classifier(weights, buffered=False))
    assert model.backbone.config.windows == (8, 8, 4)
    assert report.adopted["window_size"] == (8, 8, 4)
    assert "(8, 8, 4)" in report.summary()
    assert report.resized == ()
    for size in (BUILT, ALIGNED, SMALLER):
        assert_same_function(model, lambda x: openmmlab_logits(weights, x, twin, False), size)
    names = {"container": "mmpretrain, a window a stage", "prefix": "backbone."}
    record_against(
        report, model, lambda x: openmmlab_logits(weights, x, twin, False), BUILT, **names
    )
    # What is written has them too, and the model is the same after reading.
    again = build(config)
    load_weights(again, to_dialect(model, "openmmlab"))
    assert_same_function(again, lambda x: openmmlab_logits(weights, x, twin, False), BUILT)


@pytest.mark.parametrize("windows", [(8, 8, 4), (4, 4, 4)], ids=["same", "another"])
def test_offsets_are_relative_to_the_window_of_the_file(windows):
    # 12to16: pre-trained with windows of 6, 6 and 3. The last window shrinks to the map.
    config = replace(SWIN_V2, window_size=8, pretrained_windows=(6, 6, 3), size_rule="microsoft")
    right = perturb(build(config))
    state = with_windows(to_dialect(right, "microsoft"), windows, (6, 6, 3))
    model, report = loaded(replace(config, pretrained_windows=(0, 0, 0)), state)
    assert model.backbone.config.pretrained_windows == (6, 6, 3)
    assert model.backbone.config.window_size == 8
    # A window of the model other than that of the file is reported as what is resized.
    names = {name.split(".")[2] for name in report.resized}
    assert names == (set() if windows == (8, 8, 4) else {"0", "1"})
    for size in (BUILT, ALIGNED, (64, 96)):
        assert_same_function(model, right, size)


def test_windows_that_a_caller_asks_for_are_kept(tmp_path):
    config = replace(SWIN_V2, window_size=8)
    state = with_windows(to_dialect(build(config), "microsoft"), (8, 8, 4), (6, 6, 3))
    write_weights(tmp_path / "w.safetensors", state)
    options = {field.name: getattr(config, field.name) for field in fields(SwinV2Config)}
    options |= {"num_classes": NUM_CLASSES, "weights": tmp_path / "w.safetensors"}
    asked = {"window_size": (8, 8, 8), "pretrained_windows": (5, 5, 5)}
    body = create_model("swinv2_tiny", **(options | asked)).backbone
    assert (body.config.windows, body.config.pretrained_windows) == ((8, 8, 8), (5, 5, 5))
    assert body.layers[2].blocks[0].attn.pretrained_window == 5


POSE_HEADS = {
    "heatmaps": "head.deconv_layers.0.weight",
    "heatmaps without upsampling": "head.final_layer.weight",
    "SimCC": "head.cls_x.weight",
    "mmpose 0.x": "keypoint_head.final_layer.weight",
}


@pytest.mark.parametrize("key", POSE_HEADS.values(), ids=POSE_HEADS)
def test_a_swin_of_mmpose_shifts_on_every_map_though_it_has_one_norm(key):
    peer = swin_peer(SWIN)
    weights = without(openmmlab(microsoft(peer), "V1"), r"^head\.")
    file = under("backbone.", weights | buffers(weights, 4))
    body = Swin(replace(SWIN, out_indices=(2,))).eval()
    report = load_weights(body, {"state_dict": file | tensors(key)})
    assert (report.dialect, report.size_rule) == ("openmmlab", "openmmlab")
    assert report.size_evidence == key
    assert key in report.summary()
    for size in (BUILT, SMALL, ODD, HALF_A_PATCH):
        expected = lambda x: [  # noqa: E731
            norm(weights, "norm2", openmmlab_maps(weights, x)[-1]).permute(0, 3, 1, 2)
        ]
        assert_maps(body, expected, size)
    last = lambda x: expected(x)[-1]  # noqa: E731
    container = "a checkpoint of mmpose 0.x" if "keypoint" in key else "a checkpoint of mmpose"
    record_against(report, body, last, BUILT, container=container, prefix="backbone.")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_swin_of_mmselfsup_follows_the_rule_of_classifiers(family):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    weights = without(openmmlab(microsoft(peer), family), r"^head\.")
    others = tensors("neck.decoder.0.weight", "neck.decoder.0.bias", "data_preprocessor.mean")
    others |= {"backbone.mask_token": torch.ones(1, 1, 16)}
    file = under("backbone.", weights | buffers(weights, 4)) | others
    model, report = loaded(config, {"state_dict": file})
    assert (report.dialect, report.size_rule) == ("openmmlab", "mmpretrain")
    assert report.size_evidence == "neck.decoder.0.weight"
    assert set(others) < set(report.ignored)
    pooled = lambda x: peer.norm(peer_maps(peer, x)[-1]).mean((1, 2))  # noqa: E731
    for size in (BUILT, ALIGNED, ODD):
        assert_same_function(model.backbone.embed, pooled, size)
    body = Network(model.backbone, build_classifier(model.backbone, 0))
    names = {"container": "SimMIM's pre-training in mmselfsup", "prefix": "backbone."}
    record_against(report, body, pooled, BUILT, **names)


def test_a_file_from_before_version_3_of_openmmlab_brings_masks_that_are_ignored():
    weights = openmmlab(microsoft(swin_peer(SWIN)), "V1")
    mask = {"backbone.stages.0.blocks.1.attn.w_msa.attn_mask": torch.zeros(4, 16, 16)}
    assert set(mask) <= set(loaded(SWIN, as_classifier(weights) | mask)[1].ignored)


def test_a_swin_v2_that_merges_at_the_end_of_a_stage_is_no_swin_v2_of_openmmlab():
    state = openmmlab(microsoft(swin_peer(SWIN_V2)), "V2")
    early = rename(state, (r"^stages\.1\.downs", "stages.0.downs"), (r"s\.2\.downs", "s.1.downs"))
    with pytest.raises(WeightError, match=r"stages\.0\.downsample"):
        loaded(SWIN_V2, as_classifier(early))


def mmpretrain_vit(peer) -> State:
    state = rename(
        peer.state_dict(),
        (r"^blocks\.", "layers."),
        (r"\.norm1\.", ".ln1."),
        (r"\.norm2\.", ".ln2."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"\.ls1\.gamma", ".attn.gamma1.weight"),
        (r"\.ls2\.gamma", ".ffn.gamma2.weight"),
        (r"^norm\.", "ln1."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^head\.", "head.layers.head."),
    )
    return rename(state, (r"^(?!head\.)", "backbone."))


DEIT3 = replace(VIT, layer_scale=0.1, prefix_positions=False)


@pytest.mark.parametrize("config", [VIT, DEIT3], ids=["ViT", "DeiT III"])
def test_a_vit_of_mmpretrain_equals_its_peer(config):
    peer = vit_peer(config)
    file = mmpretrain_vit(peer)
    model, report = loaded(config, {"state_dict": file | tensors("data_preprocessor.mean")})
    assert (report.dialect, report.size_rule) == ("openmmlab", "mmpretrain")
    assert report.ignored == ("data_preprocessor.mean",)
    difference = assert_same_function(model, peer, BUILT)
    record(model, report, difference, "classifier of mmpretrain", "backbone.", "timm")
    assert_there_and_back(model, "openmmlab", build(config), file)


def test_a_vit_of_mmseg_equals_its_peer():
    peer = vit_peer()
    file = rename(
        without(mmpretrain_vit(peer), r"^head\."),
        (r"\.attn\.qkv\.", ".attn.attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.attn.out_proj."),
    )
    body = ViT(VIT).eval()
    report = load_weights(body, file | SEGMENTER)
    assert (report.dialect, set(report.ignored)) == ("openmmlab", set(SEGMENTER))
    theirs = lambda x: peer.forward_features(x)[:, 0]  # noqa: E731
    difference = assert_same_function(body.embed, theirs, BUILT)
    record(body, report, difference, "mmsegmentation", "backbone.", "timm")
    assert_there_and_back(body, "openmmlab", ViT(VIT))


# Google.

LAYOUTS = {
    "vision_transformer": lambda state: state,
    "big_vision": big_vision,
    "big_vision, stacked": lambda state: big_vision(state, stacked=True),
    "big_vision, with optimizer": lambda state: big_vision(state, "opt/target/", stacked=True),
    "big_vision, bare": lambda state: big_vision(state, ""),
}
VITS = {
    "class token": VIT,
    "mean": replace(VIT, pool="mean", class_token=False),
    "class token without a position": replace(VIT, prefix_positions=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", VITS)
def test_a_file_of_google_is_read_as_timm_reads_it(tmp_path, kind, layout):
    model, weights = google(VITS[kind])
    peer = read_by_timm(tmp_path / "w.npz", LAYOUTS[layout](weights), VITS[kind])
    difference = assert_same_function(model, peer, BUILT)
    fresh, report = loaded(VITS[kind], tmp_path / "w.npz")
    record(fresh, report, difference, f"npz of {layout}", peer="timm")
    assert (report.dialect, report.size_rule) == ("google", "google")
    assert report.adopted == {"activation": "gelu_tanh"}
    assert fresh.backbone.config.activation == "gelu_tanh"
    assert (report.ignored, report.reset, report.resized) == ((), (), ())
    assert all(fresh.state_dict()[name].equal(x) for name, x in model.state_dict().items())


def test_what_google_has_between_backbone_and_head_in_pre_training_is_ignored():
    model, weights = google()
    middle = {"pre_logits/kernel": torch.ones(24, 24), "pre_logits/bias": torch.ones(24)}
    body = ViT(VIT).eval()
    report = load_weights(body, weights | middle)
    assert set(report.ignored) == {*middle, "head/kernel", "head/bias"}
    assert_same_function(body.embed, model.backbone.embed, BUILT)


def test_positions_of_google_are_resized_as_google_does():
    # scipy.ndimage.zoom(order=1) on the grid: linear, corners on corners.
    _, weights = google()
    model, report = loaded(replace(VIT, img_size=(48, 64)), weights)
    assert report.resized == ("backbone.pos_embed",)
    positions = weights["Transformer/posembed_input/pos_embedding"]
    grid = positions[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (6, 8), mode="bilinear", align_corners=True)
    wanted = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    assert distance(model.backbone.pos_embed, wanted) < TOLERANCE


# Layouts that are wrong on purpose: were they right as well, nothing above would prove anything.


def roll_thirds(tensor):
    query, key, value = tensor.chunk(3)
    return torch.cat([key, query, value])


def last_two(tensor):
    query, key, value = tensor.chunk(3)
    return torch.cat([query, value, key])


@pytest.mark.parametrize("change", [roll_thirds, last_two])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_order_of_query_key_and_value_is_detected_in_every_swin(family, change):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    weights = microsoft(peer)
    spoiled = changed(weights, r"attn\.qkv\.", change)
    for file in (spoiled | buffers(spoiled, 4), as_classifier(openmmlab(spoiled, family))):
        assert largest_gap(loaded(config, file)[0], peer) > CAUGHT


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (r"attn\.qkv\.", roll_thirds),
        (r"attn\.qkv\.", last_two),
        (r"downsample\.norm\.", unfolded),
        (r"downsample\.reduction\.", unfolded),
    ],
)
def test_another_order_of_attention_or_merging_is_detected_in_detectors(part, change):
    peer = swin_peer(SWIN)
    weights = dense(peer)
    spoiled = changed(weights, part, change)
    body = Swin(replace(SWIN, out_norm="each")).eval()
    with torch.no_grad():
        expected = normalised(peer_maps(peer, batch_images(ALIGNED)), weights)
        for prefix in ("backbone.", "backbone.bottom_up."):
            load_weights(body, under(prefix, spoiled | buffers(spoiled, 4)))
            assert distance(body(batch_images(ALIGNED))[-1], expected[-1]) > CAUGHT


def test_query_and_value_biases_that_change_places_are_detected():
    peer = swin_peer(SWIN_V2)
    weights = microsoft(peer)
    swapped = rename(weights, ("q_bias", "x"), ("v_bias", "q_bias"), (r"attn\.x", "attn.v_bias"))
    for file in (swapped | buffers(swapped, 4), as_classifier(openmmlab(swapped, "V2"))):
        assert largest_gap(loaded(SWIN_V2, file)[0], peer) > CAUGHT


# The norm of V2 comes after the reduction, so it has no order of merging.
@pytest.mark.parametrize(
    ("family", "part"), [("V1", "norm"), ("V1", "reduction"), ("V2", "reduction")]
)
def test_merging_that_was_not_unfolded_is_detected_in_openmmlab(family, part):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    right = openmmlab(microsoft(peer), family)
    fold = torch.argsort(unfold_order(16)), torch.argsort(unfold_order(32))
    spoiled = changed(
        right,
        rf"downsample\.{part}\.",
        lambda tensor: tensor[..., fold[tensor.shape[-1] == 128]],
    )
    assert largest_gap(loaded(config, as_classifier(right))[0], peer) < TOLERANCE
    assert largest_gap(loaded(config, as_classifier(spoiled))[0], peer) > CAUGHT


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_that_was_unfolded_is_detected_in_microsoft(family):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    spoiled = changed(microsoft(peer), MERGED[family], unfolded)
    assert largest_gap(loaded(config, spoiled | buffers(spoiled, 4))[0], peer) > CAUGHT


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_after_instead_of_before_the_shift_is_detected(family):
    config, peer = FAMILIES[family], swin_peer(FAMILIES[family])
    model, _ = loaded(config, as_classifier(openmmlab(microsoft(peer), family)))
    assert largest_gap(model, peer, ODD) < TOLERANCE
    model.backbone.config = replace(model.backbone.config, size_rule="timm")
    assert largest_gap(model, peer, ODD) > CAUGHT


@pytest.mark.parametrize("rule", ["microsoft", "torchvision", "muntin"])
def test_a_window_without_its_shift_is_detected_in_detectors(rule):
    weights = openmmlab(dense(swin_peer(SWIN)), "V1")
    body = Swin(replace(SWIN, out_norm="each")).eval()
    load_weights(body, under("backbone.", weights) | DETECTOR)
    with torch.no_grad():
        images = batch_images(SMALL)
        expected = normalised(openmmlab_maps(weights, images), weights)[-1]
        assert distance(body(images)[-1], expected) < TOLERANCE
        body.config = replace(body.config, size_rule=rule)
        assert distance(body(images)[-1], expected) > CAUGHT


def transposed(kernel):
    return kernel.flatten(1).t().reshape(kernel.shape)


def heads_mixed(kernel):
    return kernel.transpose(1, 2).reshape(kernel.shape)


def heads_mixed_in_out(kernel):
    return kernel.transpose(0, 1).reshape(kernel.shape)


def transposed_in_out(kernel):
    return kernel.flatten(0, 1).t().reshape(kernel.shape)


SPOILED = {
    "query not transposed": (r"query/kernel", transposed),
    "key not transposed": (r"key/kernel", transposed),
    "value not transposed": (r"value/kernel", transposed),
    "query and key with heads mixed": (r"(query|key)/kernel", heads_mixed),
    "value with heads mixed": (r"value/kernel", heads_mixed),
    "biases with heads mixed": (r"(query|key|value)/bias", lambda x: x.t().reshape(x.shape)),
    "out not transposed": (r"out/kernel", transposed_in_out),
    "out with heads mixed": (r"out/kernel", heads_mixed_in_out),
    "first dense not transposed": (r"Dense_0/kernel", torch.t),
    "second dense not transposed": (r"Dense_1/kernel", torch.t),
    "head not transposed": (r"head/kernel", torch.t),
    "patches with rows and columns swapped": (r"embedding/kernel", lambda x: x.transpose(0, 1)),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_kernel_of_google_in_another_order_is_detected(name):
    peer, weights = google(SQUARE, num_classes=24)
    assert largest_gap(loaded(SQUARE, weights, 24)[0], peer, BUILT) < TOLERANCE
    spoiled = changed(weights, *SPOILED[name])
    assert all(spoiled[key].shape == tensor.shape for key, tensor in weights.items())
    for file in (spoiled, big_vision(spoiled, stacked=True)):
        assert largest_gap(loaded(SQUARE, file, 24)[0], peer, BUILT) > CAUGHT


@pytest.mark.parametrize("names", [("query", "key"), ("key", "value")])
def test_parts_of_google_s_attention_that_change_names_are_detected(names):
    peer, weights = google()
    one, other = (f"/{name}/" for name in names)
    spoiled = rename(weights, (one, "/x/"), (other, one), ("/x/", other))
    assert largest_gap(loaded(VIT, spoiled)[0], peer, BUILT) > CAUGHT


def test_layers_of_a_stack_in_another_order_are_detected():
    peer, weights = google()
    stacked = big_vision(weights, stacked=True)
    spoiled = changed(stacked, "encoderblock/", lambda tensor: tensor.flip(0))
    assert largest_gap(loaded(VIT, spoiled)[0], peer, BUILT) > CAUGHT


@pytest.mark.parametrize("change", [roll_thirds, last_two])
def test_another_order_of_query_key_and_value_is_detected_in_a_vit_of_mmpretrain(change):
    peer = vit_peer()
    spoiled = changed(mmpretrain_vit(peer), r"attn\.qkv\.", change)
    assert largest_gap(loaded(VIT, spoiled)[0], peer, BUILT) > CAUGHT
