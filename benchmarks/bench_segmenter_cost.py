# SPDX-License-Identifier: Apache-2.0
"""Memory and time of training UPerNet on Swin-T with 150 classes, compared with transformers'.

The same step with the same weights: 512 x 512 pixels, two images, cross-entropy of the main and
the auxiliary classifier, AdamW. Each contestant runs in a process of its own, in turns, so that the
peak of its resident memory is its own; the activations are what remains of the peak without the
weights, gradients and moments, and without what the process held before it had a model.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import record
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

import muntin
from muntin.benching.result_rows import summarize
from muntin.devices import peak_mib, reset_peak, resident_mib
from muntin.heads.semantic_head import SemanticConfig

CLASSES = 150
NAMES = ("transformers", "muntin")


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, size=512, batch_size=2, steps=4, repeat=3)
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file(build_theirs().state_dict(), weights)
        for _ in range(options.repeat):
            for name in NAMES:
                arguments = (options.size, options.batch_size, options.steps)
                answers[name].append(record.alone(train, name, weights, *arguments))
    base = statistics.median(one["activation_mib"] for one in answers["transformers"])
    slow = statistics.median(one["seconds"] for one in answers["transformers"])
    rows = {
        name: {
            **{key: summarize([one[key] for one in found]) for key in found[0]},
            "activation_ratio": summarize([one["activation_mib"] / base for one in found]),
            "time_ratio": summarize([one["seconds"] / slow for one in found]),
        }
        for name, found in answers.items()
    }
    content = {
        "what": f"training step of UPerNet on Swin-T, {options.size} pixels, batch "
        f"{options.batch_size}, {CLASSES} classes, AdamW, float32",
        "rows": rows,
    }
    record.save("segmenter_cost", content, ("transformers",))


def train(name: str, weights: Path, size: int, batch: int, steps: int) -> dict[str, float]:
    """Some steps of one contestant: median time of a step, peak memory, first loss."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, size, size)
    labels = torch.randint(0, CLASSES, (batch, size, size))
    labels[:, :16] = -1
    # Both libraries are in memory before, so that the difference is the model and its steps.
    build_theirs()
    reset_peak()
    before = resident_mib()
    model = build_theirs() if name == "transformers" else build_ours()
    load(model, name, weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    seconds, losses = [], []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        loss = step(model, name, images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        seconds.append(time.perf_counter() - begun)
        losses.append(float(loss.detach()))
    parameters = sum(one.numel() for one in model.parameters()) * 4 / 2**20
    buffers = sum(one.numel() * one.element_size() for one in model.buffers()) / 2**20
    peak = peak_mib()
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak_mib": peak,
        "activation_mib": peak - before - 4 * parameters - buffers,
        "first_loss": losses[0],
        "parameters_m": parameters * 2**20 / 4e6,
    }


def build_theirs() -> nn.Module:
    """Build the UPerNet of transformers, fresh."""
    body = SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"], drop_path_rate=0.0,
    )  # fmt: skip
    config = UperNetConfig(
        backbone_config=body, hidden_size=512, num_labels=CLASSES, auxiliary_channels=256,
        auxiliary_in_channels=384,
    )  # fmt: skip
    model: nn.Module = UperNetForSemanticSegmentation(config)
    return model.train()


def build_ours() -> nn.Module:
    """Build that of muntin."""
    config = SemanticConfig(dropout=0.0)
    return muntin.create_segmenter(
        "swin_tiny", head=config, num_classes=CLASSES, drop_path_rate=0.0
    ).train()


def load(model: nn.Module, name: str, weights: Path) -> None:
    """Give both the same weights."""
    state = load_file(weights)
    if name == "transformers":
        model.load_state_dict(state)
    else:
        muntin.load_weights(model, state, dialect="transformers")


def step(model: nn.Module, name: str, images: Tensor, labels: Tensor) -> Tensor:
    """The loss."""
    if name == "transformers":
        loss: Tensor = model(images, labels=torch.where(labels < 0, 255, labels)).loss
        return loss
    ours: Any = model
    losses: dict[str, Tensor] = ours.head.losses(ours.features(images), labels)
    return torch.stack([*losses.values()]).sum(dim=0).mean()


if __name__ == "__main__":
    main()
