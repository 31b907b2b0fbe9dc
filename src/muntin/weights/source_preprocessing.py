# SPDX-License-Identifier: Apache-2.0
"""How transformers, timm and torchvision prepare images, as our `Preprocessing`.

Source:
    transformers 5.24, image_processing_backends.py and the processors of ViT, DeiT, Bit and
    ConvNeXt; timm 1.0.31, data/transforms_factory.py. Compared live with both in
    tests/parity/test_source_preprocessing.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchvision.models import get_model_weights

from muntin.data.transforms import Interpolation, Preprocessing
from muntin.errors import ConfigError
from muntin.shapes import Size

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_INTERPOLATIONS: dict[object, Interpolation] = {
    2: "bilinear",
    3: "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}


def of_transformers(values: Mapping[str, Any]) -> Preprocessing:
    """Read ``preprocessor_config.json``; a `ConfigError` says what cannot be done here."""
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    given = {key: value for key, value in values.items() if value is not None}
    if not given.get("do_resize", True):
        message = "do_resize in preprocessor_config.json must be true, got false."
        raise ConfigError(message)
    cuts = kind.startswith(("DeiT", "Bit", "CLIP"))
    size = given.get("size", 224)
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if isinstance(size, int) and kind.startswith(("Bit", "CLIP", "ConvNext")):
        shortest = size
    crop = _read_size(given.get("crop_size", 224)) if given.get("do_center_crop", cuts) else None
    if kind.startswith("ConvNext") and shortest:
        crop = (shortest, shortest)
        fraction = given.get("crop_pct", 224 / 256)
        shortest = int(shortest / fraction) if shortest < 384 else None
        size = crop[0]
    shape: dict[str, Any] = {"fit": "stretch", "crop_rounding": "before"}
    if shortest is None:
        resized = _read_size(size)
        shape["img_size"] = crop or resized
        shape["crop_fraction"] = shape["img_size"][0] / resized[0]
        wide = shape["img_size"][1] / resized[1]
    else:
        if crop is None or (isinstance(size, Mapping) and "longest_edge" in size):
            message = (
                f"size in preprocessor_config.json must be a height and a width, or a crop must "
                f"follow, got {size!r}: images would have several sizes."
            )
            raise ConfigError(message)
        shape |= {"fit": "center_crop", "img_size": crop, "short_side": shortest}
        shape["crop_fraction"] = wide = min(crop) / shortest
    if wide != shape["crop_fraction"]:
        message = f"crop_size must have the proportions of size, got {crop} of {size!r}."
        raise ConfigError(message)
    scale = 255 * (given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0)
    mean, std = given.get("image_mean", (0.5,) * 3), given.get("image_std", (0.5,) * 3)
    if not given.get("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    return Preprocessing(
        mean=tuple(_near(value / scale) for value in mean),
        std=tuple(_near(value / scale) for value in std),
        interpolation=_read_interpolation(given.get("resample", 2)),
        in_chans=len(mean),
        **shape,
    )


def of_timm(published: Mapping[str, Any]) -> Preprocessing:
    """Read ``pretrained_cfg``; a `ConfigError` says what cannot be done here."""
    given = {key: value for key, value in published.items() if value is not None}
    channels, high, wide = given.get("input_size", (3, 224, 224))
    mode, fraction = given.get("crop_mode", "center"), given.get("crop_pct") or 0.875
    if mode not in ("center", "squash"):
        message = f"crop_mode of timm must be center or squash, got {mode!r}."
        raise ConfigError(message)
    short = int(min(high, wide) / fraction)
    # timm scales by the shorter side only for squares.
    by_side = mode == "center" and high == wide
    return Preprocessing(
        img_size=(high, wide),
        mean=tuple(given.get("mean", _IMAGENET["mean"])),
        std=tuple(given.get("std", _IMAGENET["std"])),
        fit="center_crop" if mode == "center" else "stretch",
        crop_fraction=min(high, wide) / short,
        short_side=short if by_side else 0,
        interpolation=_read_interpolation(given.get("interpolation", "bicubic")),
        in_chans=channels,
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


def _read_size(size: Any) -> Size:  # noqa: ANN401 (any JSON value)
    if isinstance(size, int):
        return size, size
    if isinstance(size, list) and len(size) == 2:
        return size[0], size[1]
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    message = f"size in preprocessor_config.json must be a height and a width, got {size!r}."
    raise ConfigError(message)


def _read_interpolation(name: object) -> Interpolation:
    if name not in _INTERPOLATIONS:
        message = f"interpolation must be bilinear (2) or bicubic (3), got {name!r}."
        raise ConfigError(message)
    return _INTERPOLATIONS[name]
