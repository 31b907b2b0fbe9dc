# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Whole models on a GPU compared with peers: same weights and images, interleaved.

A case that fails, runs out of memory or is not installed is reported as a row.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_plan import compare
from torch import Tensor, nn

import muntin
from muntin.benching.peers import Logits, build_peer, make_deterministic
from muntin.inference.cuda_graphs import GraphRunner, call_directly
from muntin.inference.fused_network import build_fused
from muntin.zoo.model_zoo import ALIASES

PEERS = ("timm", "torchvision", "transformers")
FUSED_TIMM = "timm with TIMM_FUSED_ATTN=2"
TINY_MODEL = "swin_nano_patch4_window4_64"


@dataclass(eq=False)
class Runner:
    """A contestant and what was seen of it.

    Attributes:
        name: Who, and how it is run.
        run: Does the work once.
        seconds: Of every turn.
        facts: What else was found.
    """

    name: str
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def time_inference(options: argparse.Namespace) -> dict[str, Any]:
    """Large batches in bf16, all in eager mode, for Swin-T and ViT-S."""
    return _time_inference(options, models=("swin_tiny", "vit_small"))


def time_compiled_inference(options: argparse.Namespace) -> dict[str, Any]:
    """Swin-T against timm's under torch.compile, mode max-autotune."""
    return _time_inference(options, models=("swin_tiny",), compiled="timm")


def time_compiled_fused(options: argparse.Namespace) -> dict[str, Any]:
    """The same with TIMM_FUSED_ATTN=2."""
    return _time_inference(options, models=("swin_tiny",), compiled=FUSED_TIMM)


def time_compiled_vit(options: argparse.Namespace) -> dict[str, Any]:
    """ViT-S against timm's under torch.compile, mode max-autotune."""
    return _time_inference(options, models=("vit_small",), compiled="timm")


def _time_inference(
    options: argparse.Namespace, *, models: tuple[str, ...], compiled: str = ""
) -> dict[str, Any]:
    batch = 4 if options.tiny else 256
    rows: list[dict[str, Any]] = []
    for model in (TINY_MODEL,) if options.tiny else models:
        network, images = _draw(model, batch, options.device)
        runners = _enter_ours(network, images, options)
        runners += _enter_peers(model, network, images, options, compiled=compiled)
        truth = _look_exactly(network, images[:8])
        for runner in runners:
            _check_answer(runner, truth)
        _take_turns(runners, options, calls=2 if options.tiny else 10)
        rows += [_tell(runner, batch, model=model) for runner in runners]
        del runners
        _forget(options)
    return {"batch_size": batch, "precision": "bf16", "rows": rows, "lines": _lines(rows)}


def time_latency(options: argparse.Namespace) -> dict[str, Any]:
    """One image at a time, in milliseconds."""
    rows: list[dict[str, Any]] = []
    model = TINY_MODEL if options.tiny else "swin_tiny"
    network, images = _draw(model, 1, options.device)
    runners = _enter_ours(network, images, options)
    runners += _enter_peers(model, network, images, options, compiled="")
    if not options.tiny:
        timm = _peer("timm", model, network, options)
        if timm is not None:
            runners.append(_looking("timm compile reduce-overhead", torch.compile(
                timm, mode="reduce-overhead"), images, options))  # fmt: skip
    _take_turns(runners, options, calls=2 if options.tiny else 30)
    rows = [_tell(runner, 1, model=model) for runner in runners]
    for row in rows:
        if "images_per_s" in row:
            row["ms"] = 1000 / row["images_per_s"]["median"]
    lines = [f"{row['name']}: {row['ms']:.3f} ms" for row in rows if "ms" in row]
    return {"batch_size": 1, "precision": "bf16", "rows": rows, "lines": lines}


def time_training(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of Swin-T under bf16 autocast with AdamW: speed, and peak memory."""
    return _time_training(options, compiled=False)


def time_compiled_training(options: argparse.Namespace) -> dict[str, Any]:
    """The same against timm under torch.compile."""
    return _time_training(options, compiled=True)


def _time_training(options: argparse.Namespace, *, compiled: bool) -> dict[str, Any]:
    model = TINY_MODEL if options.tiny else "swin_tiny"
    batch = 4 if options.tiny else 256
    network, images = _draw(model, batch, options.device)
    ours: dict[str, nn.Module] = {"muntin": copy.deepcopy(network)}
    efficient = copy.deepcopy(network)
    from muntin.training.recompute import checkpoint_blocks

    checkpoint_blocks(efficient.backbone)
    ours["muntin lean"] = efficient
    modules = dict(ours)
    for name in ("timm",) if compiled else PEERS:
        peer = _peer(name, model, network, options)
        if peer is not None:
            modules[name] = peer.requires_grad_(True)
    if "timm" in modules and not compiled:
        fused = copy.deepcopy(modules["timm"])
        _fuse_timm(fused)
        modules[FUSED_TIMM] = fused
    runners = []
    for name, module in modules.items():
        make_deterministic(module)
        runs: nn.Module = module
        if compiled and name in ("timm", "muntin") and not options.tiny:
            mode = "max-autotune-no-cudagraphs"
            runs = torch.compile(module, mode=mode)  # type: ignore[assignment]
            name = f"{name} compile {mode}"
        runners.append(_training(name, module, runs, images, options))
    for runner in runners:
        _measure_memory(runner, options)
    _take_turns(runners, options, calls=1 if options.tiny else 3)
    rows = [_tell(runner, batch, model=model) for runner in runners]
    return {"batch_size": batch, "precision": "bf16 autocast", "rows": rows, "lines": _lines(rows)}


def _draw(model: str, batch: int, device: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    network = muntin.create_model(model, num_classes=1000).to(device).eval()
    high, wide = network.backbone.config.img_size
    return network, torch.randn(batch, 3, high, wide, device=device)


def _peer(name: str, model: str, network: nn.Module, options: argparse.Namespace) -> Any:  # noqa: ANN401
    try:
        built = build_peer(name, ALIASES.get(model, model), copy.deepcopy(network).cpu())
    except Exception as error:  # a peer that cannot be built here
        print(f"left out: {name}: {type(error).__name__}: {error}")
        return None
    return None if built is None else Logits(built).to(options.device)


def _fuse_timm(module: nn.Module) -> None:
    """Switch on what TIMM_FUSED_ATTN=2 switches on."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = True


def _looking(
    name: str,
    module: Callable[[Tensor], Tensor],
    images: Tensor,
    options: argparse.Namespace,
    *,
    autocast: bool = True,
) -> Runner:
    def run() -> Tensor:
        enabled = autocast
        with (
            torch.inference_mode(),
            torch.autocast(options.device, torch.bfloat16, enabled=enabled),
        ):
            answer: Tensor = module(images)
        return answer

    return Runner(name=name, run=run)


def _enter_ours(network: Any, images: Tensor, options: argparse.Namespace) -> list[Runner]:  # noqa: ANN401
    runners = [_looking("muntin eager", network, images, options)]
    try:
        fused = enter_fused(network, images, options)
        runners.append(_looking("muntin", fused, images, options, autocast=False))
    except Exception as error:
        runners.append(Runner(name="muntin", run=_fails(error)))
    return runners


def enter_fused(network: Any, images: Tensor, options: argparse.Namespace) -> Any:  # noqa: ANN401
    """The network as `muntin.load` runs it on a GPU: fused kernels, replayed as a graph."""
    size = (images.shape[2], images.shape[3])
    dtype = torch.float32 if options.tiny else torch.bfloat16
    fused = build_fused(network, size, dtype=dtype).to(options.device)
    capture = None if options.device == "cuda" else call_directly
    device = torch.device(options.device)
    return GraphRunner(fused, device, buckets=(len(images),), capture=capture)


def _enter_peers(
    model: str, network: nn.Module, images: Tensor, options: argparse.Namespace, *, compiled: str
) -> list[Runner]:
    """Everybody as they come, or the one that is to be compiled."""
    runners = []
    for name in ("timm",) if compiled else PEERS:
        peer = _peer(name, model, network, options)
        if peer is None:
            continue
        entered = {name: peer}
        if name == "timm":
            entered[FUSED_TIMM] = copy.deepcopy(peer)
            _fuse_timm(entered[FUSED_TIMM])
        for title, module in entered.items():
            if not compiled:
                runners.append(_looking(f"{title}, eager AMP", module, images, options))
            elif title == compiled:
                run = module if options.tiny else torch.compile(module, mode="max-autotune")
                runners.append(_looking(f"{title}, max-autotune", run, images, options))
    return runners


def _fails(error: Exception) -> Callable[[], object]:
    def run() -> object:
        raise error

    return run


def _training(
    name: str,
    module: nn.Module,
    runs: Callable[[Tensor], Tensor],
    images: Tensor,
    options: argparse.Namespace,
) -> Runner:
    targets = torch.arange(len(images), device=options.device) % 1000
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def run() -> Tensor:
        with torch.autocast(options.device, torch.bfloat16):
            logits = runs(images)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Runner(name=name, run=run)


def _look_exactly(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        answer: Tensor = copy.deepcopy(network).double()(images.double())
    return answer


def _check_answer(runner: Runner, truth: Tensor) -> None:
    """The largest difference from float64 over the largest logit."""
    try:
        answer: Any = runner.run()
        difference = (answer[: len(truth)].double() - truth).abs().max()
        runner.facts["max_error"] = (difference / truth.abs().max()).item()
    except Exception as error:
        runner.facts["failed"] = f"{type(error).__name__}: {error}"[:500]


def _measure_memory(runner: Runner, options: argparse.Namespace) -> None:
    """Peak memory of two steps, above the memory allocated before them."""
    if "failed" in runner.facts:
        return
    try:
        runner.run()  # makes the optimiser's state
        if options.device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        runner.run()
        if options.device == "cuda":
            torch.cuda.synchronize()
            # Gradients come and go with the step, and belong to neither of both.
            runner.facts["step_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    except Exception as error:
        runner.facts["failed"] = f"{type(error).__name__}: {error}"[:500]
        _forget(options)


def _take_turns(runners: list[Runner], options: argparse.Namespace, *, calls: int) -> None:
    """Measure A B C A B C; who fails is out."""
    wait = torch.cuda.synchronize if options.device == "cuda" else (lambda: None)
    for turn in range(3 if options.tiny else 9):
        for runner in runners:
            if "failed" in runner.facts:
                continue
            try:
                for _ in range(2 if turn == 0 else 0):
                    runner.run()
                wait()
                begun = time.perf_counter()
                for _ in range(calls):
                    runner.run()
                wait()
                runner.seconds.append((time.perf_counter() - begun) / calls)
            except Exception as error:
                runner.facts["failed"] = f"{type(error).__name__}: {error}"[:500]
                _forget(options)


def _tell(runner: Runner, batch: int, **facts: Any) -> dict[str, Any]:
    row = {"name": runner.name, **facts, **runner.facts}
    if runner.seconds and "failed" not in row:
        rates = [batch / seconds for seconds in runner.seconds]
        row["images_per_s"] = {
            "median": statistics.median(rates), "min": min(rates), "max": max(rates),
            "count": len(rates),
        }  # fmt: skip
    return row


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        if "images_per_s" not in row:
            lines.append(f"{row['model']} {row['name']}: {row.get('failed', 'not measured')}"[:160])
            continue
        ours = next((r for r in rows if r["name"] == "muntin" and r["model"] == row["model"]), {})
        rate = row["images_per_s"]["median"]
        line = f"{row['model']} {row['name']}: {rate:.0f} images/s"
        if "images_per_s" in ours:
            line += f", muntin is {ours['images_per_s']['median'] / rate:.2f}x"
        if "step_mib" in row:
            line += f", {row['step_mib']:.0f} MiB a step"
        if "max_error" in row:
            line += f", error {row['max_error']:.1e}"
        lines.append(line)
    return lines


def _forget(options: argparse.Namespace) -> None:
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()


def check_plan(options: argparse.Namespace) -> dict[str, Any]:
    """Predictions of `muntin plan` against measured training steps."""
    cases = [("classify", "swin_nano", 64, 4)]
    if not options.tiny:
        cases = [
            ("classify", "swin_tiny", 224, 64),
            ("classify", "swin_tiny", 224, 256),
            ("classify", "vit_small", 224, 128),
            ("semantic", "swin_tiny", 512, 8),
        ]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            precision = "fp32" if options.tiny else "bf16"
            try:
                rows.append(compare(case, Path(folder, str(number)), options.device, precision))
            except Exception as error:
                rows.append({"case": " ".join(map(str, case)), "failed": str(error)[:500]})
    lines = [
        f"{row['case']}: FAILED {row['failed'][:120]}"
        if "failed" in row
        else f"{row['case']}: memory {row['predicted_mib']:.0f} of {row['measured_mib']:.0f} MiB "
        f"({row['memory_error']:.0%} off), step {row['predicted_step_s']:.3f} of "
        f"{row['measured_step_s']:.3f} s ({row['time_error']:.0%} off)"
        for row in rows
    ]
    return {"rows": rows, "lines": lines}
