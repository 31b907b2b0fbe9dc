# SPDX-License-Identifier: Apache-2.0
"""The parts of a prediction: prepare, run, decode; and streams of any length."""

from __future__ import annotations

import gc
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import muntin
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, DataError
from muntin.prediction.predictor import Predictor
from muntin.samples import Classes
from muntin.tasks.task_table import find_task
from tests.prediction import test_poses as poses
from tests.prediction.test_detection import predictor_of, scene

SIZES = [(64, 96), (96, 64), (100, 130)]
IMAGES = [scene(number, size) for number, size in enumerate(SIZES)]


def classifier(**options) -> Predictor:
    torch.manual_seed(0)
    network = muntin.create_model("swin_nano", num_classes=3)
    for parameter in network.head.parameters():
        nn.init.normal_(parameter)
    pre = Preprocessing(img_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    classes = Classes(names=("ash", "birch", "cedar"))
    return Predictor(network, find_task("classify"), classes, pre, device="cpu", **options)


def segmenter(**options) -> Predictor:
    torch.manual_seed(0)
    tiny = {"embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 2, 4)}
    network = muntin.create_segmenter("swin_nano", num_classes=3, head="light_small", **tiny)
    pre = Preprocessing(img_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, fit="sliding_window")
    classes = Classes(names=("ash", "birch", "cedar"))
    return Predictor(network, find_task("semantic"), classes, pre, device="cpu", **options)


def poser(**options) -> Predictor:
    return poses.predictor(**options)


def alike(one, other) -> None:
    """The same but for rounding, which goes by the batch."""
    assert type(one) is type(other)
    assert one.size == other.size
    for name in ("scores", "boxes", "keypoints", "labels", "class_ids"):
        left, right = getattr(one, name, None), getattr(other, name, None)
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)


CASES = {
    "classify": (classifier, {}),
    "classify, mirrored": (classifier, {"tta": True}),
    "semantic": (segmenter, {"tile": 32}),
    "boxes": (lambda **more: predictor_of("fcos_small", **more), {}),
    "boxes, mirrored": (lambda **more: predictor_of("fcos_small", **more), {"tta": True}),
    "masks, tiles": (lambda **more: predictor_of("mask_rcnn_small", **more), {"tile": 64}),
    "poses": (poser, {"boxes": [[poses.BOX]] * len(IMAGES)}),
    "poses, mirrored": (poser, {"boxes": [[], [poses.BOX] * 3, [poses.BOX]], "tta": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_give_what_a_call_gives(case):
    make, options = CASES[case]
    predictor = make()
    batch = predictor.prepare(IMAGES, **options)
    assert len(batch) == len(IMAGES)
    for part in batch.parts:
        assert part.images.dtype == torch.uint8
        assert len(part.images) == len(part.metas) <= predictor.batch_size
    raw = predictor.run(batch)
    assert not any(isinstance(value, torch.Tensor) and value.dtype == torch.uint8
                   for part in raw.parts for value in part)  # fmt: skip
    for one, other in zip(predictor.decode(raw), predictor(IMAGES, **options), strict=True):
        alike(one, other)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_views_gives_what_single_images_give(case):
    make, options = CASES[case]
    boxes = options.get("boxes", [None] * len(IMAGES))
    rest = {name: value for name, value in options.items() if name != "boxes"}
    predictor, single = make(batch_size=4), make(batch_size=1)
    results = list(predictor.stream(iter(IMAGES), **options))
    assert len(results) == len(IMAGES)
    for image, own, result in zip(IMAGES, boxes, results, strict=True):
        alike(result, single(image, **rest, **({} if own is None else {"boxes": own}))[0])


class Counting(nn.Module):
    """Notes how many images came at a time."""

    def __init__(self, network):
        super().__init__()
        self.backbone, self.head, self.inner = network.backbone, network.head, network
        self.seen: list[int] = []

    def forward(self, images, *sizes):
        self.seen.append(len(images))
        return self.inner(images, *sizes)

    def decode(self, raw):
        return self.inner.decode(raw)


@pytest.mark.parametrize("options", [{"tta": True}, {"tile": 64}, {"tile": 64, "tta": True}])
def test_views_of_several_images_share_a_batch(options):
    predictor = predictor_of("fcos_small", batch_size=8)
    predictor.network = Counting(predictor.network)
    views = 2 if "tile" not in options else 24 if "tta" in options else 12
    count = 4 if "tile" not in options else 2
    images = [scene(number, (150, 200)) for number in range(count)]
    windows = len(predictor.prepare(images, **options).parts)
    predictor(images, **options)
    total = sum(predictor.network.seen)
    assert total >= views * count / 2
    assert max(predictor.network.seen) > 1
    assert windows < total
    full = predictor.batch_size
    # Whole images and tiles may be of two padded sizes, each a batch of its own.
    assert len(predictor.network.seen) <= 2 * -(-total // full)


def test_a_stream_reads_when_a_batch_is_due():
    predictor = classifier(batch_size=4)
    read = []

    def images():
        for number in itertools.count():
            read.append(number)
            yield IMAGES[number % len(IMAGES)]

    stream = predictor.stream(images())
    assert not read
    first = [next(stream) for _ in range(6)]
    assert len(read) == 8
    for one, image in zip(first, IMAGES, strict=False):
        alike(one, predictor(image)[0])


@pytest.mark.parametrize("case", ["classify", "masks, tiles", "boxes, mirrored", "poses"])
def test_a_stream_lets_go_of_images(case):
    make, options = CASES[case]
    made, most, gone = 0, 0, []

    def images():
        nonlocal made, most
        for number in range(24):
            image = Image.fromarray(IMAGES[number % 2])
            weakref.finalize(image, gone.append, number)
            made += 1
            yield image
            del image
            most = max(most, made - len(gone))

    options = {name: value for name, value in options.items() if name != "boxes"}
    boxes = ([poses.BOX] for _ in itertools.count())
    more = {"boxes": boxes} if case == "poses" else {}
    count = sum(1 for _ in make(batch_size=4).stream(images(), **options, **more))
    gc.collect()
    assert count == 24
    assert most <= 3


def test_images_without_an_instance_do_not_pile_up():
    predictor = poses.predictor(batch_size=4)
    given = []

    def boxes():
        for number in range(40):
            given.append(number)
            yield [poses.BOX] if number == 0 else []

    stream = predictor.stream((IMAGES[0] for _ in range(40)), boxes=boxes())
    assert len(next(stream)) == 1
    assert len(given) <= 8
    assert [len(one) for one in stream] == [0] * 39


@pytest.mark.parametrize("case", ["classify", "boxes, mirrored", "semantic"])
def test_threads_share_a_predictor(case):
    make, options = CASES[case]
    predictor = make(batch_size=2)
    before = dict(vars(predictor))
    alone = predictor(IMAGES, **options)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(predictor, IMAGES, **options) for _ in range(8)]
        for run in runs:
            for one, other in zip(alone, run.result(), strict=True):
                alike(one, other)
    assert vars(predictor).keys() == before.keys()
    assert all(vars(predictor)[name] is value for name, value in before.items())


def test_nothing_is_no_mistake():
    predictor = classifier()
    assert list(predictor.stream([])) == []
    assert predictor.decode(predictor.run(predictor.prepare([]))) == []


def test_mistakes_come_before_anything_is_read(tmp_path):
    predictor = classifier()
    with pytest.raises(ConfigError, match="tile"):
        predictor.stream(tmp_path / "nothing.png", tile=64)
    with pytest.raises(DataError, match=r"nothing\.png"):
        predictor.prepare(tmp_path / "nothing.png")


def test_gradients_of_the_caller_go_on():
    stream = classifier().stream(iter(IMAGES))
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_parts_in_the_wrong_order():
    predictor = classifier()
    with pytest.raises(TypeError, match="PreparedBatch"):
        predictor.run(IMAGES)
    with pytest.raises(TypeError, match="RawBatch"):
        predictor.decode(predictor.prepare(IMAGES))
