# SPDX-License-Identifier: Apache-2.0
"""ViTDet and its heads against twins that follow detectron2's formulas, by detectron2's names.

The twins read a state dict alone: attention with a bias of every pair, windows cut by loops, and
sequences of plain layers. timm's tower of SAM, which has the same attention, checks the twin.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

import muntin
from muntin.commands import main
from muntin.data.batches import stack_images
from muntin.errors import ConfigError, WeightError
from muntin.heads.rcnn_config import CASCADE_VITDET, VITDET
from muntin.models.vit_det import ViTDet, ViTDetConfig
from muntin.runs import Run
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_files import write_weights
from muntin.zoo import change_model, find_model
from tests.layout_table import record_layout
from tests.parity.peers import TOLERANCE, batch_images, distance, logits_and_gradient, perturb
from tests.weights.test_detector_keys import MICROSOFT_BLOCK, Lists, Plan, same, swin

pytestmark = pytest.mark.parity

CONFIG = ViTDetConfig(
    embed_dim=24,
    depth=4,
    num_heads=3,
    global_blocks=(1, 3),
    window_size=3,
    patch_size=4,
    img_size=(32, 32),
    pretrain_img_size=(20, 20),
)
NATIVE, OTHERS = (32, 32), [(32, 48), (20, 64), (12, 8)]


def rel(table, side):
    """detectron2's get_rel_pos for queries and keys of one length: (query, key, d)."""
    length = 2 * side - 1
    if len(table) != length:
        table = F.interpolate(table.t()[None], size=length, mode="linear")[0].t()
    return torch.stack(
        [torch.stack([table[q - k + side - 1] for k in range(side)]) for q in range(side)]
    )


def attend(state, name, x, heads):
    batch, height, width, channels = x.shape
    qkv = F.linear(x, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
    qkv = qkv.view(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.reshape(3, batch * heads, height * width, -1)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    grid = query.view(-1, height, width, query.shape[-1])
    down = torch.einsum("bhwc,hkc->bhwk", grid, rel(state[f"{name}.rel_pos_h"], height))
    across = torch.einsum("bhwc,wkc->bhwk", grid, rel(state[f"{name}.rel_pos_w"], width))
    bias = down[..., :, None] + across[..., None, :]
    x = (scores + bias.reshape(scores.shape)).softmax(-1) @ value
    x = x.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels)  # fmt: skip  # noqa: E501
    return F.linear(x, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"])


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def windowed(state, name, x, heads, side):
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    out = torch.zeros_like(x)
    for row in range(0, x.shape[1], side):
        for column in range(0, x.shape[2], side):
            place = (slice(None), slice(row, row + side), slice(column, column + side))
            out[place] = attend(state, name, x[place], heads)
    return out[:, :height, :width]


def twin_map(state, images, config=CONFIG):
    """The map of detectron2's ViT, from its names without "backbone.net."."""
    weight, bias = (state[f"patch_embed.proj.{part}"] for part in ("weight", "bias"))
    x = F.conv2d(images, weight, bias, stride=config.patch_size).permute(0, 2, 3, 1)
    positions = state["pos_embed"][:, 1:]  # the class token has the first
    side = math.isqrt(positions.shape[1])
    positions = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    positions = F.interpolate(positions, x.shape[1:3], mode="bicubic", align_corners=False)
    x = x + positions.permute(0, 2, 3, 1)
    for index in range(config.depth):
        name, heads = f"blocks.{index}", config.num_heads
        y = norm(state, f"{name}.norm1", x)
        if index in config.global_blocks:
            x = x + attend(state, f"{name}.attn", y, heads)
        else:
            x = x + windowed(state, f"{name}.attn", y, heads, config.window_size)
        y = norm(state, f"{name}.norm2", x)
        y = F.gelu(F.linear(y, state[f"{name}.mlp.fc1.weight"], state[f"{name}.mlp.fc1.bias"]))
        x = x + F.linear(y, state[f"{name}.mlp.fc2.weight"], state[f"{name}.mlp.fc2.bias"])
    return x.permute(0, 3, 1, 2)


def official(config=CONFIG):
    """Random weights by detectron2's names, without the beginning."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    state = to_dialect(perturb(ViTDet(config)), "detectron2")
    state = {name.removeprefix("backbone.net."): tensor for name, tensor in state.items()}
    return {name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}  # fmt: skip  # noqa: E501


def under(state, prefix="backbone.net."):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("size", [NATIVE, *OTHERS])
def test_a_backbone_of_detectron2_equals_its_twin(size):
    state, body = official(), ViTDet(CONFIG).eval()
    report = muntin.load_weights(body, {"model": under(state)})
    assert (report.dialect, report.size_rule) == ("detectron2", "openmmlab")
    assert (report.ignored, report.reset, report.resized) == ((), (), ())
    ours = logits_and_gradient(lambda x: body(x)[-1].flatten(1), batch_images(size))
    theirs = logits_and_gradient(lambda x: twin_map(state, x).flatten(1), batch_images(size))
    for mine, other in zip(ours, theirs, strict=True):
        record_layout(
            container="a checkpoint of detectron2",
            prefix="backbone.net.",
            report=report,
            model=body,
            peer="twin",
            difference=distance(mine, other),
        )
    written = to_dialect(body, "detectron2")
    assert written.keys() == under(state).keys()
    # The position of the class token is the one thing that is read by nobody.
    kept = {name: tensor for name, tensor in under(state).items() if "pos_embed" not in name}
    assert all(written[name].equal(tensor) for name, tensor in kept.items())
    rewritten = {name.removeprefix("backbone.net."): x for name, x in written.items()}
    with torch.no_grad():
        assert distance(twin_map(rewritten, batch_images(size)).flatten(1), ours[0]) < TOLERANCE


def test_the_twin_equals_the_tower_of_sam():
    config = replace(CONFIG, pretrain_img_size=NATIVE)
    state = official(config)
    peer = VisionTransformerSAM(
        img_size=32,
        patch_size=4,
        embed_dim=24,
        depth=4,
        num_heads=3,
        window_size=3,
        global_attn_indexes=(1, 3),
        use_rel_pos=True,
        neck_chans=0,
        num_classes=0,
    ).eval()
    peer.neck = nn.Identity()
    positions = {"pos_embed": state["pos_embed"][:, 1:].view(1, 8, 8, 24)}
    peer.load_state_dict(state | positions, strict=True)
    with torch.no_grad():
        images = batch_images(NATIVE)
        assert distance(peer.forward_features(images), twin_map(state, images, config)) < TOLERANCE


def test_another_size_resizes_offsets_as_the_forward_pass_does():
    body = ViTDet(CONFIG).eval()
    muntin.load_weights(body, under(official()))
    wide = change_model(body, img_size=(32, 48))
    assert wide.blocks[1].attn.rel_pos_w.shape[0] == 2 * 12 - 1
    assert wide.blocks[0].attn.rel_pos_w.shape[0] == 2 * 3 - 1
    with torch.no_grad():
        images = batch_images((32, 48))
        assert distance(wide(images)[-1], body(images)[-1]) < TOLERANCE


def test_a_plain_vit_does_not_take_its_weights_and_it_has_no_masks():
    with pytest.raises(WeightError, match="ViTDet"):
        muntin.load_weights(muntin.create_backbone("vit_tiny", depth=1), under(official()))
    with pytest.raises(ConfigError, match="global_blocks"):
        replace(CONFIG, global_blocks=(4,))
    with pytest.raises(ConfigError, match="mask"):
        ViTDet(CONFIG).mask_grid(NATIVE)


@pytest.mark.parametrize(
    ("size", "last"),
    [("base", (2, 5, 8, 11)), ("large", (5, 11, 17, 23)), ("huge", (7, 15, 23, 31))],
)
def test_published_variants_attend_globally_in_the_last_block_of_each_quarter(size, last):
    assert find_model(f"vitdet_{size}").config.global_blocks == last


# Neck and heads.

CHANNELS, LINEAR, CLASSES = 8, 20, 3
# Strides of 4 to 32, after which detectron2 calls its levels.
WIDE = replace(CONFIG, patch_size=16, img_size=(128, 128), pretrain_img_size=(80, 80))


def normed_conv(lists, name, wide, channels, kernel=3, place=".norm"):
    lists.put(f"{name}.weight", wide, channels, kernel, kernel)
    lists.norm(f"{name}{place}", wide)


def heads(lists, stages) -> None:
    """Names of the heads of the project ViTDet; a cascade has one box for all classes."""
    rpn = "proposal_generator.rpn_head."
    for number in (0, 1):
        lists.both(f"{rpn}conv.conv{number}", CHANNELS, CHANNELS, 3, 3)
    lists.both(f"{rpn}objectness_logits", 3, CHANNELS, 1, 1)
    lists.both(f"{rpn}anchor_deltas", 12, CHANNELS, 1, 1)
    for stage in range(stages):
        number = f"{stage}." if stages > 1 else ""
        for conv in (1, 2, 3, 4):
            normed_conv(lists, f"roi_heads.box_head.{number}conv{conv}", CHANNELS, CHANNELS)
        lists.both(f"roi_heads.box_head.{number}fc1", LINEAR, 49 * CHANNELS)
        predictor = f"roi_heads.box_predictor.{number}"
        lists.both(f"{predictor}cls_score", CLASSES + 1, LINEAR)
        lists.both(f"{predictor}bbox_pred", 4 if stages > 1 else 4 * CLASSES, LINEAR)
    for conv in (1, 2, 3, 4):
        normed_conv(lists, f"roi_heads.mask_head.mask_fcn{conv}", CHANNELS, CHANNELS)
    lists.both("roi_heads.mask_head.deconv", CHANNELS, CHANNELS, 2, 2)
    lists.both("roi_heads.mask_head.predictor", CLASSES, CHANNELS, 1, 1)


def pyramid(lists, dim) -> None:
    """Names of SimpleFeaturePyramid; one sequence a level."""
    lists.both("backbone.simfp_2.0", dim, dim // 2, 2, 2)
    lists["backbone.simfp_2.0.bias"] = torch.randn(dim // 2)
    lists.norm("backbone.simfp_2.1", dim // 2)
    lists.both("backbone.simfp_2.3", dim // 2, dim // 4, 2, 2)
    lists["backbone.simfp_2.3.bias"] = torch.randn(dim // 4)
    lists.both("backbone.simfp_3.0", dim, dim // 2, 2, 2)
    lists["backbone.simfp_3.0.bias"] = torch.randn(dim // 2)
    for level, (first, width) in {2: (4, dim // 4), 3: (1, dim // 2), 4: (0, dim), 5: (1, dim)}.items():  # fmt: skip  # noqa: E501
        normed_conv(lists, f"backbone.simfp_{level}.{first}", CHANNELS, width, 1)
        normed_conv(lists, f"backbone.simfp_{level}.{first + 1}", CHANNELS, CHANNELS)


def vitdet(stages):
    torch.manual_seed(2)
    lists = Lists(under(official(WIDE)))
    pyramid(lists, WIDE.embed_dim)
    heads(lists, stages)
    return lists


def swin_cascade(stages):
    """detectron2's Swin in the project ViTDet: norms in the pyramid too."""
    plan, lists = Plan(channels=CHANNELS, fc=LINEAR, stages=stages), Lists()
    torch.manual_seed(2)
    swin(lists, plan, "backbone.bottom_up.", MICROSOFT_BLOCK)
    for level in range(4):
        normed_conv(lists, f"backbone.fpn_lateral{level + 2}", CHANNELS, 16 * 2**level, 1)
        normed_conv(lists, f"backbone.fpn_output{level + 2}", CHANNELS, CHANNELS)
    heads(lists, stages)
    return lists


NARROW = {"box_dim": LINEAR, "mask_dim": CHANNELS}
VIT_FIELDS = {
    name: getattr(WIDE, name)
    for name in ViTDetConfig.__dataclass_fields__
    if name not in ("out_indices", "in_chans", "size_rule")
}
SWIN_FIELDS = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}


def detector(stages, kind):
    config = CASCADE_VITDET if stages > 1 else VITDET
    config = replace(config, neck=replace(config.neck, channels=CHANNELS), **NARROW)
    name, fields = ("vitdet_base", VIT_FIELDS) if kind is vitdet else ("swin_tiny", SWIN_FIELDS)
    return muntin.create_detector(name, head=config, masks=True, num_classes=CLASSES, **fields)


@pytest.mark.parametrize("stages", [1, 3], ids=["mask", "cascade"])
@pytest.mark.parametrize("kind", [vitdet, swin_cascade])
def test_every_key_of_a_detector_is_read_and_written(kind, stages):
    state, model = kind(stages), detector(stages, kind)
    report = muntin.load_weights(model, {"model": state})
    assert (report.dialect, report.reset, report.resized) == ("detectron2", (), ())
    assert all("relative_position_index" in name for name in report.ignored)
    written = to_dialect(model, "detectron2")
    if kind is vitdet:
        assert not written["backbone.net.pos_embed"][:, 0].any()
        written["backbone.net.pos_embed"][:, 0] = state["backbone.net.pos_embed"][:, 0]
    assert same(written, state)


@pytest.mark.parametrize("kind", [vitdet, swin_cascade])
def test_a_cascade_becomes_a_run_that_sees_squares(kind, tmp_path):
    write_weights(tmp_path / "w.safetensors", kind(3))
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    name, fields = ("vitdet_base", VIT_FIELDS) if kind is vitdet else ("swin_tiny", SWIN_FIELDS)
    settings = {key: str(value).strip("()").replace(" ", "") for key, value in fields.items()}
    settings |= {"head.neck.channels": CHANNELS, "head.box_dim": LINEAR, "head.mask_dim": CHANNELS}
    words = ["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "run"), "--to", "run"]
    words += ["--model", name, "--head", "cascade_mask_rcnn_vitdet", "--from", "detectron2"]
    words += ["--classes", str(tmp_path / "names.txt")]
    words += [word for key, text in settings.items() for word in ("--set", f"{key}={text}")]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    predictor = muntin.load(tmp_path / "run", select={"score_threshold": 0.0})
    assert same(predictor.network.state_dict(), reloaded(kind).state_dict())
    # A narrow image is padded to the square that the whole model was trained with.
    side = 128 if kind is vitdet else 1024
    preprocessing = Run.open(tmp_path / "run").preprocessing
    assert preprocessing.img_size == (side, side)
    padded = stack_images([torch.ones(3, 96, 48).byte()], preprocessing)
    assert padded.shape == (1, 3, side, side)


def reloaded(kind):
    model = detector(3, kind)
    muntin.load_weights(model, kind(3))
    return model


def channel_norm(state, name, x):
    return norm(state, name, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv(state, name, x):
    weight = state[f"{name}.weight"]
    x = F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)
    return channel_norm(state, f"{name}.norm", x) if f"{name}.norm.weight" in state else x


def upsample(state, name, x):
    return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)


def twin_levels(state, x):
    fine = F.gelu(channel_norm(state, "backbone.simfp_2.1", upsample(state, "backbone.simfp_2.0", x)))  # fmt: skip  # noqa: E501
    scaled = {
        "2.4": upsample(state, "backbone.simfp_2.3", fine),
        "3.1": upsample(state, "backbone.simfp_3.0", x),
        "4.0": x,
        "5.1": F.max_pool2d(x, 2, 2),
    }
    levels = []
    for name, level in scaled.items():
        stage, first = name.split(".")
        side = conv(state, f"backbone.simfp_{name}", level)
        levels.append(conv(state, f"backbone.simfp_{stage}.{int(first) + 1}", side))
    return [*levels, F.max_pool2d(levels[-1], 1, 2)]


@pytest.mark.parametrize("size", [WIDE.img_size, (128, 192), (192, 64)])
def test_levels_and_heads_of_a_vitdet_equal_their_twins(size):
    state, model = vitdet(3), detector(3, vitdet).eval()
    muntin.load_weights(model, state)
    body = {k.removeprefix("backbone.net."): x for k, x in state.items() if ".net." in k}
    head = model.head
    with torch.no_grad():
        levels = head.read_levels(model.features(batch_images(size)))
        expected = twin_levels(state, twin_map(body, batch_images(size), WIDE))
        for ours, theirs in zip(levels, expected, strict=True):
            assert distance(ours, theirs) < TOLERANCE
        maps = x = levels[1]
        for number in (0, 1):
            x = F.relu(conv(state, f"proposal_generator.rpn_head.conv.conv{number}", x))
        scores = conv(state, "proposal_generator.rpn_head.objectness_logits", x)
        for module in head.rpn.convs:
            maps = module(maps)
        assert distance(head.rpn.objectness(maps), scores) < TOLERANCE
        regions = torch.randn(5, CHANNELS, 7, 7)
        for stage, box_head in enumerate(head.box_heads):
            x = regions
            for number in (1, 2, 3, 4):
                x = F.relu(conv(state, f"roi_heads.box_head.{stage}.conv{number}", x))
            name = f"roi_heads.box_head.{stage}.fc1"
            x = F.relu(F.linear(x.flatten(1), state[f"{name}.weight"], state[f"{name}.bias"]))
            name = f"roi_heads.box_predictor.{stage}.cls_score"
            logits = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
            assert distance(box_head(regions)[0], logits) < TOLERANCE
        x = regions = torch.randn(5, CHANNELS, 14, 14)
        for number in (1, 2, 3, 4):
            x = F.relu(conv(state, f"roi_heads.mask_head.mask_fcn{number}", x))
        x = F.relu(upsample(state, "roi_heads.mask_head.deconv", x))
        wanted = conv(state, "roi_heads.mask_head.predictor", x)[:, 1]
        ones = torch.ones(5, dtype=torch.long)
        assert distance(head.mask_heads[0](regions, ones), wanted) < TOLERANCE
