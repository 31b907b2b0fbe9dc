# SPDX-License-Identifier: Apache-2.0
"""Attribution: equal to captum, complete, on the object, and sensitive to the weights."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import nn

import muntin
from muntin.errors import ConfigError
from muntin.explaining.attribution import show_attribution
from muntin.explaining.attribution_methods import (
    hires_cam,
    integrated_gradients,
    occlusion,
    upsample_map,
)
from muntin.explaining.context import Context
from muntin.explaining.figures import ExplanationFigure, MissingFigure
from muntin.explaining.output_target import select_output
from muntin.heads.keypoint_rcnn import KEYPOINT_DETECTORS
from muntin.heads.network import Network
from muntin.samples import Classes, Skeleton
from muntin.synthetic.scenes import make_scene
from muntin.tasks.task_table import find_task
from tests.detectors import tiny_detector
from tests.explaining.small_contexts import assert_untouched, state_of
from tests.explaining.small_networks import FAMILIES, NAMES, TINY, build, in_engine, make_context
from tests.heads.test_set_prediction import Queries


def _cam(backbone: nn.Module, measure: Callable, images: torch.Tensor) -> list:
    with torch.no_grad():
        maps = backbone(images)
    return hires_cam(backbone, measure, images, maps)


def _context(family: str, **more) -> Context:
    return make_context(build(family), **more)


def _detector(head: str, **more) -> Context:
    task = "detect" if head.startswith(("fcos", "faster", "cascade_rcnn")) else "instance"
    network = tiny_detector(head, 3, task=task)
    return make_context(network, task=task, size=(50, 70), fit="letterbox", **more)


def _mapper(**more) -> Context:
    torch.manual_seed(0)
    network = muntin.create_segmenter("swin_nano", num_classes=3, head="light_small", **TINY).eval()
    nn.init.normal_(network.head.classifier.weight, std=0.3)
    return make_context(network, task="semantic", size=(50, 70), fit="sliding_window", **more)


def _pose(**more) -> Context:
    torch.manual_seed(0)
    options = {"num_keypoints": 3, "head": "light_pose_small"}
    network = muntin.create_pose_estimator("swin_nano", **options, **TINY).eval()
    nn.init.normal_(network.head.classifier.weight, std=0.02)
    return make_context(network, task="pose", size=(48, 64), fit="instance_crop", **more)


def _keypoint_rcnn(**more) -> Context:
    torch.manual_seed(0)
    body = muntin.create_backbone("swin_nano", **TINY)
    classes = Classes(names=NAMES, skeleton=Skeleton(names=("nose", "left", "right")))
    head = KEYPOINT_DETECTORS["keypoint_rcnn_small"]
    built = find_task("pose", "keypoint_rcnn_small").build_head(body, classes, head)
    nn.init.normal_(built.box_heads[0].fc_cls.weight, std=0.1)
    network = Network(body, built).eval()
    return make_context(network, task="pose", size=(50, 70), fit="letterbox", **more)


decide = partial(show_attribution, steps=24)
"""Few integration steps, for tests that do not depend on their number."""


TASKS: dict[str, Callable[..., Context]] = {
    "classify": partial(_context, "swin"),
    "fcos": partial(_detector, "fcos_small"),
    "faster_rcnn": partial(_detector, "faster_rcnn_small"),
    "cascade_mask_rcnn": partial(_detector, "cascade_mask_rcnn_small"),
    "semantic": _mapper,
    "pose": _pose,
}


# Attribution of feature maps.


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_captum_on_every_map(family: str) -> None:
    context = _context(family)
    network, images = context.network, context.images
    rows = _cam(context.backbone, lambda x: network(x)[:, 1], images)
    assert [row.stride for row in rows] == list(context.backbone.spec.strides)
    for row in rows:
        layer = context.backbone.get_submodule(row.name)
        wanted = LayerGradientXActivation(network, layer).attribute(images, target=1)
        wanted = wanted.detach()[0]
        high, wide = row.signed.shape
        if wanted.ndim == 2:  # class tokens, then patches
            wanted = wanted[-high * wide :].sum(dim=1).view(high, wide)
        elif wanted.shape[1:] == (high, wide):
            wanted = wanted.sum(dim=0)
        else:
            wanted = wanted[:high, :wide].sum(dim=2)
        torch.testing.assert_close(row.signed, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 80), (37, 61), (9, 70)])
def test_swin_attribution_sums_to_the_logit(size: tuple[int, int]) -> None:
    context = _context("swin", size=size)
    network = context.network
    rows = _cam(context.backbone, lambda x: network(x)[:, 2], context.images)
    logit = network(context.images)[0, 2] - network.head.fc.bias[2]
    torch.testing.assert_close(rows[-1].signed.sum(), logit.detach(), rtol=1e-4, atol=1e-5)


def test_equals_grad_cam_with_mean_pooling() -> None:
    context = _context("swin")
    network = context.network
    last = _cam(context.backbone, lambda x: network(x)[:, 0], context.images)[-1]

    class First(nn.Module):  # captum takes the second side for the channels
        def forward(self, x):
            return x.permute(0, 3, 1, 2)

    norm = network.backbone.norm
    first = First()
    network.backbone.norm = nn.Sequential(norm, first)
    network.backbone.norm.append(_Back())
    wanted = LayerGradCam(network, first).attribute(context.images, target=0)[0, 0].detach()
    network.backbone.norm = norm
    cells = last.signed.numel()
    torch.testing.assert_close(last.signed, wanted, rtol=1e-4, atol=1e-6 * cells)


class _Back(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("family", ["vit", "deit", "t2t", "timm_vit"])
def test_class_token_models_use_the_input_of_the_last_block(family: str) -> None:
    context = _context(family)
    network = context.network
    (*_, last) = _cam(context.backbone, lambda x: network(x)[:, 0], context.images)
    assert last.early
    assert last.signed.abs().max() > 0
    result = decide(context)[0]
    assert "class token" in result.text
    assert ("distillation token" in result.text) == (family == "deit")


def test_upsample_map_crops_and_pads() -> None:
    heat = torch.tensor([[0.0, 1.0, 0.0]])
    assert (
        upsample_map(heat, 4, (4, 10), smooth=False)[0].tolist()
        == [0.0] * 4 + [1.0] * 4 + [0.0] * 2
    )
    assert upsample_map(heat, 2, (4, 10)).shape == (4, 10)
    assert not upsample_map(heat, 2, (4, 10))[2:].any()  # padded with zeros


# What the pixels add.


@pytest.mark.parametrize("family", ["swin", "vit", "hiera"])
def test_completeness(family: str) -> None:
    context = _context(family)
    network = context.network
    integral = integrated_gradients(lambda x: network(x)[:, 1], context.images, 100)
    empty, full = network(torch.cat([0 * context.images, context.images]))[:, 1].tolist()
    assert integral.start == pytest.approx(empty, abs=1e-5)
    assert integral.end == pytest.approx(full, abs=1e-5)
    assert float(integral.pixels.sum()) == pytest.approx(full - empty, rel=0.02, abs=2e-3)
    assert integral.relative_error == pytest.approx(
        abs(float(integral.pixels.sum()) / (full - empty) - 1), abs=1e-3
    )
    # With one step they do not add up: the test above can fail.
    assert integrated_gradients(lambda x: network(x)[:, 1], context.images, 1).relative_error > 0.03


def test_integrated_gradients_equal_a_loop() -> None:
    context = _context("swin", size=(32, 40))
    network, images = context.network, context.images
    total = torch.zeros_like(images)
    for step in range(80):
        at = ((step + 0.5) / 80 * images).requires_grad_()
        total += torch.autograd.grad(network(at)[0, 1], at)[0]
    wanted = (images * total / 80)[0]
    found = integrated_gradients(lambda x: network(x)[:, 1], images, 64).pixels
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_fewer_steps_for_larger_images() -> None:
    def measure(x):
        return x.square().sum(dim=(1, 2, 3))

    for side, steps in ((32, 64), (224, 24), (300, 13), (900, 8)):
        assert integrated_gradients(measure, torch.rand(1, 1, side, side)).steps == steps


# What covered patches change.


def test_occlusion_decreases_where_it_matters() -> None:
    shown = torch.randint(60, 255, (3, 23, 50), dtype=torch.uint8)

    def measure(images):
        return images[:, :, 10:15, 25:30].float().sum(dim=(1, 2, 3))

    falls = occlusion(measure, shown, (0, 0, 0))
    assert falls.shape == (5, 10)  # patches of 5 pixels
    assert falls[2, 5] == shown[:, 10:15, 25:30].sum()
    assert int((falls != 0).sum()) == 1


# Every task.


@pytest.mark.parametrize("kind", TASKS)
def test_every_task(kind: str) -> None:
    context = TASKS[kind]()
    results = decide(context)
    assert [e.name for e in results] == ["decision-activation", "decision-pixels"]
    activation, pixels = results
    assert activation.facts["strides"] == list(context.backbone.spec.strides)
    assert activation.facts["value"] == pixels.facts["value"]
    assert pixels.arrays["pixels"].shape == (3, *context.shown_size)
    assert pixels.facts["value"] == pytest.approx(
        pixels.facts["value_of_empty_picture"] + pixels.facts["sum_of_pixels"]
        - pixels.facts["completeness_error"], abs=1e-4,
    )  # fmt: skip
    gained = pixels.facts["value"] - pixels.facts["value_of_empty_picture"]
    assert abs(pixels.facts["completeness_error"]) < 0.02 + 0.1 * abs(gained)
    assert ("Yellow" in pixels.text) == (kind == "semantic")
    for result in results:
        assert all(0 <= part <= 1 for part in result.facts["peak"])
        assert result.formula.startswith("<math")
        assert not any(character in result.text for character in "\n{}")


@pytest.mark.parametrize("head", ["faster_rcnn_small", "cascade_rcnn_small"])
def test_log_odds_match_the_score(head: str) -> None:
    for number in (0, 3):
        context = _detector(head, target=number)
        sizes = torch.tensor([context.shown_size])
        with torch.no_grad():
            found = context.network(context.images, sizes)[0]
        asked = select_output(context, context.network, context.images)
        assert torch.tensor(asked.value).sigmoid().item() == pytest.approx(
            float(found.scores[number]), rel=1e-3
        )
        assert asked.box == pytest.approx(found.boxes[number].tolist())
        # Other images of the batch change nothing.
        both = asked.measure(torch.cat([context.images.flip(3), context.images])).detach()
        assert float(both[1]) == pytest.approx(asked.value, rel=1e-3, abs=1e-4)


def test_a_head_that_nobody_knows_is_explained() -> None:
    torch.manual_seed(0)
    backbone = muntin.create_backbone("swin_nano", **TINY)
    network = Network(backbone, Queries(backbone.spec.channels[-1], 3)).eval()
    context = make_context(network, task="detect", size=(50, 70), fit="letterbox")
    output = select_output(context, network, context.images)
    with torch.no_grad():
        found = network.decode(network(context.images, torch.tensor([context.shown_size])))[0]
    assert output.title.startswith("the score of box")
    assert output.value == pytest.approx(float(found.scores[output.number]))
    shown = show_attribution(context, steps=4)
    assert all(isinstance(one, ExplanationFigure) for one in shown)
    assert np.abs(shown[1].arrays["pixels"]).max() > 0


def test_logit_of_a_cell_matches_its_score() -> None:
    context = _detector("fcos_small", target=2)
    with torch.no_grad():
        found = context.network(context.images, torch.tensor([context.shown_size]))[0]
    asked = select_output(context, context.network, context.images)
    score = float(found.scores[2])
    # The reported score is the geometric mean of this and of the centredness, which is at most 1.
    assert 0 < score**2 / torch.tensor(asked.value).sigmoid().item() <= 1
    with torch.no_grad():
        context.network.head.classes.bias[int(found.class_ids[2])] += 1
        assert float(asked.measure(context.images)[0]) == pytest.approx(asked.value + 1, rel=1e-5)


def test_keypoint_rcnn_target_is_a_box() -> None:
    assert "the log-odds of box 0, " in decide(_keypoint_rcnn())[0].facts["asked"]


def test_target_is_the_region_of_a_class() -> None:
    context = _mapper()
    logits = context.network(context.images)[0].detach()
    won = logits.argmax(dim=0)
    for class_id in won.unique().tolist():
        asked = select_output(_mapper(target=class_id), context.network, context.images)
        assert asked.value == pytest.approx(float(logits[class_id][won == class_id].mean()))
        assert asked.region.shape == context.shown_size
        assert asked.region[10, 20] == (won[10 // 4, 20 // 4] == class_id)


def test_region_is_marked_on_the_image() -> None:
    context = _mapper()
    asked = select_output(context, context.network, context.images)
    panel = show_attribution(context)[0].figure.axes[0]
    drawn = panel.images[0].get_array()
    shown = context.shown.permute(1, 2, 0).numpy()
    assert np.array_equal(drawn[~asked.region], shown[~asked.region])
    assert not np.array_equal(drawn[asked.region], shown[asked.region])


def test_pixel_scale_is_in_the_title() -> None:
    result = decide(_context("swin"))[1]
    largest = np.percentile(np.abs(result.arrays["pixels"].sum(axis=0)), 99.5)
    assert f"{largest:.2g}" in result.figure.axes[1].get_title()


def test_empty_map_is_labelled() -> None:
    usual, context = decide(_pose())[0], _pose()
    *_, last = (part for part in context.network.head.modules() if isinstance(part, nn.Conv2d))
    nn.init.zeros_(last.weight)  # the answer does not depend on the image
    result = decide(context)[0]
    titles = [panel.get_title() for panel in result.figure.axes[1:-1]]
    assert [re.sub(r":.*", "", title) for title in titles] == [
        "stride 16 (main)",
        "stride 8",
        "stride 4",
    ]
    assert all(":" in title for title in titles)
    assert not any(":" in panel.get_title() for panel in usual.figure.axes[1:-1])
    assert result.text != usual.text


def test_target_is_a_keypoint() -> None:
    context = _pose(target=1)
    maps = context.network(context.images)[0].detach()
    asked = select_output(context, context.network, context.images)
    assert asked.value == pytest.approx(float(maps[1].max()))
    row, column = divmod(int(maps[1].argmax()), maps.shape[2])
    assert np.allclose(asked.point, (column * 63 / 15, row * 47 / 11), atol=4)
    assert "'left'" in asked.title


# What cannot be asked.


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("classify", r"0 to 2\b.*\b9\b.*0 ash, 1 birch, 2 cedar"),
        ("faster_rcnn", r"0 to \d+.*\b99\b.*\b0 \w+ \(0\.\d\d\)"),
        ("semantic", r"0 to 2\b.*\b9\b"),
        ("pose", r"0 to 2\b.*\b9\b.*0 nose, 1 left, 2 right"),
    ],
)
def test_unknown_targets_are_refused(kind: str, match: str) -> None:
    context = TASKS[kind](target=99 if kind == "faster_rcnn" else 9)
    with pytest.raises(ConfigError, match=match):
        show_attribution(context)


def test_reason_without_detections() -> None:
    network = tiny_detector("faster_rcnn_small", 3, task="detect", threshold=0.999)
    context = make_context(network, task="detect", fit="letterbox")
    (missing,) = show_attribution(context)
    assert isinstance(missing, MissingFigure)


def test_reason_if_a_class_is_predicted_nowhere() -> None:
    context = _mapper(target=1)
    context.network.head.classifier.bias.data[1] = -1e3
    (missing,) = show_attribution(context)
    assert isinstance(missing, MissingFigure)
    assert "'birch'" in missing.reason
    assert "ash" in missing.reason


def test_feature_maps_do_not_need_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    activation, missing = decide(_context("swin"))
    assert isinstance(activation, ExplanationFigure)
    assert isinstance(missing, MissingFigure)
    assert "muntin[explain]" in missing.reason


@pytest.mark.parametrize("in_chans", [1, 13])
def test_other_channels(in_chans: int) -> None:
    context = make_context(build("swin", in_chans=in_chans), in_chans=in_chans)
    assert decide(context)[1].arrays["pixels"].shape == (in_chans, 48, 80)


def test_smaller_than_a_window() -> None:
    for family in ("swin", "vit_mean", "hiera"):
        activation, _ = decide(_context(family, size=(16, 19)))
        assert activation.figure.axes


# Files without gradients.


@pytest.mark.parametrize("kind", ["classify", "faster_rcnn", "semantic", "pose"])
def test_exported_files_use_occlusion(kind: str) -> None:
    context = TASKS[kind]()
    canvas = (64, 96)
    finds = context.task.detects
    engine = in_engine(context.network, context.pre, canvas, finds=finds)
    (result,) = show_attribution(replace(context, network=engine))
    assert result.name == "decision-occlusion"
    assert result.arrays["falls"].any()


# Nothing is left behind.


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("classify", torch.no_grad),
        ("fcos", torch.inference_mode),
        ("cascade_mask_rcnn", torch.no_grad),
        ("semantic", torch.inference_mode),
    ],
)
def test_network_is_unchanged(kind: str, mode) -> None:
    context = TASKS[kind]()
    network = context.network
    next(network.parameters()).requires_grad_(False)
    last = [*network.parameters()][-1]
    last.grad = torch.ones_like(last)
    sizes = (torch.tensor([context.shown_size]),) if context.task.detects else ()
    before = network(context.images, *sizes)
    state = state_of(network)
    with mode():
        decide(context)
    assert_untouched(state, network)
    after = network(context.images, *sizes)
    pairs = [(before, after)] if not sizes else zip(before[0], after[0], strict=True)
    assert all(torch.equal(one, other) for one, other in pairs if one is not None)
    with pytest.raises(ConfigError):
        decide(replace(TASKS[kind](target=1000), network=network))
    assert_untouched(state, network)


def test_hooks_are_removed_after_an_error() -> None:
    context = _detector("faster_rcnn_small")
    state = state_of(context.network)

    def fail(*_):
        raise RuntimeError("broken")

    context.network.head.box_heads[0].forward = fail
    with pytest.raises(RuntimeError, match="broken"):
        decide(context)
    assert_untouched(state, context.network)


def test_network_built_under_inference_mode() -> None:
    with torch.inference_mode():
        context = _context("swin")
        found = decide(context)
    wanted = decide(_context("swin"))
    for one, other in zip(found, wanted, strict=True):
        for name, values in one.arrays.items():
            np.testing.assert_allclose(values, other.arrays[name], atol=1e-5)


# The evidence lies where it was put.

LOOKS = {
    "swin": ("swin_nano", {**TINY, "embed_dim": 24, "num_heads": (1, 2, 4)}),
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 8,
        "pool": "mean", "img_size": (64, 96)}),
}  # fmt: skip


def _plant(number: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with an irrelevant blue disc and an orange square, and the position of the square."""
    generator = np.random.default_rng(number)
    image = generator.normal(0, 0.4, (3, *size))
    rows, columns = np.indices(size)
    for colour, inside in (((-1, 0, 2), "disc"), ((2, 0.5, -2), "square")):
        y, x = (int(generator.integers(12, side - 12)) for side in size)
        disc = np.hypot(rows - y, columns - x) < 9
        here = disc if inside == "disc" else np.maximum(abs(rows - y), abs(columns - x)) < 9
        image[:, here] = np.array(colour)[:, None] + generator.normal(0, 0.2, (3, here.sum()))
    return torch.from_numpy(image).float(), torch.from_numpy(here)


def _hand_built(look: str, size: tuple[int, int], seed: int = 0) -> nn.Module:
    """A freshly initialised network whose class 1 is fitted to cells with orange squares."""
    name, options = LOOKS[look]
    torch.manual_seed(seed)
    network = muntin.create_model(name, num_classes=2, **options).eval()
    features, wanted = [], []
    for number in range(30):
        image, here = _plant(1000 + number, size)
        with torch.no_grad():
            cells = network.backbone(image[None])[-1][0]
        features.append(cells.flatten(1).T)
        share = nn.functional.adaptive_avg_pool2d(here[None].float(), cells.shape[1:])
        wanted.append(share.flatten())
    rows = torch.cat(features).double()
    ridge = 1e-3 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ torch.cat(wanted).double())
    with torch.no_grad():
        network.head.fc.weight[1] = solved
        network.head.fc.weight[0] = 0
    return network


Row = tuple[torch.Tensor, int, torch.Tensor]


def _hits(network: nn.Module, rows: list[Row]) -> tuple[float, float]:
    """Pointing game: how often the peak of the map, and of the pixels, lies on the object.

    Half a cell, or half of what pixels are averaged over, beside it is on it.
    """
    on_map = on_pixels = 0
    for image, class_id, here in rows:
        size = (here.shape[0], here.shape[1])

        def measure(x, class_id=class_id):
            return network(x)[:, class_id]

        last = _cam(network.backbone, measure, image[None])[-1]
        heat = upsample_map(last.heat, last.stride, size)
        on_map += bool(_widen(here, last.stride // 2)[int(heat.argmax())])
        shares = integrated_gradients(measure, image[None], 12).pixels.sum(dim=0)
        smooth = nn.functional.avg_pool2d(shares[None, None], 9, stride=1, padding=4)
        on_pixels += bool(_widen(here, 4)[int(smooth.argmax())])
    return on_map / len(rows), on_pixels / len(rows)


def _widen(here: torch.Tensor, margin: int) -> torch.Tensor:
    values = here[None].float()
    side = 2 * margin + 1
    return nn.functional.max_pool2d(values, side, stride=1, padding=margin)[0].flatten()


def _keeps(network: nn.Module, rows: list[Row]) -> tuple[float, float]:
    """Sanity check with shuffled weights: hits of the map, and similarity of the pixels' shares.

    Pixels that differ much from the mean colour have large shares with any weights, but nothing
    keeps their sign: so it is the correlation that must go.
    """
    hits, alike = [], []
    for seed in range(2):
        shuffled = _shuffle(network, seed)
        hits.append(_hits(shuffled, rows)[0])
        for image, class_id, _ in rows[:3]:
            shares = [
                integrated_gradients(
                    lambda x, n=n, c=class_id: n(x)[:, c], image[None], 8
                ).pixels.sum(dim=0)
                for n in (network, shuffled)
            ]
            smooth = [nn.functional.avg_pool2d(one[None], 9, stride=2)[0] for one in shares]
            alike.append(float(torch.corrcoef(torch.stack(smooth).flatten(1))[0, 1]))
    return float(np.mean(hits)), float(np.mean(alike))


def _shuffle(network: nn.Module, seed: int) -> nn.Module:
    """Shuffle the values of every tensor."""
    shuffled = copy.deepcopy(network)
    torch.manual_seed(seed)
    with torch.no_grad():
        for values in shuffled.parameters():
            values.copy_(values.flatten()[torch.randperm(values.numel())].view_as(values))
    return shuffled


@pytest.mark.parametrize(
    ("look", "size"),
    [
        pytest.param("swin", (64, 64), marks=pytest.mark.slow),
        ("swin", (75, 50)),
        pytest.param("vit", (64, 96), marks=pytest.mark.slow),
    ],
)
def test_finds_planted_evidence(look: str, size: tuple[int, int]) -> None:
    network = _hand_built(look, size)
    rows = [(image, 1, here) for image, here in (_plant(n, size) for n in range(6))]
    on_map, on_pixels = _hits(network, rows)
    assert on_map >= 0.7
    assert on_pixels >= 0.7
    # Adebayo et al. 2018 (arXiv 1810.03292): with other weights the image must be gone.
    hits, alike = _keeps(network, rows)
    assert hits <= 0.5
    assert abs(alike) <= 0.4


@pytest.fixture(scope="module")
def scenes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images with a cross or a ring (the class), its box, and distractors."""
    return _draw_scenes((64, 64), 900, seed=11)


KINDS = ("cross", "ring", "square", "triangle")


def _draw_scenes(
    size: tuple[int, int], count: int, *, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, labels, places = [], [], []
    index = 0
    while len(images) < count:
        scene = make_scene(seed, index, size=size, max_objects=3, classes=KINDS, usual_colours=1.0)
        index += 1
        deciding = [one for one in scene.objects if one.class_id < 2]
        if len(deciding) != 1:
            continue
        images.append(torch.from_numpy(scene.image).permute(2, 0, 1))
        labels.append(deciding[0].class_id)
        places.append(torch.from_numpy(deciding[0].mask))
    values = (torch.stack(images).float() / 255 - 0.5) / 0.25
    return values, torch.tensor(labels), torch.stack(places)


def _train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    steps = epochs * (len(images) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=7e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 7e-4, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(32)[: len(images) // 32]:
            batch = images[rows]
            flips = [axis for axis in (2, 3) if torch.rand(()) < 0.5]
            loss = nn.functional.cross_entropy(network(batch.flip(flips)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


LEARNING = {"swin": 18, "vit": 14, "vit_mean": 14}
LEARNERS = {
    "swin": ("swin_nano", {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4),
        "out_indices": (0, 1)}),
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_size": 8,
        "img_size": 64}),
    "vit_mean": ("vit_tiny_patch16_224", {"embed_dim": 64, "depth": 4, "num_heads": 4,
        "patch_size": 8, "img_size": 64, "pool": "mean"}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("look", LEARNERS)
def test_learnt_evidence_lies_on_the_object_that_decides(look: str, scenes) -> None:
    """Pixels only: a trained network may carry the evidence in any token that attends to it."""
    name, options = LEARNERS[look]
    torch.manual_seed(0)
    network = muntin.create_model(name, num_classes=2, **options)
    _train(network, *scenes[:2], epochs=LEARNING[look])
    for size in ((64, 64), (56, 88)):
        images, labels, places = _draw_scenes(size, 40, seed=12)
        right = network(images).argmax(dim=1) == labels
        assert right.float().mean() > 0.7  # those it is right about are asked
        rows = [(images[i], int(labels[i]), places[i]) for i in right.nonzero()[:, 0].tolist()]
        # By chance a fifth would: an object and its margin cover so much.
        assert _hits(network, rows)[1] >= 0.6
        assert abs(_keeps(network, rows[:12])[1]) <= 0.4


def test_classes_without_names_have_numbers() -> None:
    context = _context("swin", target=2)
    unnamed = Context(**{**_fields(context), "classes": Classes(names=())})
    assert decide(unnamed)[0].facts["asked"] == "the logit of 'class 2'"


def _fields(context: Context) -> dict:
    return {name: getattr(context, name) for name in Context.__dataclass_fields__}
