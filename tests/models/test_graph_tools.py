# SPDX-License-Identifier: Apache-2.0
"""Tracers, exporters and derivatives of any order, on every family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import muntin
from muntin.ops.dot_attention import attend
from tests.models.small_families import FAMILIES, SWINS, build, compare, draw

ROOT = Path(__file__).resolve().parents[2]
EXACT = 1e-10  # in float64


@pytest.mark.parametrize("more", ["", pytest.param("slow", marks=pytest.mark.slow)])
def test_recorded_graphs_compute_the_same(more):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.graph_recording", more],
        env={**os.environ, "PYTHONPATH": paths, "MUNTIN_NO_HOOK": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= len(FAMILIES)
    wrong = {name: much for name, much in found.items() if isinstance(much, str) or much > 1e-5}
    assert not wrong


def make_pair(name, **fields):
    """The network with its default attention, and one that computes the plain formula."""
    ours = build(name, **fields).double()
    plain = {"attention": "reference"} if name in SWINS else {}
    twin = build(name, **fields, **plain).double()
    twin.load_state_dict(ours.state_dict())
    return ours, twin


def penalise(network, images):
    """Gradients of the square of a gradient."""
    images = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(network(images).sin().sum(), images, create_graph=True)
    slope.square().sum().backward()
    return [images.grad, *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
@pytest.mark.parametrize("name", FAMILIES)
def test_second_derivatives(name, size):
    ours, twin = make_pair(name)
    size = (48, 80) if name == "dino" and size != (64, 64) else size  # whole patches
    images = draw(*size, dtype=torch.float64)
    for training in (False, True):
        found = penalise(ours.train(training), images)
        with sdpa_kernel(SDPBackend.MATH):
            right = penalise(twin.train(training), images)
        assert len(found) == len(right)
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=EXACT * float(right[0].abs().max()))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_each_image(name, training):
    network = build(name).double().train(training)
    weights = {path: one.detach() for path, one in network.named_parameters()}
    images, labels = draw(64, 96, dtype=torch.float64), torch.tensor([1, 2])

    def loss(weights, image, label):
        logits = functional_call(network, weights, (image[None],))
        return torch.nn.functional.cross_entropy(logits[:, :3], label[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(weights, images, labels)
    for image in range(2):
        network.zero_grad()
        logits = network(images[image : image + 1])[:, :3]
        torch.nn.functional.cross_entropy(logits, labels[image : image + 1]).backward()
        for path, one in network.named_parameters():
            if one.grad is not None:
                torch.testing.assert_close(found[path][image], one.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [*SWINS, "vit", "hiera"])
def test_stochastic_depth_of_each_image(name):
    network = build(name, drop_path_rate=0.5).train()
    weights = {path: one.detach() for path, one in network.named_parameters()}

    def loss(weights, image):
        return functional_call(network, weights, (image[None],)).sum()

    found = vmap(grad(loss), in_dims=(None, 0), randomness="different")(weights, draw(64, 64))
    assert all(one.isfinite().all() for one in found.values())


# What PyTorch itself imports for the forward mode.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("name", [*SWINS, "vit", "beit", "hiera", "t2t_transformer"])
def test_forward_mode(name):
    network, images = build(name).double(), draw(64, 64, dtype=torch.float64)
    along = torch.ones_like(images)
    _, ours = jvp(network, (images,), (along,))
    step = 1e-6
    with torch.no_grad():
        theirs = (network(images + step * along) - network(images - step * along)) / (2 * step)
    assert compare(ours, theirs) < 1e-5
    with torch.autograd.forward_ad.dual_level():
        dual = network(torch.autograd.forward_ad.make_dual(images, along))
        assert compare(torch.autograd.forward_ad.unpack_dual(dual).tangent, ours) < EXACT


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_attention_has_derivatives_of_every_kind():
    q, k, v, bias = (torch.randn(1, 2, 3, 3, dtype=torch.float64) for _ in range(4))

    def twin(q, k, v, bias):
        return (q @ k.transpose(-2, -1) * 0.3 + bias).softmax(dim=-1) @ v

    def ours(q, k, v, bias):
        return attend(q, k, v, bias, scale=0.3)

    inputs = [one.requires_grad_() for one in (q, k, v, bias)]
    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(ours, inputs)
    for bias in (inputs[3], inputs[3].detach(), None):
        plain = 0.0 if bias is None else bias
        second = [
            hessian(lambda q, f=f, b=b: f(q, k, v, b).sin().sum())(q)
            for f, b in ((ours, bias), (twin, plain))
        ]
        torch.testing.assert_close(*second)


@pytest.mark.parametrize("attention", ["auto", "lean"])
@pytest.mark.parametrize("name", SWINS)
def test_nothing_is_kept_from_a_transform(name, attention):
    """Indices of windows are cached: what is made in a transform must not come back later."""

    def step(network, images):
        network.zero_grad()
        network(images).square().sum().backward()
        return [one.grad.clone() for one in network.parameters() if one.grad is not None]

    # Sizes that no other test uses, so that the transforms come first.
    for number, height in enumerate((88, 104, 120)):
        network, images = build(name, attention=attention), draw(height, 136)
        if number == 0:
            vmap(grad(lambda image, n=network: n(image[None]).sum()))(images)
        elif number == 1:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                network(mode.from_tensor(images)).sum()
        else:
            with torch.inference_mode(), torch.device("cpu"):
                network(images)
        found = step(network, images)
        twin = build(name, attention="reference")
        for one, other in zip(found, step(twin, images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
        penalise(network, images)


@pytest.mark.parametrize("name", ["swin", "swin_v2", "vit", "hiera"])
def test_maps_and_blocks_instead_of_a_feature_extractor(name):
    """The ways that documents name: `out_indices`, and hooks on `blocks`."""
    preset, fields = FAMILIES[name]
    network = build(name)
    kept = {}
    for index, block in enumerate(network.backbone.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: kept.update({index: out}))
    images = draw(64, 96)
    with torch.no_grad():
        network(images)
        last = len(getattr(network.backbone.config, "depths", kept)) - 1
        chosen = muntin.create_backbone(
            preset, **{**fields, "img_size": 64, "out_indices": (0, last), "out_norm": "none"}
        )
        state = {k: v for k, v in network.backbone.state_dict().items() if not k.startswith("norm")}
        chosen.load_state_dict(state)
        first, final = chosen.eval()(images)
    assert len(kept) == len(network.backbone.blocks)
    depths = getattr(network.backbone.config, "depths", None)
    ends = (depths[0] - 1 if depths else 0, len(kept) - 1)
    for index, ours in zip(ends, (first, final), strict=True):
        block = kept[index]
        if block.ndim == 3:  # tokens of a ViT, the class token first
            block = block[:, 1:].unflatten(1, tuple(ours.shape[2:]))
        torch.testing.assert_close(block.permute(0, 3, 1, 2), ours)


def test_timm_with_plain_attention():
    """What docs/reference/graphs.md says of timm's own code."""
    pytest.importorskip("timm")
    network = muntin.create_model("timm:vit_tiny_patch16_224", num_classes=3, img_size=64)
    with sdpa_kernel(SDPBackend.MATH):
        slopes = penalise(network.eval(), draw(64, 64))
    assert all(one.isfinite().all() for one in slopes)
