# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Any timm model that gives features, as a backbone: what Swin is compared with, in the same tasks.

Source:
    timm (extra ``timm``), whose `forward_intermediates` gives the maps and whose `forward_head`
    gives what its classifier reads. Compared live with timm 1.0.31 in
    tests/parity/test_timm_backbone.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from muntin.errors import ConfigError, ShapeError, unknown_name
from muntin.features import Backbone, Features, FeatureSpec, TokenMask
from muntin.outside_errors import missing_extra
from muntin.shapes import Float, Int, Size

__all__ = ["TimmBackbone", "TimmConfig", "describe_timm", "list_timm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmConfig:
    """Which timm model it is.

    Attributes:
        name: Its name in timm, without a tag.
        img_size: (height, width) in pixels of the pictures it is meant for.
        in_chans: Channels of an image.
        out_indices: Maps that `forward` gives, counted as timm does; the last four when empty.
        drop_path_rate: Stochastic depth, for models that have it.
    """

    name: str
    img_size: Size = (224, 224)
    in_chans: int = 3
    out_indices: tuple[int, ...] = ()
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if min(*self.img_size, self.in_chans) < 1 or not 0 <= self.drop_path_rate < 1:
            message = (
                f"TimmConfig: img_size and in_chans must be at least 1 and drop_path_rate in "
                f"[0, 1), got {self.img_size}, {self.in_chans} and {self.drop_path_rate}."
            )
            raise ConfigError(message)


def _timm() -> Any:  # noqa: ANN401 (a module)
    if importlib.util.find_spec("timm") is None:
        library, extra = "timm", "timm"
        raise missing_extra(library, extra, "A model named timm:...")
    import timm

    return timm


def list_timm(pattern: str) -> list[str]:
    """Names of timm's models that match a shell pattern, without tags.

    Raises:
        MissingExtra: timm is not installed.
    """
    return list(_timm().list_models(pattern))


def describe_timm(name: str) -> dict[str, Any]:
    """What timm says about a model and its weights: input size, normalisation, classifier, hub id.

    Raises:
        ConfigError: timm has no such model.
        MissingExtra: timm is not installed.
    """
    timm = _timm()
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(unknown_name("timm model", name, timm.list_models()))
    published = timm.get_pretrained_cfg(name)
    return {} if published is None else published.to_dict()


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    Args:
        config: Which one.

    Raises:
        ConfigError: timm has no such model, or it gives no maps.
        MissingExtra: timm is not installed.
    """

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        timm = _timm()
        published = describe_timm(config.name).get("input_size") or (3, 224, 224)
        options: dict[str, Any] = {"num_classes": 0, "in_chans": config.in_chans}
        if config.drop_path_rate:
            options["drop_path_rate"] = config.drop_path_rate
        other = {} if config.img_size == tuple(published[1:]) else {"img_size": config.img_size}
        try:
            self.net: Any = timm.create_model(config.name, **options, **other)
        except TypeError:  # it takes no size: it is made for any
            self.net = timm.create_model(config.name, **options)
        found = len(getattr(self.net, "feature_info", ()))
        if any(not -found <= index < found for index in config.out_indices):
            message = f"out_indices of {config.name} must be from 0 to {found - 1}, got "
            raise ConfigError(message + f"{config.out_indices}.")
        if not found or not hasattr(self.net, "forward_intermediates"):
            message = (
                f"a timm backbone must give maps (forward_intermediates), got {config.name}, which "
                f"does not. Choose another model."
            )
            raise ConfigError(message)

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps."""
        rows = list(self.net.feature_info)
        chosen = [rows[i] for i in self._indices()]
        return FeatureSpec(
            channels=tuple(int(row["num_chs"]) for row in chosen),
            strides=tuple(int(row["reduction"]) for row in chosen),
        )

    @property
    def embed_channels(self) -> int:
        """Channels of the pooled vector."""
        return int(getattr(self.net, "head_hidden_size", self.net.num_features))

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Prepare a run, which begins when a part is read: timm has a pass for each of them.

        Args:
            images: Normalised images of a size that the model accepts.
            sizes: As in `Backbone.features`.
            mask: Refused.

        Returns:
            The maps in `out_indices`; the vector is what the model's own classifier reads.
            Reading one part computes that part alone; `Features.compute_both` takes one pass.

        Raises:
            ConfigError: There is a mask.
        """
        self._refuse_mask(mask)
        return Features(
            images,
            sizes=sizes,
            maps=lambda: self._maps(images),
            vector=lambda: self._vector(images),
            both=lambda: self._both(images),
        )

    def _maps(self, images: Tensor) -> list[Tensor]:
        with self._refusing(images):
            maps = self.net.forward_intermediates(
                images, indices=self._indices(), intermediates_only=True, output_fmt="NCHW"
            )
        return list(maps)

    def _vector(self, images: Tensor) -> Tensor:
        with self._refusing(images):
            features = self.net.forward_features(images)
        vector: Tensor = self.net.forward_head(features, pre_logits=True)
        return vector

    def _both(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        with self._refusing(images):
            features, maps = self.net.forward_intermediates(
                images, indices=self._indices(), output_fmt="NCHW"
            )
        return list(maps), self.net.forward_head(features, pre_logits=True)

    @contextlib.contextmanager
    def _refusing(self, images: Tensor) -> Iterator[None]:
        """Refuse in our own words what timm refuses by an assertion: another size."""
        try:
            yield
        except AssertionError as error:
            high, wide = images.shape[2:]
            message = (
                f"images must have a size that timm's {self.config.name} takes, got {high} x "
                f"{wide}: {str(error).rstrip('.')}. Build it with img_size=({high}, {wide}), or "
                f"leave the size out."
            )
            raise ShapeError(message) from error

    def _indices(self) -> list[int]:
        count = len(self.net.feature_info)
        return list(self.config.out_indices or range(max(count - 4, 0), count))
