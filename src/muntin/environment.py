# SPDX-License-Identifier: Apache-2.0
"""Report of this machine, and whether the package works on it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import muntin
from muntin.devices import (
    choose_device,
    choose_precision,
    granted_cores,
    has_compiler,
    measure_matmul_rate,
)
from muntin.engines.engine_table import ENGINES, Engine, is_installed
from muntin.errors import ConfigError
from muntin.ops.triton.window_support import find_missing
from muntin.zoo.model_building import create_model


def diagnose() -> dict[str, Any]:
    """Collect versions, devices and speeds; ``works`` is "yes", or the error of a small model."""
    device = choose_device("auto")
    facts: dict[str, Any] = {
        "muntin": muntin.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": granted_cores(),
        "free disk (GB)": round(shutil.disk_usage(".").free / 1e9, 1),
    }
    for name in ("torch", "torchvision", "lightning-fabric", "safetensors", "huggingface_hub"):
        facts[name] = importlib.metadata.version(name)
    for name in ("timm", "transformers"):
        found = is_installed(name)
        facts[name] = importlib.metadata.version(name) if found else "not installed (optional)"
    facts["device"] = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    facts["fp32 GFLOP/s"] = round(measure_matmul_rate(torch.float32) / 1e9)
    facts["bf16 GFLOP/s"] = round(measure_matmul_rate(torch.bfloat16) / 1e9)
    facts["precision chosen"] = choose_precision(device)
    facts["C++ compiler"] = "found" if has_compiler() else "none: torch.compile is disabled"
    for engine in ENGINES.values():
        facts[f"engine {engine.name}"] = _describe_missing(partial(_find_missing, engine))
    facts["fused attention"] = _describe_missing(partial(find_missing, "cuda"))
    facts["works"] = _try_model(device)
    return facts


def _find_missing(engine: Engine) -> str:
    missing = [name for name in engine.packages if not is_installed(name)]
    return f"{', '.join(missing)} not installed" if missing else engine.lacks()


def _describe_missing(find: Callable[[], str]) -> str:
    """Format missing requirements; an invalid environment variable counts as missing."""
    try:
        missing = find()
    except ConfigError as error:
        missing = str(error)
    return f"no: {missing}" if missing else "can run"


def _try_model(device: torch.device) -> str:
    model = create_model("swin_nano", num_classes=3).to(device)
    try:
        logits = model(torch.rand(2, 3, 50, 70, device=device))
        logits.sum().backward()
    except RuntimeError as error:
        return f"no: {error}"
    return "yes" if bool(logits.isfinite().all()) else "no: the output is NaN or infinite"
