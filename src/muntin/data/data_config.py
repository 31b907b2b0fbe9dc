# SPDX-License-Identifier: Apache-2.0
"""The options of reading a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from muntin.configs import check_range, with_texts
from muntin.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Options of reading a data set.

    Attributes:
        strict: Whether an image that cannot be read is an error; otherwise it is left out, with
            a count and a warning.
        val_fraction: Part of the training images kept for validation when the set has no part
            of its own.
        groups: Images that this keeps together: "auto" those of a groups.csv, copies and frames of
            a video; a regular expression for paths, such as ``([^/]+)_[0-9]+``, gives the groups
            itself; "none" keeps only groups that the data name.
        crop_fraction: Part of the resized image's side that evaluation reads from its middle; all
            of it for models of less than 128 pixels unless it is set.
        sampler: "shuffle" shows every image once an epoch; "balanced" draws classes evenly.
        cache_mib: Memory for decoded images; sets that need more are decoded as they are read.
        scale: Factor by which images are seen whose pixels are classified; 0 chooses.
        short_side: Pixels that their shorter side is brought to instead; 0 = `scale`.
        colors: What classes are stored as in masks, ``road:#6EC1E4`` or ``road:3`` each; a table in
            the data or the masks themselves define them otherwise.
        ignored: Values of masks that are not learnt, ``#000000`` or ``255``.
        range: Values of images of more than 8 bits that become 0 and 255, ``1000,1400``; 0,0
            measures the training images.
        bits: 16 keeps all values of such images apart, at four times the memory; 8 makes 256
            levels of them; 0 = 16 where there are such images.
        mean: Of each channel, in [0, 1], which images are normalised by; empty = of the training
            images where they have more than three bands, else of the model's weights.
        std: Likewise their standard deviation.
        folds: Parts of about one size that the images are divided into; 0 = no such division.
        fold: The part that validates, from 1.
    """

    strict: bool = False
    val_fraction: float = 0.1
    groups: str = "auto"
    crop_fraction: float = 0.9
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    cache_mib: int = 2048
    scale: float = 0.0
    short_side: int = 0
    colors: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    range: tuple[float, float] = (0.0, 0.0)
    bits: Literal[0, 8, 16] = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    folds: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        """Refuse fractions that leave nothing."""
        check_range("data.val_fraction", self.val_fraction, 0.001, 0.9)
        check_range("data.crop_fraction", self.crop_fraction, 0.1, 1)
        check_range("data.cache_mib", self.cache_mib, 0, 10**9)
        check_range("data.scale", self.scale, 0, 10)
        check_range("data.short_side", self.short_side, 0, 10**5)
        check_range("data.fold", self.fold, min(1, self.folds), self.folds)
        if self.folds:
            check_range("data.folds", self.folds, 2, 100)
        if len(self.mean) != len(self.std):
            message = f"data.mean and data.std must be as many, got {self.mean} and {self.std}."
            raise ConfigError(message)
        if self.range != (0, 0) and not self.range[0] < self.range[1]:
            message = f"data.range must be a lower and a higher value, got {self.range}."
            raise ConfigError(message)

    @staticmethod
    def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Repeat the split of earlier versions, which did not look for copies."""
        return {"groups": "none", **values}


DEFAULTS = DataConfig()


def change_reading(reading: DataConfig, settings: Mapping[str, object]) -> DataConfig:
    """Give a copy with some fields set: ``{"data.ignored": "255"}``."""
    texts = [(name.removeprefix("data."), str(value)) for name, value in settings.items()]
    changed: DataConfig = with_texts(reading, texts)
    return changed
