# SPDX-License-Identifier: Apache-2.0
"""What bf16 and int8 cost and bring on a trained run: accuracy, agreement and speed on CIFAR-10.

Takes the run that ``bench_cifar10.py --out RUN`` kept, exports it in every precision as a user
would, and shows the exported files all test images. Speed is that of the files' networks on
batches of 64 images, in turns.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch

import muntin
from muntin.benching.result_rows import BenchmarkCase, summarize, time_interleaved

FILES = (("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnx", "int8"))
BATCH = 64


def main() -> None:
    """Measure and write the result."""
    options = record.options(
        __doc__, data=f"{record.DATA}/cifar10_jpeg", run="cifar10-run", max_loss=0.5, rounds=15
    )
    if not Path(options.run, "config.json").is_file():
        message = f"{options.run} must be a run. Make it with bench_cifar10.py --out {options.run}."
        raise SystemExit(message)
    with tempfile.TemporaryDirectory() as folder:
        for part in ("train", "test"):
            with zipfile.ZipFile(Path(options.data) / f"{part}.zip") as archive:
                archive.extractall(folder)
        predictors = {"pytorch fp32": muntin.load(options.run, device="cpu")}
        for kind, precision in FILES:
            out = Path(folder, "files", f"{kind}-{precision}")
            done = muntin.export(
                options.run, out, format=kind, precision=precision,
                data=folder if precision == "int8" else "", max_loss=options.max_loss,
            )  # fmt: skip
            predictors[f"{kind} {precision}"] = muntin.load(done.path)
        images = sorted(Path(folder, "test").rglob("*.jpg"))
        content = {
            "batch_size": BATCH,
            "num_images": len(images),
            "max_loss_points": options.max_loss,
            "files": _measure(predictors, images, options.rounds),
        }
    record.save("precisions", content, ("openvino", "nncf", "onnxruntime"))


def _measure(
    predictors: dict[str, Any], images: list[Path], rounds: int
) -> dict[str, dict[str, Any]]:
    """Accuracy and speed of each; agreement is with the first."""
    predictions = {
        name: [result.best for result in predictor(images)]
        for name, predictor in predictors.items()
    }
    truth = [image.parent.name for image in images]
    first = next(iter(predictions.values()))
    timings = time_interleaved([_enter(*row) for row in predictors.items()], rounds=rounds)
    return {
        name: {
            "top1": _share_equal(predicted, truth),
            "agreement": _share_equal(predicted, first),
            "images_per_s": summarize([BATCH / seconds for seconds in timing.seconds]),
        }
        for (name, predicted), timing in zip(predictions.items(), timings, strict=True)
    }


def _share_equal(names: list[str], others: list[str]) -> float:
    return float(np.mean([one == other for one, other in zip(names, others, strict=True)]))


def _enter(name: str, predictor: Any) -> BenchmarkCase:  # noqa: ANN401 (muntin.Predictor)
    size = predictor.preprocessing.img_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, *size), dtype=torch.uint8, generator=generator)
    reads_pixels = getattr(predictor.network, "reads_pixels", False)
    shown = images if reads_pixels else images.float() / 255

    def run() -> np.ndarray:
        with torch.inference_mode():
            answer: np.ndarray = predictor.network(shown).numpy()
            return answer

    return BenchmarkCase(owner=name, precision=name.split()[1], run=run)


if __name__ == "__main__":
    main()
