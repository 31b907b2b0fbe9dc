# SPDX-License-Identifier: Apache-2.0
"""How transformers, timm and torchvision prepare images, as our `Preprocessing`.

Fields that may change pixels are a closed list: what is not known is refused by its name.

Source:
    transformers 5.24, image_processing_backends.py and the classes of its processors; timm 1.0.31,
    data/transforms_factory.py. Compared live with both in tests/weights/test_source_images.py and
    tests/test_classifier_runs.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchvision.models import get_model_weights

from muntin import configs
from muntin.data.transforms import Interpolation, Preprocessing
from muntin.errors import ConfigError
from muntin.shapes import Size

_Values = tuple[float, ...]
_IMAGENET: dict[str, _Values] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_INTERPOLATIONS: dict[object, Interpolation] = {
    2: "bilinear",
    3: "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sides:
    """A size in pixels: of an image, or of its shorter side alone."""

    height: int = 0
    width: int = 0
    shortest_edge: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Steps:
    """Fields of ``preprocessor_config.json`` that change pixels; defaults are those of ViT."""

    do_resize: bool = True
    do_center_crop: bool = False
    do_rescale: bool = True
    do_normalize: bool = True
    size: _Sides | int | tuple[int, int] = 224
    default_to_square: bool = True
    crop_size: _Sides | int | tuple[int, int] = 224
    crop_pct: float = 224 / 256
    resample: int | str = 2
    rescale_factor: float = 1 / 255
    image_mean: _Values = (0.5, 0.5, 0.5)
    image_std: _Values = (0.5, 0.5, 0.5)


_SHORTEST: dict[str, Any] = {"size": {"shortest_edge": 224}, "default_to_square": False}
_BICUBIC: dict[str, Any] = {"resample": 3}
_OF_IMAGENET = {f"image_{key}": value for key, value in _IMAGENET.items()}
_OF_CLIP: dict[str, Any] = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_CLIP = {**_SHORTEST, **_BICUBIC, **_OF_CLIP, "do_center_crop": True}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "": {},
    "ViT": {},
    "DeiT": {**_BICUBIC, "size": 256, "do_center_crop": True},
    "Beit": _BICUBIC,
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "MobileNetV1": {**_SHORTEST, "size": {"shortest_edge": 256}, "do_center_crop": True},
    "ConvNext": {**_BICUBIC, **_SHORTEST, "size": {"shortest_edge": 384}},
    "Siglip": {**_BICUBIC, "default_to_square": False, "size": {"height": 224, "width": 224}},
    "Pvt": {**_BICUBIC, **_OF_IMAGENET},
    "Blip": {**_BICUBIC, **_OF_CLIP, "size": 384},
    "Segformer": {**_OF_IMAGENET, "size": 512},
    "VitPose": {**_OF_IMAGENET, "size": {"height": 256, "width": 192}},
}
"""Processors whose steps are those of `_Steps`, by their names without ending, and their defaults.
A file without a name is read as that of ViT; what VitPose does with boxes is done by its head."""
_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "use_fast", "num_labels",
    "do_convert_rgb", "data_format", "input_data_format", "device", "disable_grouping", "antialias",
    "return_tensors", "do_reduce_labels", "reduce_labels", "pad_size", "_valid_processor_keys",
    "transformers_version", "do_affine_transform", "normalize_factor",
}  # fmt: skip
"""Fields that change no pixel of an RGB image; a pad_size has no effect without do_pad."""
_FILE = "preprocessor_config.json"


def _read_steps(values: Mapping[str, Any]) -> tuple[str, _Steps]:
    """Name of the processor without its ending, and its steps; all that it does must be known."""
    given = {key: value for key, value in values.items() if value is not None}
    named = given.get("image_processor_type") or given.get("feature_extractor_type") or ""
    kind = re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(named))
    if kind not in _PROCESSORS:
        message = (
            f"image_processor_type in {_FILE} must be of {', '.join(filter(None, _PROCESSORS))}, "
            f"got {named!r}, whose steps are not known here."
        )
        raise ConfigError(message)
    known = {field.name for field in dataclasses.fields(_Steps)} | _HARMLESS
    if kind != "ConvNext":
        known -= {"crop_pct"}
    unknown = {
        key: value for key, value in given.items() if key not in known and value is not False
    }
    if unknown:
        message = (
            f"fields in {_FILE} that may change pixels must be known here, got {unknown}. Remove "
            f"them from the file if they change none."
        )
        raise ConfigError(message)
    steps = {key: given[key] for key in given if key in known - _HARMLESS}
    for key in {"image_mean", "image_std"} & steps.keys():
        if isinstance(steps[key], int | float):  # the same for each channel
            steps[key] = [steps[key]] * 3
    return kind, configs.from_dict(_Steps, {**_PROCESSORS[kind], **steps}, where=_FILE)


def of_transformers(values: Mapping[str, Any]) -> Preprocessing:
    """Read ``preprocessor_config.json``; a `ConfigError` says what cannot be done here."""
    kind, steps = _read_steps(values)
    if not steps.do_resize:
        message = f"do_resize in {_FILE} must be true, got false."
        raise ConfigError(message)
    mean, std = steps.image_mean, steps.image_std
    if not steps.do_normalize:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    scale = 255 * (steps.rescale_factor if steps.do_rescale else 1.0)
    if scale <= 0:
        message = f"rescale_factor in {_FILE} must be above 0, got {steps.rescale_factor}."
        raise ConfigError(message)
    return Preprocessing(
        mean=tuple(_near(value / scale) for value in mean),
        std=tuple(_near(value / scale) for value in std),
        interpolation=_read_interpolation(steps.resample),
        in_chans=len(mean),
        crop_rounding="before",
        **_find_shape(kind, steps),
    )


def _find_shape(kind: str, steps: _Steps) -> dict[str, Any]:
    """Fields of `Preprocessing` that say how an image is resized and cut."""
    size = _read_sides(steps.size, "size", square=steps.default_to_square)
    short = size.shortest_edge
    if kind == "ConvNext" and short:
        if short >= 384:
            return {"fit": "stretch", "img_size": (short, short)}
        return _cut((short, short), short_side=int(short / steps.crop_pct))
    crop = None
    if steps.do_center_crop:
        sides = _read_sides(steps.crop_size, "crop_size")
        crop = (sides.height, sides.width)
    if not short:
        resized = (size.height, size.width)
        return _cut(crop or resized, resized, fit="stretch")
    if crop is None:
        message = (
            f"size in {_FILE} must be a height and a width, or a crop must follow, got "
            f"{steps.size!r}: images would have several sizes."
        )
        raise ConfigError(message)
    return _cut(crop, short_side=short)


def _cut(
    img_size: Size, resized: Size = (0, 0), *, short_side: int = 0, fit: str = "center_crop"
) -> dict[str, Any]:
    """Fields for images that are resized, to a size or by the shorter side, and then cut."""
    parts = [inner / outer for inner, outer in zip(img_size, resized, strict=True) if outer]
    if max(parts, default=0.0) > 1:
        message = f"images must be resized to the size of their crop or more, got {resized} and "
        raise ConfigError(message + f"{img_size}.")
    return {
        "fit": fit,
        "img_size": img_size,
        "short_side": short_side,
        "resize_to": resized if len({*parts}) == 2 else (0, 0),
        "crop_fraction": parts[0] if parts else min(img_size) / short_side,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmImages:
    """Fields of ``pretrained_cfg`` that change pixels, with timm's defaults."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: _Values = _IMAGENET["mean"]
    std: _Values = _IMAGENET["std"]


def of_timm(published: Mapping[str, Any]) -> Preprocessing:
    """Read ``pretrained_cfg``; a `ConfigError` says what cannot be done here."""
    names = {field.name for field in dataclasses.fields(TimmImages)}
    given = {key: value for key, value in published.items() if key in names and value}
    images = configs.from_dict(TimmImages, given, where="pretrained_cfg")
    channels, *size = images.input_size
    if images.crop_mode not in ("center", "squash"):
        message = f"crop_mode in pretrained_cfg must be center or squash, got {images.crop_mode!r}."
        raise ConfigError(message)
    configs.check_range("crop_pct in pretrained_cfg", images.crop_pct, 0.1, 1)
    high, wide = (int(side / images.crop_pct) for side in size)
    if images.crop_mode == "squash":
        shape = _cut((size[0], size[1]), (high, wide), fit="stretch")
    elif high == wide:
        shape = _cut((size[0], size[1]), short_side=high)
    else:
        shape = {**_cut((size[0], size[1]), (high, wide)), "resize_to": (high, wide)}
    return Preprocessing(
        mean=images.mean,
        std=images.std,
        interpolation=_read_interpolation(images.interpolation),
        in_chans=channels,
        **shape,
    )


def of_torchvision(builder: str, img_size: Size) -> Preprocessing:
    """Give that of torchvision's weights of a model, for this image size if there are any."""
    presets = [weights.transforms() for weights in get_model_weights(builder)]
    preset = next((one for one in presets if one.crop_size == [img_size[0]]), presets[0])
    resized, crop = preset.resize_size[0], preset.crop_size[0]
    return Preprocessing(
        img_size=img_size,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        crop_fraction=crop / resized,
        short_side=round(min(img_size) * resized / crop),
        interpolation=_read_interpolation(preset.interpolation.value),
    )


def _near(value: float) -> float:
    """Remove the rounding error of a factor that should be 1."""
    return round(value, 12)


def _read_sides(size: _Sides | int | tuple[int, int], name: str, *, square: bool = True) -> _Sides:
    if isinstance(size, int):
        size = (size, size) if square else _Sides(shortest_edge=size)
    if isinstance(size, tuple):
        size = _Sides(height=size[0], width=size[1])
    if size.shortest_edge < 1 and min(size.height, size.width) < 1:
        message = (
            f"{name} in {_FILE} must be a height and a width of 1 or more pixels, got {size!r}."
        )
        raise ConfigError(message)
    return size


def _read_interpolation(name: object) -> Interpolation:
    if name not in _INTERPOLATIONS:
        message = f"interpolation must be bilinear (2) or bicubic (3), got {name!r}."
        raise ConfigError(message)
    return _INTERPOLATIONS[name]
