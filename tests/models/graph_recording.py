# SPDX-License-Identifier: Apache-2.0
"""Record the graph of every family by each tool that has one, and compare its outputs.

A program that runs without the checks of the tests: in some tools sizes are tensors or symbols. It
prints one JSON object: by the name of each case the largest difference, or the error. The argument
"slow" adds cases.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tests.models.small_families import FAMILIES, SWINS, build, compare, draw

FREE = ("vit", "vitpose")
CONVERTED = ("swin_v2", "vit", "t2t", "hiera")
# Of these an export with free sizes, or a conversion for OpenVINO, takes many seconds.
SLOW = ("beit", "google", "deit", "swin_v2", "t2t")


def trace(name: str, learns: bool) -> float:
    """PyTorch's own check runs without gradients; other windows are for the Swins alone."""
    network = build(name)
    with torch.set_grad_enabled(learns):
        traced = torch.jit.trace(network, draw(64, 96))
        images = [draw(64, 96, batch=3)]
        images += [draw(96, 64), draw(128, 128)] if name in SWINS else []
        return max(compare(traced(one), network(one)) for one in images)


def trace_with_padding(name: str) -> float:
    """Maps of 10 x 14 and 5 x 7 tokens under windows of 4; and after it the network learns."""
    network = build(name)
    traced = torch.jit.trace(network, draw(40, 56))
    return max(compare(traced(one), network(one)) for one in (draw(40, 56), draw(72, 104)))


def trace_training(name: str) -> float:
    """Stochastic depth: how many images it keeps is no constant of the graph."""
    network = build(name, drop_path_rate=0.5).train()
    traced = torch.jit.trace(network, draw(64, 64), check_trace=False)
    torch.manual_seed(1)
    ours = traced(draw(64, 64, batch=5))
    torch.manual_seed(1)
    return compare(ours, network(draw(64, 64, batch=5)))


def convert_to_openvino(name: str) -> float:
    import openvino

    network, images = build(name), draw(64, 64, batch=3)
    found = openvino.convert_model(network, example_input=draw(64, 64))
    compiled = openvino.compile_model(found, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compare(compiled(images.numpy())[0], network(images))


def export_to_onnx(name: str, learns: bool, folder: Path) -> float:
    """By the exporter that traces, with a free batch."""
    import onnxruntime

    network, images = build(name), draw(64, 64, batch=3)
    path = str(folder / f"{name}.onnx")
    options: dict[str, Any] = {"input_names": ["images"], "dynamic_axes": {"images": {0: "batch"}}}
    with torch.set_grad_enabled(learns):
        torch.onnx.export(network, (draw(64, 64),), path, dynamo=False, opset_version=17, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return compare(session.run(None, {"images": images.numpy()})[0], network(images))


def draw_in_tensorboard(name: str, folder: Path) -> float:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "board")) as writer:
        writer.add_graph(build(name), draw(64, 64))
    return 0.0


def export_free_sizes(name: str, size: tuple[int, int]) -> float:
    """Height and width free, at multiples of the patch, at the native size and at another.

    A Swin pads sides that are no multiple of a window, and does not shift windows along a side
    that one of them covers. These are other programs: such sizes are refused, not computed wrongly.
    """
    network, free = build(name), torch.export.Dim.AUTO
    shapes = ({0: free, 2: free, 3: free},)
    sizes, others = [(64, 64), (64, 96), (160, 128)], [(128, 32), (160, 112)]
    sizes, others = (sizes, others) if name in SWINS else ([*sizes, *others], [])
    with torch.no_grad():
        program = torch.export.export(network, (draw(*size),), dynamic_shapes=shapes).module()
        for other in others:
            try:
                program(draw(*other))
            except AssertionError as error:
                if "Guard failed" not in str(error):
                    raise
            else:
                return float("inf")
        images = [draw(*one) for one in sizes]
        return max(compare(program(one), network(one)) for one in images)


def list_cases(folder: Path, with_slow: bool) -> dict[str, Callable[[], float]]:
    """Every case by its name; those of libraries that are missing are left out.

    Every family is traced, and one graph is converted and one exported with free sizes; other
    converters, and more families, are slow cases. `tests/engines` and `tests/exporting` write the
    files of OpenVINO in the default tests.
    """
    slow = SLOW if with_slow else ()
    cases: dict[str, Callable[[], float]] = {}
    for name in FAMILIES:
        both = name == "swin" or (with_slow and name in (*SWINS, *SLOW))
        for learns in (True, False) if both else (True,):
            cases[f"trace {name}, gradients {learns}"] = partial(trace, name, learns)
        chosen = name == "swin" or (with_slow and name in ("vit_det", *SLOW, *CONVERTED))
        if chosen and find_spec("onnxruntime") and find_spec("onnx"):
            cases[f"onnx {name}"] = partial(export_to_onnx, name, name in SWINS, folder)
    for name in (*SWINS, "vit"):
        cases[f"trace in training {name}"] = partial(trace_training, name)
        if with_slow and find_spec("openvino") and name in ("swin", *SLOW):
            cases[f"openvino {name}"] = partial(convert_to_openvino, name)
        if with_slow and find_spec("tensorboard") and name != "swin_timm":
            cases[f"tensorboard {name}"] = partial(draw_in_tensorboard, name, folder)
    for name in SWINS:
        cases[f"trace with padding {name}"] = partial(trace_with_padding, name)
    for name in ("deit3", *(FREE if with_slow else ()), *slow):
        for size in ((64, 64), (96, 64)) if with_slow else ((96, 64),):
            cases[f"export {name} at {size}"] = partial(export_free_sizes, name, size)
    return cases


def main() -> None:
    """Run every case; an error is its text."""
    warnings.simplefilter("ignore")
    found: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in list_cases(Path(folder), "slow" in sys.argv).items():
            try:
                found[name] = case()
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"[:500]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
