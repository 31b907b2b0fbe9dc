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
from typing import Any, Literal

from muntin import configs
from muntin.data.transforms import Interpolation, Preprocessing
from muntin.errors import ConfigError
from muntin.shapes import Size

_IMAGENET: dict[str, tuple[float, ...]] = {
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)
}  # fmt: skip
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
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)


_OF_IMAGENET = {f"image_{name}": values for name, values in _IMAGENET.items()}
_OF_CLIP: dict[str, Any] = {
    "size": {"shortest_edge": 224}, "default_to_square": False, "do_center_crop": True,
    "resample": 3, "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}  # fmt: skip
_PROCESSORS: dict[str, dict[str, Any]] = {
    "": {},  # as that of ViT
    "ViT": {},
    "DeiT": {"size": 256, "do_center_crop": True, "resample": 3},
    "Beit": {"resample": 3},
    "Bit": _OF_CLIP,
    "CLIP": _OF_CLIP,
    "ConvNext": {"size": {"shortest_edge": 384}, "default_to_square": False, "resample": 3},
    "Segformer": {**_OF_IMAGENET, "size": 512},
    "VitPose": {**_OF_IMAGENET, "size": {"height": 256, "width": 192}},  # boxes: by its head
}
"""Processors whose steps are these, by their names without ending, and their defaults."""
_HARMLESS = re.compile(
    r"(image_processor|feature_extractor)_type|processor_class|use_fast|num_labels|do_convert_rgb|"
    r"(input_)?data_format|device|disable_grouping|antialias|return_tensors|(do_)?reduce_labels|"
    r"pad_size|_valid_processor_keys|transformers_version|do_affine_transform|normalize_factor"
)
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
    known = {field.name for field in dataclasses.fields(_Steps)}
    known -= {"crop_pct"} if kind != "ConvNext" else set()
    steps = {key: value for key, value in given.items() if not _HARMLESS.fullmatch(key)}
    unknown = {key: steps.pop(key) for key in steps.keys() - known}
    if any(value is not False for value in unknown.values()):
        message = (
            f"fields in {_FILE} that may change pixels must be known here, got {unknown}. Remove "
            f"them from the file if they change none."
        )
        raise ConfigError(message)
    for key in {"image_mean", "image_std"} & steps.keys():
        if isinstance(steps[key], int | float):  # the same for each channel
            steps[key] = [steps[key]] * 3
    return kind, configs.from_dict(_Steps, {**_PROCESSORS[kind], **steps}, where=_FILE)


def of_transformers(values: Mapping[str, Any]) -> Preprocessing:
    """Read ``preprocessor_config.json``; a `ConfigError` says what cannot be done here."""
    kind, steps = _read_steps(values)
    scale = 255 * (steps.rescale_factor if steps.do_rescale else 1.0)
    if not steps.do_resize or scale <= 0:
        message = (
            f"do_resize in {_FILE} must be true and rescale_factor above 0, got {steps.do_resize} "
            f"and {steps.rescale_factor}."
        )
        raise ConfigError(message)
    mean, std = steps.image_mean, steps.image_std
    if not steps.do_normalize:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
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
    short, resized = size.shortest_edge, (size.height, size.width)
    if kind == "ConvNext" and short:
        shape = {"fit": "stretch"} if short >= 384 else {"short_side": int(short / steps.crop_pct)}
        return {**shape, "img_size": (short, short)}
    crop = resized
    if steps.do_center_crop:
        sides = _read_sides(steps.crop_size, "crop_size")
        crop = (sides.height, sides.width)
    if not short:
        return {"fit": "stretch", "img_size": crop, "resize_to": resized}
    if not steps.do_center_crop:
        message = (
            f"size in {_FILE} must be a height and a width, or a crop must follow, got only "
            f"shortest_edge {short}: images would have several sizes."
        )
        raise ConfigError(message)
    return {"short_side": short, "img_size": crop}


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmImages:
    """Fields of ``pretrained_cfg`` that change pixels, with timm's defaults."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    crop_pct: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = _IMAGENET["mean"]
    std: tuple[float, ...] = _IMAGENET["std"]


def of_timm(published: Mapping[str, Any]) -> Preprocessing:
    """Read ``pretrained_cfg``; a `ConfigError` says what cannot be done here."""
    names = {field.name for field in dataclasses.fields(TimmImages)}
    given = {key: value for key, value in published.items() if key in names and value}
    images = configs.from_dict(TimmImages, given, where="pretrained_cfg")
    configs.check_range("crop_pct in pretrained_cfg", images.crop_pct, 0.1, 1)
    channels, *size = images.input_size
    high, wide = (int(side / images.crop_pct) for side in size)
    squash = images.crop_mode == "squash"
    # timm scales by the shorter side only for squares.
    by_side = high == wide and not squash
    return Preprocessing(
        img_size=(size[0], size[1]),
        mean=images.mean,
        std=images.std,
        fit="stretch" if squash else "center_crop",
        short_side=high if by_side else 0,
        resize_to=(0, 0) if by_side else (high, wide),
        interpolation=_read_interpolation(images.interpolation),
        in_chans=channels,
    )


def of_torchvision(builder: str, img_size: Size) -> Preprocessing:
    """Give that of torchvision's weights of a model, for this image size if there are any."""
    from torchvision.models import get_model_weights

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
            f"{name} in {_FILE} must be a height and a width of 1 or more pixels, got "
            f"{size.height} and {size.width}."
        )
        raise ConfigError(message)
    return size


def _read_interpolation(name: object) -> Interpolation:
    if name not in _INTERPOLATIONS:
        message = f"interpolation must be bilinear (2) or bicubic (3), got {name!r}."
        raise ConfigError(message)
    return _INTERPOLATIONS[name]
