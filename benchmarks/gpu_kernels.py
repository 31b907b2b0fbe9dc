# SPDX-License-Identifier: Apache-2.0
"""Window attention on a GPU: checked against float64, then timed against other implementations.

Letters: B images, H and W sides of the map in tokens, C channels, N tokens of a window, nW windows
of an image, h heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_timing import Settings, Work, describe, time_works
from torch import Tensor

from muntin.ops.positions import SIZE_RULES
from muntin.ops.window_attention import window_attention
from muntin.ops.windows import WindowLayout, cut_heads, join_heads, lay_out, shift_mask

Attention = Callable[[Tensor, Tensor], Tensor]
FLOORS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
MAPS = ((56, 56), (57, 50), (7, 20), (14, 14))
WINDOWS = ((7, 32), (8, 32), (12, 32), (16, 32), (7, 64), (7, 16), (24, 32))
"""Side of the window, width of a head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Inputs of window attention.

    Attributes:
        layout: Where the windows lie.
        tensors: qkv (B, H, W, 3C), bias (h, N, N); and fill and temperature, if any.
        grad: Gradient of the output: B, H, W, C.
    """

    layout: WindowLayout
    tensors: dict[str, Tensor]
    grad: Tensor

    def run(self, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Compute the output and every gradient, in the given dtype or as the tensors are."""
        leaves = {
            name: value.detach().to(dtype or value.dtype, copy=True).requires_grad_()
            for name, value in self.tensors.items()
        }
        out = self.bind(backend, leaves)(leaves["qkv"], leaves["bias"])
        grads = torch.autograd.grad(
            out, list(leaves.values()), self.grad.to(out.dtype), materialize_grads=True
        )
        return [out.detach(), *grads]

    def bind(self, backend: str, tensors: dict[str, Tensor]) -> Attention:
        """Give a function of qkv and bias."""
        rest = {name: value for name, value in tensors.items() if name not in ("qkv", "bias")}
        heads, channels = self.tensors["bias"].shape[0], self.grad.shape[3]
        scale = 1.0 if "temperature" in rest else (channels // heads) ** -0.5
        return partial(window_attention, layout=self.layout, scale=scale, backend=backend, **rest)  # type: ignore[return-value]


def check(settings: Settings) -> dict[str, Any]:
    """Compare the fused attention with float64: output and every gradient, and run to run.

    An error is the largest difference over the largest value; beside it stands that of the plain
    formula in the same type.
    """
    cases = itertools.product(
        settings.pick(tuple(FLOORS), (torch.float32,)),
        settings.pick(WINDOWS, ((4, 16),)),
        settings.pick(MAPS, ((7, 9),)),
        settings.pick(("torchvision", "timm"), ("timm",)),
        settings.pick((False, True), (True,)),
        (False, True),
    )
    rows = [_check_one(settings, *case) for case in cases]
    wrong = [row for row in rows if not row["right"]]
    lines = [f"{len(rows) - len(wrong)} of {len(rows)} cases are right"]
    lines += [f"WRONG: {row}" for row in wrong[:12]]
    return {"cases": rows, "lines": lines}


def _check_one(
    settings: Settings,
    dtype: torch.dtype,
    window: tuple[int, int],
    size: tuple[int, int],
    rule: str,
    shifted: bool,
    cosine: bool,
) -> dict[str, Any]:
    layout = lay_out(size, (window[0],) * 2, shifted, SIZE_RULES[rule])  # type: ignore[index]
    extras = ("fill", "temperature") if cosine else ("fill",)
    problem = _draw(settings, layout, (2, 3, window[1]), dtype, extras)
    row: dict[str, Any] = {
        "case": f"{dtype}, window {window[0]}, head {window[1]}, map {size}, {rule}, "
        f"shifted {shifted}, cosine {cosine}",
    }
    truth = problem.run("reference", torch.float64)
    row["plain"] = _error(problem.run("reference"), truth)
    try:
        first, second = problem.run("fused"), problem.run("fused")
        row["error"] = _error(first, truth)
        row["same_bits"] = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        row["right"] = row["same_bits"] and row["error"] <= max(1.5 * row["plain"], FLOORS[dtype])
    except Exception as error:  # one kernel that fails must not hide the others
        row |= {"problem": f"{type(error).__name__}: {error}"[:300], "right": False}
    return row


def _draw(
    settings: Settings,
    layout: WindowLayout,
    counts: tuple[int, int, int],
    dtype: torch.dtype,
    extras: tuple[str, ...] = (),
) -> Problem:
    """Draw a problem; `counts` are images, heads and the width of a head."""
    batch, heads, width = counts
    generator = torch.Generator().manual_seed(layout.num_tokens + layout.size[0])

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(settings.device)

    channels, tokens = heads * width, layout.num_tokens
    tensors = {
        "qkv": draw(batch, *layout.size, 3 * channels).to(dtype),
        "bias": draw(heads, tokens, tokens),
    }
    if "fill" in extras:
        tensors["fill"] = draw(3 * channels).to(dtype)
    if "temperature" in extras:
        tensors["temperature"] = draw(heads, 1, 1).abs() * 5 + 1
    grad = draw(batch, *layout.size, channels).to(dtype)
    return Problem(layout=layout, tensors=tensors, grad=grad)


def _error(found: list[Tensor], truth: list[Tensor]) -> float:
    pairs = zip(found, truth, strict=True)
    errors = torch.stack(
        [(a.double() - b).abs().max() / b.abs().max().clamp(1e-6) for a, b in pairs]
    )
    return errors.nan_to_num(float("inf")).max().item()


def time_attention(settings: Settings) -> dict[str, Any]:
    """Shift to reverse at the four stages of Swin-T: forward, and forward and backward.

    ``share_of_copy`` is the bandwidth of what must be read and written over that of a copy.
    """
    copy_rate = _copy_rate(settings)
    batch, dtype = settings.pick(128, 2), settings.pick(torch.bfloat16, torch.float32)
    rows, lines = [], []
    for stage in range(settings.pick(4, 1)):
        side, heads = settings.pick(56, 8) >> stage, settings.pick(3, 2) << stage
        window = (settings.pick(7, 4),) * 2
        layout = lay_out((side, side), window, True, SIZE_RULES["timm"])
        problem = _draw(settings, layout, (batch, heads, settings.pick(32, 16)), dtype)
        for learns in (False, True):
            works = {
                name: _bind(attend, problem, learns)
                for name, attend in _contestants(problem, settings).items()
            }
            for row in time_works(works, settings, calls=settings.pick(20, 1)):
                if "ms" in row:
                    # 3C in and C out; on the backward pass also the gradients of both.
                    maps = problem.grad.numel() * (11 if learns else 4)
                    rate = maps * problem.grad.element_size() / row["ms"]["median"] / 1e6
                    row["share_of_copy"] = rate / copy_rate
                kind = "forward and backward" if learns else "forward"
                rows.append({"stage": stage + 1, "work": kind, **row})
                lines.append(f"stage {stage + 1}, {kind}, {describe(row)}")
    return {"batch_size": batch, "copy_gb_s": copy_rate, "rows": rows, "lines": lines}


def _contestants(problem: Problem, settings: Settings) -> dict[str, Attention]:
    fused, sdpa, plain = (
        problem.bind(backend, problem.tensors) for backend in ("fused", "sdpa", "reference")
    )
    found = {"muntin": fused, "SDPA, windows as heads": sdpa}
    if not settings.tiny:
        found["SDPA, compiled"] = torch.compile(sdpa, dynamic=False)
        found["formula, compiled"] = torch.compile(plain, dynamic=False)
        found["FlexAttention"] = torch.compile(partial(_flex, problem), dynamic=False)
    return found


def _flex(problem: Problem, qkv: Tensor, bias: Tensor) -> Tensor:
    """FlexAttention: a window is a row of its batch; bias and mask change the scores."""
    from torch.nn.attention.flex_attention import flex_attention

    layout, count = problem.layout, problem.layout.num_windows
    mask = shift_mask(layout, device=qkv.device)

    def change(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = score + bias[head, query, key]
        return score if mask is None else score + mask[row % count, query, key]

    parts = cut_heads(qkv, layout, 3, bias.shape[0])  # 3, B, nW, h, N, d
    q, k, v = parts.flatten(1, 2).unbind(0)  # B*nW, h, N, d each
    out: Any = flex_attention(q, k, v, score_mod=change)
    return join_heads(out.unflatten(0, (-1, count))[None], layout)


def _bind(attend: Attention, problem: Problem, learns: bool) -> Work:
    leaves = [problem.tensors[name].detach().requires_grad_(learns) for name in ("qkv", "bias")]

    def work() -> Any:  # noqa: ANN401 (a tensor, or its gradients)
        with torch.set_grad_enabled(learns):
            out = attend(*leaves)
        return torch.autograd.grad(out, leaves, problem.grad) if learns else out

    return work


def _copy_rate(settings: Settings) -> float:
    """GB/s of a copy inside the device, read and written."""
    source = torch.ones(settings.pick(2**30, 2**16), device=settings.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    (row,) = time_works({"copy": lambda: target.copy_(source)}, settings, calls=10)
    return 2 * source.nbytes / row["ms"]["median"] / 1e6
