# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels on a GPU: checked against float64, then timed against other implementations.

Letters: B images, H and W sides of the map in tokens, C channels, N tokens of a window, h heads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from attention_peers import ATTENTIONS
from torch import Tensor

from muntin.benching.attention import (
    Attention,
    AttentionProblem,
    AttentionSettings,
    Started,
    bench_attention,
    start_ours,
)
from muntin.benching.bench_request import BenchRequest
from muntin.ops.positions import expand_relative_position_bias
from muntin.ops.size_rules import SIZE_RULES
from muntin.ops.window_attention import window_attention
from muntin.ops.windows import cut_heads, join_heads, lay_out, shift_mask

MAPS = ((56, 56), (57, 50), (7, 20), (29, 31), (14, 14))
TINY_MAPS = ((8, 8), (7, 9))


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the fused attention with float64: output and every gradient, and run to run.

    An error is the largest difference over the largest value; beside it stands that of the plain
    formula in the same type.
    """
    rows = [_check_one(*case) for case in _cases(options)]
    wrong = [row for row in rows if not row["right"]]
    lines = [f"{len(rows) - len(wrong)} of {len(rows)} cases are right"]
    lines += [f"WRONG: {row['case']}: {row['error']:.2e}, plain {row['plain']:.2e}, same bits "
              f"{row['same_bits']}, {row['problem']}" for row in wrong[:12]]  # fmt: skip
    return {"cases": rows, "lines": lines}


def _cases(options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    dtypes = (torch.float32,) if options.tiny else (torch.bfloat16, torch.float16, torch.float32)
    windows = ((7, 32), (8, 32), (12, 32), (16, 32), (7, 64), (7, 16), (24, 32))
    if options.tiny:
        windows = ((4, 16),)
    for dtype in dtypes:
        for window, width in windows:
            for size in TINY_MAPS if options.tiny else MAPS:
                for rule in ("torchvision", "timm"):
                    for shifted in (False, True):
                        for cosine in (False, True):
                            yield options.device, dtype, window, width, size, rule, shifted, cosine


def _check_one(
    device: str,
    dtype: torch.dtype,
    window: int,
    width: int,
    size: tuple[int, int],
    rule: str,
    shifted: bool,
    cosine: bool,
) -> dict[str, Any]:
    heads = 3
    layout = lay_out(size, (window, window), shifted, SIZE_RULES[rule])  # type: ignore[index]
    generator = torch.Generator().manual_seed(window + size[0])

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    tokens = layout.num_tokens
    given = {
        "qkv": draw(2, *size, 3 * heads * width).to(dtype),
        "bias": draw(heads, tokens, tokens),
        "fill": draw(3 * heads * width).to(dtype),
    }
    if cosine:
        given["temperature"] = draw(heads, 1, 1).abs() * 5 + 1
    grad = draw(2, *size, heads * width).to(dtype)

    def run(backend: str, wide: torch.dtype | None) -> list[Tensor]:
        leaves = {
            name: (value.to(wide) if wide else value.clone()).requires_grad_()
            for name, value in given.items()
        }
        rest = {name: value for name, value in leaves.items() if name not in ("qkv", "bias")}
        out = window_attention(
            leaves["qkv"], leaves["bias"], layout, scale=1.0 if cosine else width**-0.5,
            backend=backend, **rest,
        )  # type: ignore[arg-type]  # fmt: skip
        found = torch.autograd.grad(
            out, list(leaves.values()), grad.to(out.dtype), allow_unused=True
        )
        zeros = [torch.zeros_like(leaf) for leaf in leaves.values()]
        gradients = [zero if one is None else one for one, zero in zip(found, zeros, strict=True)]
        return [out.detach(), *gradients]

    case = (
        f"{dtype} window {window} width {width} map {size} {rule} shifted {shifted} cosine {cosine}"
    )
    row: dict[str, Any] = {"case": case, "problem": "", "error": float("nan"), "same_bits": False}
    truth = run("reference", torch.float64)
    row["plain"] = _error(run("reference", None), truth)
    try:
        first, second = run("fused", None), run("fused", None)
        row["error"] = _error(first, truth)
        row["same_bits"] = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    except Exception as error:  # one kernel that fails must not hide the others
        row["problem"] = f"{type(error).__name__}: {error}"[:300]
    floor = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    row["right"] = row["same_bits"] and row["error"] <= max(1.5 * row["plain"], floor)
    return row


def _error(found: list[Tensor], truth: list[Tensor]) -> float:
    worst = 0.0
    for one, right in zip(found, truth, strict=True):
        scale = right.abs().max().clamp(min=1e-6)
        difference = ((one.double() - right).abs().max() / scale).item()
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _start_flex(problem: AttentionProblem, dtype: torch.dtype) -> Started:
    """FlexAttention, compiled: a window is a row of its batch; bias and mask change the scores."""
    from torch.nn.attention.flex_attention import flex_attention

    layout = problem.layout
    qkv = problem.qkv.to(dtype, copy=True).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = problem.table.to(wide, copy=True).requires_grad_()
    mask = shift_mask(layout, device=qkv.device)
    count = layout.num_windows

    def forward(qkv: Tensor, table: Tensor) -> Tensor:
        bias = expand_relative_position_bias(
            table, table_window=(problem.window,) * 2, window=layout.window
        )

        def change(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            score = score + bias[head, query, key]
            return score if mask is None else score + mask[row % count, query, key]

        parts = cut_heads(qkv, layout, 3, problem.num_heads)  # 3, B, nW, h, N, d
        q, k, v = parts.flatten(1, 2).unbind(0)  # B*nW, h, N, d each
        out = flex_attention(q, k, v, score_mod=change, scale=problem.scale)
        return join_heads(out.unflatten(0, (-1, count))[None], layout)

    compiled = torch.compile(forward, dynamic=False)
    return lambda: compiled(qkv, table), [qkv, table]


def _others(options: argparse.Namespace) -> dict[str, Attention]:
    found: dict[str, Attention] = {
        **ATTENTIONS,
        "SDPA, windows as heads": partial(start_ours, backend="sdpa"),
    }
    if options.device == "cuda":
        found["FlexAttention"] = _start_flex
    return found


def time_attention(options: argparse.Namespace) -> dict[str, Any]:
    """Shift to reverse, at the four stages of Swin-T: forward, and forward and backward."""
    request = BenchRequest(
        model="swin_nano_patch4_window4_64" if options.tiny else "swin_tiny",
        batch_size=2 if options.tiny else 128,
        rounds=3 if options.tiny else 9,
    )
    settings = AttentionSettings(
        others=_others(options), precisions=("bf16",), device=options.device, round_seconds=0.02
    )
    result = bench_attention(request, settings)
    copy = copy_rate(options)
    lines = []
    for row in result["contestants"]:
        # Fewest bytes: 3C in and C out; on the backward pass also the gradients of both.
        high, wide = row["map"]
        channels = row["num_heads"] * 32
        maps = 4 if row["work"] == "inference" else 4 + 7
        row["gb_s"] = (
            2 * result["batch_size"] * high * wide * channels * maps / row["ms"]["median"] / 1e6
        )
        row["share_of_copy"] = row["gb_s"] / copy
    for stage in sorted({row["stage"] for row in result["contestants"]}):
        for work in ("inference", "training"):
            rows = [r for r in result["contestants"] if r["stage"] == stage and r["work"] == work]
            ours, *rest = rows
            listed = ", ".join(
                f"{r['name']} {r['ms']['median'] / ours['ms']['median']:.2f}x" for r in rest
            )
            lines.append(
                f"stage {stage} {work}: {ours['ms']['median']:.4f} ms, "
                f"{ours['share_of_copy']:.0%} of copy; the time of others: {listed}"
            )
    return {**result, "copy_gb_s": copy, "lines": lines}


def time_shift(options: argparse.Namespace) -> dict[str, Any]:
    """Shifted against unshifted windows, muntin alone, interleaved."""
    request = BenchRequest(
        model="swin_nano_patch4_window4_64" if options.tiny else "swin_tiny",
        batch_size=2 if options.tiny else 256,
        rounds=3 if options.tiny else 15,
    )
    settings = AttentionSettings(precisions=("bf16",), device=options.device, round_seconds=0.02)
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(2):
        for name, shifted in (("plain", False), ("shifted", True)):
            result = bench_attention(request, replace(settings, shifted=shifted))
            found.setdefault(name, []).append(result)
    rows = []
    for number, row in enumerate(found["plain"][0]["contestants"]):
        pair = {
            name: statistics.median(one["contestants"][number]["ms"]["median"] for one in results)
            for name, results in found.items()
        }
        rows.append({"stage": row["stage"], "work": row["work"], "ms": pair,
                     "ratio": pair["shifted"] / pair["plain"]})  # fmt: skip
    lines = [
        f"stage {row['stage']} {row['work']}: shifted takes {row['ratio']:.3f} of plain"
        for row in rows
    ]
    return {"rows": rows, "lines": lines}


def copy_rate(options: argparse.Namespace) -> float:
    """GB/s of a copy inside the device, read and written."""
    count = 2**20 if options.tiny else 2**30
    source = torch.randn(count, device=options.device).to(torch.bfloat16)
    target = torch.empty_like(source)
    seconds = time_calls(lambda: target.copy_(source), options.device, calls=10)
    return 2 * source.numel() * source.element_size() / seconds / 1e9


def time_calls(
    work: Callable[[], object], device: str, *, calls: int = 20, rounds: int = 7
) -> float:
    """Seconds of a call: the median of rounds, each of so many calls in a row."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for _ in range(3):
        work()
    wait()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        taken.append((time.perf_counter() - begun) / calls)
    return statistics.median(taken)
