# SPDX-License-Identifier: Apache-2.0
"""The fused window attention against the formula in float64, forward and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from muntin.ops.triton.window_calls import WindowCall
from muntin.ops.triton.window_launches import (
    LAUNCHES,
    Launch,
    count_slots,
    find_launch,
    find_tile,
)
from muntin.ops.window_attention import window_attention
from muntin.ops.windows import WindowLayout
from tests.ops.triton.window_problems import DEVICE, make, measure

# Numbers that are none, or too large, in lanes that nothing reads: a GPU says nothing.
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]

# Every way to lay out windows that the index arithmetic tells apart.
LAYOUTS = {
    "even": {"size": (8, 4), "window": 4},
    "even, shifted": {"size": (8, 8), "window": 4, "shifted": True},
    "padded, then rolled": {"size": (7, 5), "window": 4, "shifted": True, "rule": "torchvision"},
    "rolled, then padded": {"size": (7, 5), "window": 4, "shifted": True, "rule": "timm"},
    "padded, not rolled": {"size": (3, 6), "window": 4, "rule": "torchvision"},
    "padded with zeros": {
        "size": (7, 5), "window": 4, "shifted": True, "rule": "timm", "filled": False,
    },
    "smaller than a window, rolled": {
        "size": (3, 5), "window": 4, "shifted": True, "rule": "openmmlab",
    },
    "one token, rolled past the map": {
        "size": (1, 2), "window": 4, "shifted": True, "rule": "timm",
    },
    "a window that is not square": {"size": (3, 15), "window": 7, "shifted": True},
    "window 7": {"size": (8, 8), "window": 7, "shifted": True, "rule": "timm"},
    "window 8, cosine": {"size": (16, 8), "window": 8, "shifted": True, "cosine": True},
    "cosine, padded": {
        "size": (7, 5), "window": 4, "shifted": True, "rule": "torchvision", "cosine": True,
    },
    "cosine, padded with zeros": {
        "size": (5, 6), "window": 4, "rule": "torchvision", "cosine": True, "filled": False,
    },
    "heads of 64": {"size": (4, 9), "window": 4, "rule": "timm", "head_dim": 64, "cosine": True},
    "a long window": {
        "size": (9, 14), "window": (9, 13), "shifted": True, "rule": "torchvision", "heads": 1,
    },
    "window 12, cosine": {
        "size": (13, 12), "window": 12, "shifted": True, "rule": "torchvision", "head_dim": 32,
        "cosine": True,
    },
    "window 16, even": {
        "size": (16, 32), "window": 16, "shifted": True, "head_dim": 64, "heads": 1,
    },
    "window 24": {
        "size": (24, 25), "window": 24, "shifted": True, "rule": "torchvision", "heads": 1,
    },
}  # fmt: skip
EXACT = {torch.float32: 2e-6, torch.bfloat16: 2e-3, torch.float16: 2e-3}
# The interpreter is slow: float32 shows every layout, a few show the other dtypes.
HALVES = {
    torch.bfloat16: ["rolled, then padded", "window 7", "cosine, padded", "window 16, even"],
    torch.float16: ["padded, then rolled", "heads of 64", "window 12, cosine"],
}
SLOW = ["window 12, cosine", "window 16, even", "window 24"]
CASES = [
    pytest.param(name, dtype, marks=[pytest.mark.slow] if name in SLOW else [])
    for dtype, names in {torch.float32: [*LAYOUTS], **HALVES}.items()
    for name in names
]


def find(name):
    return make(**LAYOUTS[name])


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_output_and_gradients_are_as_exact_as_the_formula(name, dtype):
    problem = find(name)
    truth = problem.run("reference")
    ours = problem.to(dtype).run("fused")
    errors, usual = measure(ours, truth), measure(problem.to(dtype).run("reference"), truth)
    for part, error in errors.items():
        assert error <= max(1.5 * usual[part], EXACT[dtype]), (part, error, usual[part])
        wide = problem.to(dtype)
        assert ours[part].dtype == (wide.qkv.dtype if part == "out" else getattr(wide, part).dtype)


@pytest.mark.parametrize(
    "name", ["cosine, padded", pytest.param("a long window", marks=pytest.mark.slow)]
)
def test_repeats_give_the_same_bits(name):
    problem = find(name).to(torch.float32)
    first, second = problem.run("fused"), problem.run("fused")
    for part, value in first.items():
        assert torch.equal(value, second[part]), part


def run(problem, launches):
    """As `Problem.run`, with other launches."""
    layout = problem.layout
    geometry = [*layout.size, *layout.window, *layout.shift, *layout.pad, int(layout.pad_first)]
    inputs = {name: getattr(problem, name) for name in ("qkv", "bias", "fill", "temperature")}
    call = WindowCall(*inputs.values(), geometry, problem.scale, launches)
    out, grads = call.attend(), call.attend_backward(problem.grad, True, True)
    return {"out": out, **dict(zip(inputs, grads, strict=True))}


@pytest.mark.parametrize("programs", [1, 7, pytest.param(100, marks=pytest.mark.slow)])
def test_sums_hold_whoever_shares_the_windows(programs):
    problem = make((7, 5), 4, shifted=True, rule="timm", cosine=True, batch=2)
    launches = {key: replace(launch, programs=2 * programs) for key, launch in LAUNCHES.items()}
    errors = measure(run(problem.to(torch.float32), launches), problem.run("reference"))
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.slow
@pytest.mark.parametrize(("queries", "keys"), [(16, 64), (64, 16), (128, 32)])
def test_large_windows_come_out_alike_with_other_tiles(queries, keys):
    problem = make((9, 14), (9, 13), shifted=True, rule="torchvision", heads=1, cosine=True)
    launches = dict.fromkeys(LAUNCHES, Launch(queries=queries, keys=keys, programs=2))
    errors = measure(run(problem.to(torch.float32), launches), problem.run("reference"))
    assert max(errors.values()) < 3e-6, errors


def test_a_measured_width_of_head_comes_first():
    better = Launch(num_warps=8)
    launches = {**LAUNCHES, ("attend_whole", 64, 32): better}
    assert find_launch("attend_whole", 64, 32, launches=launches) == better
    assert find_launch("attend_whole", 64, 64, launches=launches) != better


@pytest.mark.slow  # the formula, of which this is a check too, gives the same gradients above
def test_gradients_are_finite_differences():
    problem = make((3, 3), 2, shifted=True, rule="timm", heads=1, cosine=True).to(torch.float32)
    problem = replace(problem, scale=0.5)
    found = problem.run("fused")
    generator = torch.Generator().manual_seed(1)
    for part in ("qkv", "bias", "fill", "temperature"):
        value = getattr(problem, part)
        direction = torch.randn(value.shape, generator=generator).to(DEVICE)
        step = 2e-3
        sides = [
            (replace(problem, **{part: value + sign * step * direction}).run("fused")["out"])
            for sign in (1, -1)
        ]
        change = ((sides[0] - sides[1]).double() * problem.grad.double()).sum() / (2 * step)
        slope = (found[part].double() * direction.double()).sum()
        assert abs(change - slope) <= 5e-3 * max(1.0, abs(slope)), part


def test_each_image_of_a_batch_is_as_if_alone():
    problem = make((3, 5), 4, shifted=True, rule="openmmlab", heads=1, batch=3).to(torch.float32)
    whole = problem.run("fused")
    one = replace(problem, qkv=problem.qkv[1:2], grad=problem.grad[1:2]).run("fused")
    assert torch.equal(whole["out"][1:2], one["out"])
    assert torch.equal(whole["qkv"][1:2], one["qkv"])


@pytest.mark.parametrize("window", [4, 12])
def test_empty_batch(window):
    problem = make((12, 13), window, rule="timm", batch=0, cosine=True).to(torch.float32)
    found = problem.run("fused")
    assert found["out"].shape == (0, 12, 13, 32)
    assert found["qkv"].shape == problem.qkv.shape
    for part in ("bias", "fill", "temperature"):
        assert torch.equal(found[part], torch.zeros_like(getattr(problem, part)))


def test_strided_inputs_and_gradients():
    problem = make((5, 6), 4, shifted=True, rule="timm").to(torch.float32)
    plain = problem.run("fused")
    strided = replace(
        problem,
        qkv=problem.qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        bias=problem.bias.transpose(1, 2).contiguous().transpose(1, 2),
        grad=problem.grad.transpose(1, 2).contiguous().transpose(1, 2),
    )
    for part, value in strided.run("fused").items():
        assert torch.equal(value, plain[part]), part


def test_queries_and_keys_of_length_zero():
    problem = make((4, 4), 4, heads=1, cosine=True)
    qkv = problem.qkv.clone()
    qkv[0, 1, 2, :32] = 0
    problem = replace(problem, qkv=qkv)
    truth = problem.run("reference")
    # The slope at zero is 1e12; elsewhere it is that of the formula.
    ours = problem.to(torch.float32).run("fused")
    assert ours["qkv"].isfinite().all()
    for answer in (ours, truth):
        answer["qkv"][0, 1, 2, :32] = 0
    assert max(measure(ours, truth).values()) < 2e-6


def test_a_token_that_is_no_number_spoils_its_window_only():
    problem = make((8, 8), 4, shifted=True).to(torch.float32)
    good = problem.run("fused")["out"]
    qkv = problem.qkv.clone()
    qkv[0, 3, 3] = float("nan")  # with the shift, in the window of rows and columns 2 to 5
    spoiled = replace(problem, qkv=qkv).run("fused")["out"]
    touched = torch.zeros(8, 8, dtype=torch.bool, device=DEVICE)
    touched[2:6, 2:6] = True
    assert spoiled[0, touched].isnan().all()
    assert torch.equal(spoiled[0, ~touched], good[0, ~touched])


def test_the_mask_adds_a_hundred_and_no_more():
    problem = make((8, 8), 4, shifted=True, heads=1)
    bias = problem.bias.clone()
    bias[0, 0, 15] += 140  # a pair that the mask parts in the last window attends nevertheless
    problem = replace(problem, bias=bias)
    errors = measure(problem.to(torch.float32).run("fused"), problem.run("reference"))
    assert max(errors.values()) < 1e-5, errors


def test_windows_are_shared_evenly():
    assert count_slots(512, 352) == 256
    assert count_slots(3, 100) == 3
    assert count_slots(7, 0) == 1
    for windows in (1, 5, 64, 1000):
        for programs in (1, 7, 64, 5000):
            slots = count_slots(windows, programs)
            assert 1 <= slots <= min(windows, programs)
            # As many turns as the programs allow at best, and no slot without a window.
            assert -(-windows // slots) == -(-windows // min(windows, programs))


def test_tiles_hold_a_window():
    assert [find_tile(tokens) for tokens in (1, 16, 17, 49, 64, 65, 576)] == [
        16, 16, 32, 64, 64, 0, 0,
    ]  # fmt: skip


def test_padding_that_is_not_that_of_whole_windows_is_refused():
    from muntin.errors import ShapeError

    problem = make((8, 8), 4).to(torch.float32)
    layout = WindowLayout(
        size=(8, 8), window=(4, 4), shift=(0, 0), pad=(4, 0), pad_first=True, built_window=(4, 4)
    )
    with pytest.raises(ShapeError, match=r"4 x 4.*8 x 8.*\[4, 0\]"):
        window_attention(problem.qkv, problem.bias, layout, scale=1.0, backend="fused")
