# SPDX-License-Identifier: Apache-2.0
"""Where the time of a prediction goes: preparing, the network, decoding and drawing."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from muntin.benching.peers import BenchRequest
from muntin.benching.result_rows import Row, summarize
from muntin.data.transforms import Preprocessing
from muntin.prediction.from_run import load
from muntin.prediction.predictor import Predictor, draw
from muntin.shapes import Size
from muntin.synthetic.scenes import make_scene

USUAL_SIZE = (480, 640)
"""Height and width of the images where the run does not say how large those of training were."""


def bench_predictions(request: BenchRequest) -> dict[str, Any]:
    """Measure seconds an image of each part of a prediction by `request.run`, on the CPU.

    Generated scenes, as JPEG files in memory, go through the predictor one by one and in batches of
    `request.batch_size`. One row per part and batch with ``seconds`` an image and ``share`` of the
    call, which ends with the results; drawing comes after it. ``found`` is what results hold on
    average: objects, classes or keypoints' instances.
    """
    predictor = load(request.run, device="cpu")
    size = request.size or predictor.preprocessing.typical_size
    size = size if min(size) else USUAL_SIZE
    images = make_images(request.batch_size, size, predictor.preprocessing)
    rows: list[Row] = []
    for count in dict.fromkeys((1, request.batch_size)):
        request.log(f"timing batches of {count} in {request.rounds} rounds")
        rows += time_parts(predictor, images[:count], rounds=request.rounds)
    named = replace(request, model=str(request.run), size=size)
    return named.describe("predictions", rows, task=predictor.task.name)


def make_images(count: int, size: Size, pre: Preprocessing) -> list[Any]:
    """Generate scenes as JPEG files in memory, or as arrays where these cannot hold the bands."""
    images: list[Any] = []
    for number in range(count):
        pixels = make_scene(0, number, size=size, max_objects=4).image
        if pre.in_chans > 3:
            images.append(np.resize(pixels.T, (pre.in_chans, *size[::-1])).T)
            continue
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    return images


def time_parts(predictor: Predictor, images: Sequence[Any], *, rounds: int) -> list[Row]:
    """Time the parts of predictions of one batch, after a round that does not count."""
    found, timings = 0, []
    # A warning of its network, such as that no detector finds the instances, is none here.
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
        for _ in range(1 + rounds):
            seconds, found = _time_round(predictor, images)
            timings.append(seconds)
    parts = {name: [one[name] / len(images) for one in timings[1:]] for name in timings[0]}
    call = summarize(parts["call"])["median"]
    return [
        {
            "batch": len(images),
            "part": name,
            "seconds": summarize(values),
            "share": summarize(values)["median"] / call,
            "found": found / len(images),
        }
        for name, values in parts.items()
    ]


def _time_round(predictor: Predictor, images: Sequence[Any]) -> tuple[dict[str, float], int]:
    """Seconds of each part, and how many objects, classes or instances were found."""
    starts: list[float] = []
    ends: list[float] = []
    hooks = (
        predictor.network.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())),
        predictor.network.register_forward_hook(lambda *_: ends.append(time.perf_counter())),
    )
    begun = time.perf_counter()
    results = predictor.decode(predictor.run(predictor.prepare(images)))
    decoded = time.perf_counter()
    for hook in hooks:
        hook.remove()
    for image, result in zip(images, results, strict=True):
        draw(image, result)
    drawn = time.perf_counter()
    network = sum(ends) - sum(starts)
    seconds = {
        # The last step before the network is to normalise.
        "preparing": starts[0] - begun,
        "network": network,
        "decoding": decoded - starts[0] - network,
        "call": decoded - begun,
        "drawing": drawn - decoded,
    }
    return seconds, sum(map(len, results))
