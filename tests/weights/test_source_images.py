# SPDX-License-Identifier: Apache-2.0
"""Images are prepared as transformers and timm do, or refused by the name of what is not known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config

from muntin.data.batches import center_crop
from muntin.data.transforms import normalise, to_tensor
from muntin.errors import ConfigError
from muntin.weights.source_preprocessing import _PROCESSORS, of_timm, of_transformers


@pytest.fixture(scope="module")
def photographs():
    """Blobs of colour with some noise, of several sizes (height, width)."""
    rng = np.random.default_rng(0)
    images = []
    for size in ((97, 151), (140, 83), (64, 64), (40, 300)):
        small = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8))
        smooth = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC), float)
        noisy = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255)
        images.append(Image.fromarray(noisy.astype(np.uint8)))
    return images


def prepare(image, pre):
    return normalise(center_crop(to_tensor(np.array(image)), pre)[None], pre)[0]


SQUARE, WIDE = {"height": 64, "width": 64}, {"height": 48, "width": 72}
# Name of the processor, and its fields.
STATED = {
    **{name: (name, {}) for name in _PROCESSORS if name not in ("", "VitPose")},
    "no square": ("ViT", {"size": {"height": 50, "width": 71}, "resample": 3}),
    "cut otherwise": ("DeiT", {"size": {"height": 73, "width": 90}, "crop_size": SQUARE}),
    "a wide crop": ("CLIP", {"size": {"shortest_edge": 80}, "crop_size": WIDE}),
    "zeros beside": ("CLIP", {"size": {"shortest_edge": 60}, "crop_size": WIDE}),
    "a side": ("ViT", {"size": 65}),
    "a crop with zeros": ("DeiT", {"size": 61, "crop_size": SQUARE}),
    "the shorter side": ("Bit", {"size": 65, "crop_size": 48}),
    "stated to be a square": ("Bit", {"size": 65, "default_to_square": True, "crop_size": 48}),
    "ConvNext": ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.9}),
    "as they are": ("ViT", {"size": 65, "do_rescale": False, "do_normalize": False}),
    "one mean": ("ViT", {"size": 65, "image_mean": 0.4, "image_std": 0.3}),
    "no padding": ("ViT", {"size": 65, "do_pad": False, "pad_size": SQUARE}),
}


@pytest.mark.parametrize("case", STATED)
def test_pixels_are_those_of_transformers(case, photographs):
    name, fields = STATED[case]
    theirs = getattr(transformers, f"{name}ImageProcessor")(**fields)
    for ending in ("ImageProcessor", "ImageProcessorFast", "FeatureExtractor"):
        pre = of_transformers({"image_processor_type": name + ending, **fields})
    for image in photographs:
        expected = theirs(image, return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(prepare(image, pre), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"image_processor_type": "MobileViTImageProcessor"}, "'MobileViTImageProcessor'"),
        (
            {"image_processor_type": None, "feature_extractor_type": "LevitFeatureExtractor"},
            "'LevitFeatureExtractor'",
        ),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "'EfficientNetImageProcessor'"),
        ({"image_processor_type": ["ViT"]}, "'ViT'"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_pad": True, "pad_size": SQUARE}, "do_pad"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"image_mean": "x"}, "image_mean.*'x'"),
        ({"image_std": [0, 0, 0]}, "std.*0"),
        ({"image_mean": [0.5, 0.5]}, r"mean=\(0\.5, 0\.5\)"),
        ({"size": 0}, "size.*0"),
        ({"size": {"height": "64", "width": 64}}, "size"),
        ({"size": {"height": 64}}, "size.*64"),
        ({"size": {"shortest_edge": 64, "longest_edge": 90}}, "size"),
        ({"size": {"shortest_edge": 64}}, "shortest_edge 64"),
        ({"do_resize": 3}, "do_resize.*3"),
        ({"rescale_factor": 0}, "rescale_factor.*0"),
        ({"resample": 1}, "1"),
    ],
)
def test_what_is_not_known_of_transformers_is_refused(values, text):
    with pytest.raises(ConfigError, match=text):
        of_transformers({"image_processor_type": "ViTImageProcessor", **values})


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("side", [48, 96])
@pytest.mark.parametrize("part", [0.875, 0.9, 1.0])
def test_pixels_are_those_of_timm(mode, side, part, photographs):
    stated = {
        "input_size": [3, 48, side], "crop_pct": part, "crop_mode": mode,
        "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1 / 255] * 3,
    }  # fmt: skip
    pre = of_timm(stated)
    transform = create_transform(**resolve_data_config(pretrained_cfg=stated))
    for image in photographs:
        gaps = (prepare(image, pre) - transform(image)).abs()  # in levels of 256
        assert gaps.max() <= 2
        assert gaps.mean() < 0.35


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"crop_mode": "border"}, "crop_mode.*'border'"),
        ({"crop_pct": "x"}, "crop_pct.*'x'"),
        ({"crop_pct": 1.2}, r"crop_pct.*1\.2"),
        ({"input_size": [3, 64]}, "input_size.*64"),
        ({"input_size": [3, 0, 64]}, "0"),
        ({"interpolation": "lanczos"}, "'lanczos'"),
    ],
)
def test_what_is_not_known_of_timm_is_refused(values, text):
    with pytest.raises(ConfigError, match=text):
        of_timm(values)
