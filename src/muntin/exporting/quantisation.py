# SPDX-License-Identifier: Apache-2.0
"""Int8 quantisation with a bound on the loss of the metric.

All layers are quantised first. If the metric drops too much, the most sensitive layers stay in
float32: an eighth of all layers, then a quarter, then half.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.engines.engine_table import time_runners
from muntin.engines.graphs import Graph, Runner
from muntin.engines.isolation import try_file
from muntin.engines.onnx_engine import open_onnx, write_onnx
from muntin.engines.openvino_engine import (
    compile_openvino,
    quantise_int8,
    save_openvino,
    to_openvino,
    try_openvino,
)
from muntin.errors import ConfigError

FLOAT_SHARES = (0.0, 0.125, 0.25, 0.5)
MAX_RANKING_IMAGES = 32
"""Images for measuring the sensitivity of layers."""

SPEED_BATCH, ROUNDS = 8, 6
"""Batch size and rounds of the speed measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantised:
    """Metric before and after quantisation, and images per second, at batch size 8.

    `kept` of the linear layers and convolutions are in float32.
    """

    before: float
    after: float
    layers: int
    kept: int
    speeds: tuple[float, float]


def quantise(
    graph: Graph,
    path: Path,
    note: str,
    *,
    images: Sequence[tuple[NDArray[Any], ...]],
    judge: Callable[[Runner], float],
    max_loss: float,
    parts: Sequence[float] = FLOAT_SHARES,
) -> Quantised:
    """Write a graph in int8, as .onnx, or .xml for OpenVINO.

    The most sensitive layers stay in float32 if necessary: `parts` are the fractions to try, in
    order. `images` are inputs for calibration, one image each; `judge` computes the metric of a
    runner, which may drop by `max_loss`, in its own units.
    """
    maker: _OpenVino | _Onnx = _OpenVino(graph) if path.suffix == ".xml" else _Onnx(graph, note)
    ranking = _rank(graph, images[:MAX_RANKING_IMAGES])
    rows = [dict(zip(graph.inputs, row, strict=True)) for row in images]
    plain = maker.start(maker.model)
    before, losses = judge(plain), []
    for part in parts:
        kept = ranking[: round(part * len(ranking))]
        model = quantise_int8(maker.copy(), rows, kept=maker.names(kept))
        runner = maker.start(model)
        after = judge(runner)
        losses.append(before - after)
        if losses[-1] <= max_loss:
            maker.write(model, path, note)
            return Quantised(
                before=before,
                after=after,
                layers=len(ranking),
                kept=len(kept),
                speeds=_measure(plain, runner, images),
            )
    message = (
        f"int8 must lose at most {100 * max_loss:g} points, got {100 * losses[0]:.2f}, and "
        f"{100 * losses[-1]:.2f} with half of the layers in float32. Allow more with --max-loss, "
        f"or export in fp32."
    )
    raise ConfigError(message)


def _measure(
    plain: Runner, runner: Runner, images: Sequence[tuple[NDArray[Any], ...]]
) -> tuple[float, float]:
    """Images per second of both."""
    rows = [images[number % len(images)] for number in range(SPEED_BATCH)]
    inputs = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    seconds = time_runners({"plain": plain, "int8": runner}, inputs, ROUNDS)
    slow, fast = (SPEED_BATCH / statistics.median(row[1:]) for row in seconds.values())
    return slow, fast


@torch.no_grad()
def _rank(graph: Graph, images: Sequence[tuple[NDArray[Any], ...]]) -> list[float]:
    """Fingerprints of the weights of all layers, most sensitive to int8 first."""
    harm: dict[str, float] = {}
    marks: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight: Any = layer.weight
            marks[name] = _fingerprint(weight.numpy())
            rough = _round(inputs[0], inputs[0].min(), inputs[0].max())
            moved = _apply(layer, rough, _round_rows(weight))
            error = (moved - output).square().sum() / output.square().sum().clamp(min=1e-12)
            harm[name] = harm.get(name, 0.0) + float(error)

        return hook

    with ExitStack() as hooks:
        for name, layer in graph.module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                hooks.enter_context(layer.register_forward_hook(watch(name)))
        for row in images:
            graph.module(*map(torch.from_numpy, row))
    return [marks[name] for name in sorted(harm, key=lambda name: -harm[name])]


def _apply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, layer.bias)
    assert isinstance(layer, nn.Linear), "only these two types have hooks"
    return F.linear(x, weight, layer.bias)


def _round(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round to 256 levels from low to high (asymmetric, per tensor)."""
    step = ((high - low) / 255).clamp(min=1e-12)
    return ((values - low) / step).round().clamp(0, 255) * step + low


def _round_rows(weight: Tensor) -> Tensor:
    """Round a weight to 255 levels per output channel (symmetric)."""
    most = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12)
    step = (most / 127).view(-1, *[1] * (weight.ndim - 1))
    return (weight / step).round() * step


def _fingerprint(weight: NDArray[Any]) -> float:
    """A number that is invariant under transposing and reshaping of a weight."""
    return float(np.square(weight, dtype=np.float64).sum())


def _find(known: Sequence[tuple[float, str]], wanted: Sequence[float]) -> list[str]:
    """Names of the operators whose weights have these fingerprints."""
    return [name for mark, name in known if any(abs(mark - one) <= 1e-6 * one for one in wanted)]


class _OpenVino:
    def __init__(self, graph: Graph) -> None:
        self.model = to_openvino(graph, any_batch=True)

    def copy(self) -> Any:  # noqa: ANN401 (openvino.Model)
        return self.model.clone()

    def start(self, model: Any) -> Runner:  # noqa: ANN401 (openvino.Model)
        try_openvino(model, "fp32")
        return compile_openvino(model, "fp32")

    def names(self, marks: Sequence[float]) -> list[str]:
        known = []
        for op in self.model.get_ops():
            if op.get_type_name() in ("MatMul", "Convolution"):
                weight = op.input_value(1).get_node()
                while weight.get_type_name() in ("Transpose", "Convert", "Reshape"):
                    weight = weight.input_value(0).get_node()
                if weight.get_type_name() == "Constant":
                    known.append((_fingerprint(weight.data), op.get_friendly_name()))
        return _find(known, marks)

    def write(self, model: Any, path: Path, note: str) -> None:  # noqa: ANN401 (openvino.Model)
        save_openvino(model, path, note)


class _Onnx:
    def __init__(self, graph: Graph, note: str) -> None:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            write_onnx(graph, Path(folder) / "model.onnx", note)
            self.model: Any = onnx.load(Path(folder) / "model.onnx")

    def copy(self) -> Any:  # noqa: ANN401 (onnx.ModelProto)
        import onnx

        copied = onnx.ModelProto()
        copied.CopyFrom(self.model)
        return copied

    def start(self, model: Any) -> Runner:  # noqa: ANN401 (onnx.ModelProto)
        with tempfile.TemporaryDirectory() as folder:
            self.write(model, Path(folder) / "model.onnx", "")
            try_file(Path(folder) / "model.onnx")
            return open_onnx(Path(folder) / "model.onnx", "int8")[0]

    def names(self, marks: Sequence[float]) -> list[str]:
        from onnx import numpy_helper

        weights = {part.name: part for part in self.model.graph.initializer}
        known = [
            (_fingerprint(numpy_helper.to_array(weights[name])), node.name)
            for node in self.model.graph.node
            for name in node.input[1:2]
            if node.op_type in ("MatMul", "Gemm", "Conv") and name in weights
        ]
        return _find(known, marks)

    def write(self, model: Any, path: Path, note: str) -> None:  # noqa: ANN401 (onnx.ModelProto)
        import onnx

        onnx.save(model, path)
