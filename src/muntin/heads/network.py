# SPDX-License-Identifier: Apache-2.0
"""A backbone with its heads: the module that is trained, saved and run for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from muntin.errors import ConfigError
from muntin.features import Backbone, Features, FeatureSpec, TokenMask
from muntin.shapes import Int


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Base class of head configs; `muntin.heads.head_table` lists the classes."""

    kind: ClassVar[str]

    @property
    def finest(self) -> int:
        """Stride in pixels of the finest map that the head reads."""
        raise NotImplementedError


class Head(nn.Module):
    """Computes raw output from features; it has no access to the backbone or the pixels.

    Attributes:
        reads: The part of the features it uses.
        losses: From features and targets of the head's own kind to the loss of each image (B), by
            name. It may depend on the whole batch.
    """

    reads: ClassVar[Literal["maps", "vector", "tokens"]] = "maps"

    losses: Callable[..., dict[str, Tensor]]

    def forward(self, features: Features) -> Any:  # noqa: ANN401 (each head has its own)
        """Compute raw output; only dropout and norms differ between training and evaluation."""
        raise NotImplementedError

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """Layers with a row for each class or keypoint.

        Path of the layer, or its end -> rows per class, and rows besides those.
        """
        return {}

    def may_lack(self, name: str) -> bool:
        """Whether weights with this parameter fit, although the head lacks it."""
        return self.reads != "maps"

    def decode(self, raw: Any) -> Any:  # noqa: ANN401 (as `forward`)
        """Decode raw output; identity by default."""
        return raw


class PretrainingHead(Head):
    """A head that learns without labels; that of weights made otherwise fits, and is ignored."""

    def may_lack(self, name: str) -> bool:
        """Whether weights with this parameter fit: one of a part that this head does not have."""
        return name.partition(".")[0] not in {key.partition(".")[0] for key in self.state_dict()}


class Network(nn.Module):
    """One backbone and one or more heads on its features; the backbone runs once per batch.

    Keys of the state dict begin with ``backbone.`` and ``head.``; several heads, given by name,
    have keys that begin with their names.
    """

    backbone: Backbone
    head: nn.Module
    holds_backbone = False
    """Whether the backbone stays in evaluation mode: its answers must not change."""

    def __init__(self, backbone: Backbone, head: nn.Module | Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        heads = {"head": head} if isinstance(head, nn.Module) else head
        for name, one in heads.items():
            if not name.isidentifier() or hasattr(self, name):
                message = (
                    f"the name of a head must be an identifier not used by Network, got {name!r}. "
                    f"Choose another one."
                )
                raise ConfigError(message)
            self.add_module(name, one)
        self._names, self._single = tuple(heads), isinstance(head, nn.Module)
        self._reads = tuple({getattr(one, "reads", "maps") for one in heads.values()})

    def train(self, mode: bool = True) -> Network:
        """Set the mode, see `holds_backbone`."""
        super().train(mode)
        if self.holds_backbone:
            self.backbone.eval()
        return self

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the backbone's maps."""
        return self.backbone.spec

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The heads by name; the only one is called "head"."""
        return {name: self.get_submodule(name) for name in self._names}

    def features(
        self,
        images: Tensor,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
        *,
        maps: bool = False,
    ) -> Features:
        """Run the backbone; arguments as in `Backbone.features`.

        `maps` says that they are read, even if no head does.
        Losses are computed from it: ``network.head.losses(network.features(images), targets)``.

        Raises:
            ShapeError: The images have another number of dimensions or channels.
        """
        self.backbone.check_images(images)
        features = self.backbone.features(images, sizes=sizes, mask=mask)
        # Lazy features would run the last layers twice if both maps and vector are read.
        if len(self._reads) > 1 or (maps and "maps" not in self._reads):
            features.compute_both()
        return features

    def forward(self, images: Tensor, sizes: Int[Tensor, "B 2"] | None = None) -> Any:  # noqa: ANN401 (each head has its own)
        """Return the output of the head, logits (B, K) for a classifier; a dict for several heads.

        Args:
            images: Normalised, B, in_chans, H, W.
            sizes: (height, width) of the image inside each padded one; None: no padding.
        """
        features = self.features(images, sizes)
        if self._single:
            return self.head(features)
        return {name: head(features) for name, head in self.heads.items()}

    def decode(self, raw: Any) -> Any:  # noqa: ANN401 (each head has its own)
        """Decode the output of `forward`: for a detector, the instances of each image."""
        if self._single:
            return _decode(self.head, raw)
        return {name: _decode(head, raw[name]) for name, head in self.heads.items()}


def _decode(head: nn.Module, raw: Any) -> Any:  # noqa: ANN401 (as `Network.decode`)
    decode = getattr(head, "decode", None)
    return raw if decode is None else decode(raw)
