# SPDX-License-Identifier: Apache-2.0
"""Whole models on a GPU beside timm's: same weights and images, eager and compiled, interleaved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import Settings, Work, describe, time_works
from torch import Tensor, nn

import muntin
from muntin.engines.torch_engine import compile_recorded
from muntin.inference.inference_network import build_inference
from muntin.weights.dialects import to_dialect
from muntin.zoo.model_zoo import ALIASES

TINY_MODEL = "swin_nano_patch4_window4_64"


def time_inference(settings: Settings, model: str, batch_size: int) -> dict[str, Any]:
    """Inference in bf16, everything compiled and recorded alike; errors are against float64.

    "muntin" is what the engine `cuda` runs. That a kernel of ours wins is its time beside that of
    "muntin, folded", which the compiler makes of plain operations.
    """
    model, batch_size = settings.pick(model, TINY_MODEL), settings.pick(batch_size, 2)
    network, images = _draw(model, batch_size, settings)
    size = (images.shape[2], images.shape[3])
    modules: dict[str, nn.Module] = {
        "muntin": build_inference(network, size, keeps_maps=True),
        "muntin, folded": build_inference(network, size),
    }
    compiler: Callable[[nn.Module], Any] = settings.pick(compile_recorded, _leave)
    calls = {name: compiler(module) for name, module in modules.items()}
    calls["muntin, eager"] = network
    if timm := _build_timm(model, network, settings):
        calls |= {"timm": compiler(timm), "timm, eager": timm}
    works = {name: _bind(call, images, settings) for name, call in calls.items()}
    with torch.no_grad():
        truth = copy.deepcopy(network).double()(images[:8].double())
    rows = time_works(works, settings, calls=settings.pick(20, 2))
    for row in rows:
        if "ms" in row:
            row["images_per_s"] = 1000 * batch_size / row["ms"]["median"]
            error = (works[row["name"]]()[:8].double() - truth).abs().max()
            row["error"] = (error / truth.abs().max()).item()
    return _tell(rows, model, batch_size)


def time_training(settings: Settings) -> dict[str, Any]:
    """Steps of Swin-T under bf16 autocast with AdamW: time and peak memory."""
    model, batch_size = settings.pick("swin_tiny", TINY_MODEL), settings.pick(256, 2)
    network, images = _draw(model, batch_size, settings)
    modules: dict[str, nn.Module] = {"muntin": network}
    if timm := _build_timm(model, network, settings):
        modules["timm"] = timm
    works: dict[str, Work] = {}
    for name, module in modules.items():
        eager, compiled = (copy.deepcopy(module).train() for _ in range(2))
        works[f"{name}, eager"] = _bind_step(eager, eager, images, settings)
        run = settings.pick(torch.compile, _leave)(compiled)
        works[f"{name}, compiled"] = _bind_step(compiled, run, images, settings)
    return _tell(time_works(works, settings, calls=settings.pick(3, 1)), model, batch_size)


def _draw(model: str, batch_size: int, settings: Settings) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    # Without drop path, whose cost differs from draw to draw.
    network = muntin.create_model(model, num_classes=1000, drop_path_rate=0.0)
    network.to(settings.device).eval()
    high, wide = network.backbone.config.img_size
    return network, torch.randn(batch_size, 3, high, wide, device=settings.device)


def _build_timm(model: str, network: nn.Module, settings: Settings) -> Any:  # noqa: ANN401
    """Build timm's own model with these weights; None if timm is missing, or lacks it."""
    try:
        import timm

        name = ALIASES.get(model, model)
        built = timm.create_model(name, num_classes=1000, drop_path_rate=0.0)
        # timm computes its buffers itself.
        state, known = to_dialect(network, "timm"), dict(built.named_parameters())
        built.load_state_dict({k: v for k, v in state.items() if k in known}, strict=False)
    except Exception as error:
        print(f"left out: timm: {type(error).__name__}: {error}")
        return None
    return built.eval().to(settings.device)


def _leave(module: nn.Module) -> nn.Module:
    return module


def _bind(call: Callable[[Tensor], Tensor], images: Tensor, settings: Settings) -> Work:
    def work() -> Tensor:
        with torch.inference_mode(), torch.autocast(settings.device, torch.bfloat16):
            # A recorded output is overwritten by the next call.
            return call(images).clone()

    return work


def _bind_step(
    module: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor, settings: Settings
) -> Work:
    targets = torch.arange(len(images), device=settings.device) % 1000
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        with torch.autocast(settings.device, torch.bfloat16):
            logits = call(images)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _tell(rows: list[dict[str, Any]], model: str, batch_size: int) -> dict[str, Any]:
    lines = [f"{model}, batch {batch_size}, {describe(row)}" for row in rows]
    return {"model": model, "batch_size": batch_size, "rows": rows, "lines": lines}
