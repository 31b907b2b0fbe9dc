# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What remembers less gives what the plain formulas give, forward and back."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from muntin.nn import memory_efficient, token_slices
from muntin.nn.drop_path import DropPath
from muntin.nn.linear_layers import apply_norm_linear
from muntin.nn.mlp import Mlp

WIDE = 4 * memory_efficient.WIDEST_RECOMPUTED + 8  # in float32
"""So wide that the first product is remembered."""


class Plain(nn.Module):
    """The formulas, in modules that are never taken for lean ones."""

    def __init__(self, dim, hidden, out, bias=True):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-3)
        self.linear = nn.Linear(dim, out, bias=bias)
        self.norm2 = nn.LayerNorm(dim, eps=1e-3)
        self.mlp = Mlp(dim, hidden)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x):
        first = F.layer_norm(x, x.shape[-1:], self.norm1.weight, self.norm1.bias, 1e-3)
        second = F.layer_norm(x, x.shape[-1:], self.norm2.weight, self.norm2.bias, 1e-3)
        hidden = F.linear(second, self.mlp.fc1.weight, self.mlp.fc1.bias)
        grown = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        branch = F.linear(grown, self.mlp.fc2.weight, self.mlp.fc2.bias)
        return F.linear(first, self.linear.weight, self.linear.bias), branch


class Lean(Plain):
    """The same through what is tested."""

    def forward(self, x):
        return apply_norm_linear(x, self.norm1, self.linear), self.mlp(x, self.norm2)


def both(shape, hidden=24, out=10, *, bias=True, frozen=(), slices=7):
    """A lean module in float32 and the formulas in float64, and their inputs."""
    torch.manual_seed(1)
    left = Lean(shape[-1], hidden, out, bias)
    right = Plain(shape[-1], hidden, out, bias).double()
    right.load_state_dict(left.state_dict())
    for module in (left, right):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)) if frozen else True)
    x = torch.randn(shape)
    return left, right, x, x.double()


def go(module, x, needs_x=True):
    """Outputs, and the gradients of everything that wants one."""
    x = x.detach().requires_grad_(needs_x)
    outs = module(x)
    wanted = [x] * needs_x + [p for p in module.parameters() if p.requires_grad]
    torch.manual_seed(2)
    loss = sum((out * torch.randn(out.shape).to(out.dtype)).float().sum() for out in outs)
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return list(outs), list(grads)


def agree(mine, truth, tolerance):
    for left, right in zip(mine, truth, strict=True):
        assert left.shape == right.shape
        scale = right.norm() + 1e-9
        assert (left.double() - right).norm() / scale < tolerance


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch):
    """Slices that do not come out even, whatever the number of threads."""
    monkeypatch.setattr(token_slices, "SLICE_BYTES", 5 * 24 * 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (1, 1, 8), (17, 8), (2, 3, WIDE), (0, 4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_formulas(shape, bias):
    left, right, x, doubled = both(shape, bias=bias)
    for mine, truth in zip(go(left, x), go(right, doubled), strict=True):
        agree(mine, truth, 2e-6)


@pytest.mark.parametrize("dim", [8, WIDE])
def test_half_precision_is_as_good_as_the_plain_modules(dim):
    left, right, x, doubled = both((2, 9, dim))

    class Modules(Lean):
        def forward(self, x):
            hidden = F.gelu(self.mlp.fc1(self.norm2(x)))
            return self.linear(self.norm1(x)), self.mlp.fc2(hidden)

    plain = Modules(dim, 24, 10)
    plain.load_state_dict(left.state_dict())
    truth = go(right, doubled)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = go(left, x), go(plain, x)
    for parts, others, exact in zip(mine, theirs, truth, strict=True):
        for one, other, right_one in zip(parts, others, exact, strict=True):
            assert one.dtype == other.dtype
            mine_off = (one.double() - right_one).norm()
            assert mine_off < 1.2 * (other.double() - right_one).norm() + 1e-6
    for one, other in zip(mine[0], theirs[0], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dim", [8, WIDE])
@pytest.mark.parametrize(
    "frozen", [("norm",), ("linear", "mlp"), ("mlp.fc1",), ("norm1", "mlp.fc2"), ("mlp", "norm")]
)
@pytest.mark.parametrize("needs_x", [True, False])
def test_what_is_frozen_has_no_gradient(dim, frozen, needs_x):
    left, right, x, doubled = both((3, 4, dim), frozen=frozen)
    mine, truth = go(left, x, needs_x), go(right, doubled, needs_x)
    agree(mine[1], truth[1], 2e-6)


def test_inputs_in_any_order_of_memory():
    left, right, _, _ = both((2, 6, 4, 8))
    x = torch.randn(2, 8, 6, 4)
    mine, truth = go(left, x.permute(0, 2, 3, 1)), go(right, x.double().permute(0, 2, 3, 1))
    for one, other in zip(mine, truth, strict=True):
        agree(one, other, 2e-6)
    # A gradient may come as an expanded view.
    x = torch.randn(2, 3, 8, requires_grad=True)
    sum(out.mean() for out in left(x)).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dim", [8, WIDE])
def test_less_is_remembered(dim):
    left, _, x, _ = both((4, 32, dim), hidden=4 * dim, out=3 * dim)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    held = {p.untyped_storage().data_ptr() for p in left.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = left(x.requires_grad_())
    assert outs[0].requires_grad
    maps = sum(count for place, count in kept.items() if place not in held) / x.nbytes
    assert maps == pytest.approx(1 if dim == 8 else 5)  # the input, and what fc1 gives


def watched(module):
    return [module.norm1, module.linear, module.norm2, module.mlp.fc1, module.mlp.fc2]


@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "everywhere"])
def test_hooks_see_everything(kind):
    left, right, x, doubled = both((2, 3, 8))
    seen = []
    handles = []
    if kind == "everywhere":
        handles.append(
            nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m)))
        )
    for module in watched(left) if kind != "everywhere" else ():
        if kind == "forward":
            handles.append(module.register_forward_hook(lambda m, i, o: seen.append(type(m))))
        elif kind == "pre":
            handles.append(module.register_forward_pre_hook(lambda m, i: seen.append(type(m))))
        else:
            handles.append(module.register_full_backward_hook(lambda m, i, o: seen.append(type(m))))
    mine = go(left, x)
    for handle in handles:
        handle.remove()
    assert seen.count(nn.Linear) == 3
    assert seen.count(nn.LayerNorm) == 2
    for one, other in zip(mine, go(right, doubled), strict=True):
        agree(one, other, 2e-6)


def test_what_is_put_in_place_of_a_layer_runs():
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    left, _, x, _ = both((2, 3, 8))
    before = [out.detach() for out in left(x)]
    left.linear.__class__ = left.mlp.fc2.__class__ = Adapted
    for old, new in zip(before, left(x), strict=True):
        torch.testing.assert_close(new, old + 1)
    left.norm1, left.norm2 = nn.Identity(), nn.LayerNorm(8, elementwise_affine=False)
    assert [out.shape for out in left(x)] == [(2, 3, 10), (2, 3, 8)]


def test_evaluation_and_no_gradient_take_the_plain_modules():
    left, _, x, _ = both((2, 3, 8))
    parts = (left.norm2, left.mlp.fc1, left.mlp.fc2)
    assert memory_efficient.applies(x, *parts)
    assert "Norm" in left(x)[1].grad_fn.name()
    with torch.no_grad():
        assert not memory_efficient.applies(x, *parts)
    left.eval()
    assert not memory_efficient.applies(x, *parts)
    assert "Norm" not in left(x)[1].grad_fn.name()


@pytest.mark.parametrize("dim", [8, WIDE])
def test_second_derivatives(dim):
    left, right, x, doubled = both((2, 3, dim))
    results = []
    for module, start in ((left, x), (right, doubled)):
        start.requires_grad_()
        loss = sum(out.square().sum() for out in module(start))
        (slope,) = torch.autograd.grad(loss, start, create_graph=True)
        total = slope.square().sum() / slope.numel() ** 2
        results.append(torch.autograd.grad(total, [start, *module.parameters()], allow_unused=True))
    for mine, truth in zip(*results, strict=True):
        assert (mine is None) == (truth is None)
        if truth is not None:
            assert (mine.double() - truth).norm() <= 1e-4 * truth.norm() + 1e-9


@pytest.mark.parametrize("autocast", [False, True])
def test_inside_a_checkpoint(autocast):
    left, _, x, _ = both((2, 6, 8))
    other = copy.deepcopy(left)

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = other

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, again = go(left, x), go(Again(), x)
    for one, two in zip(plain[0] + plain[1], again[0] + again[1], strict=True):
        assert one.equal(two)


@pytest.mark.parametrize(
    "kept", [[True] * 4, [False] * 4, [True, False, True, True], [False, False, True, False], []]
)
def test_a_branch_of_kept_images_alone(kept):
    torch.manual_seed(0)
    kept = torch.tensor(kept, dtype=torch.bool)
    layer = nn.Linear(3, 3)
    asked = []

    def branch(x):
        asked.append(len(x))
        return layer(x)

    x = torch.randn(len(kept), 2, 3, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    mine = memory_efficient.add_kept(x, branch, kept, 4.0)
    truth = other + layer(other) * (4.0 * kept).view(-1, 1, 1)
    torch.testing.assert_close(mine, truth)
    assert asked == [min(max(int(kept.sum()), 1), len(kept))]
    weights = torch.randn_like(mine)
    parts = [
        torch.autograd.grad((out * weights).sum(), [start, layer.weight, layer.bias])
        for out, start in ((mine, x), (truth, other))
    ]
    for left, right in zip(*parts, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_a_branch_in_parts(count):
    chunked = partial(
        memory_efficient.apply_in_chunks, max_tokens=13 * 4
    )  # two images of six tokens
    layer = nn.Linear(3, 4)
    asked = []

    def branch(x):
        asked.append(len(x))
        return layer(x)

    x = torch.randn(count, 2, 3, 3, requires_grad=True)
    mine = chunked(branch, x)
    assert asked == {0: [0], 1: [1], 3: [2, 1], 4: [2, 2]}[count]
    torch.testing.assert_close(mine, layer(x))
    with torch.no_grad():
        chunked(branch, x)
    assert asked[-1] == count


def test_dropping_draws_as_it_always_did():
    layer = DropPath(0.4)
    x = torch.randn(6, 5, 3)
    torch.manual_seed(5)
    mine = layer.add(x, lambda x: 2 * x)
    torch.manual_seed(5)
    scale = (torch.rand(6) >= 0.4).float() / 0.6
    torch.testing.assert_close(mine, x + 2 * x * scale.view(-1, 1, 1))
    assert layer.eval().add(x, lambda x: 2 * x).equal(3 * x)
    assert DropPath(0.0).add(x, lambda x: 2 * x).equal(3 * x)


def test_dropping_is_seen_by_hooks():
    layer = DropPath(0.4)
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    layer.add(torch.randn(2, 3), lambda x: x)
    assert seen


def test_dropping_where_branches_are_half_precise():
    layer = nn.Linear(3, 3)
    x = torch.randn(8, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for kept in (torch.ones(8), torch.zeros(8), torch.arange(8) % 2):
            out = memory_efficient.add_kept(x, layer, kept.bool(), 2.0)
            assert out.dtype == torch.float32
            truth = x + 2 * kept.view(-1, 1, 1) * layer(x).float()
            torch.testing.assert_close(out, truth, rtol=1e-2, atol=1e-2)
