# SPDX-License-Identifier: Apache-2.0
"""The base class of backbones, and the features of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from muntin.errors import ConfigError, ShapeError
from muntin.shapes import Bool, Float, Int, Size


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Channels of each feature map of a backbone, finest first, and strides in pixels.

    `embed_parts`: equal parts of the vector with a classifier each; 2 for the class and the
    distillation token of DeiT.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    embed_parts: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class TokenMask:
    """Which patches of each image a backbone processes, for masked pre-training.

    Attributes:
        keep: True for each patch that is kept, in row-major order of `Backbone.mask_grid`
            (Hiera: mask units). Every image keeps the same number.
        fill: Mask token that replaces the other tokens; None drops them.
        quarter: Which of the 2 x 2 units of each block of the grid is processed, counted row by
            row; the other three are dropped, and `fill` replaces those tokens of this one that are
            not kept. Only for families whose `keeps_quarters` is True.
    """

    keep: Bool[Tensor, "B N"]
    fill: Float[Tensor, " C"] | None = None
    quarter: Int[Tensor, "B h w"] | None = None

    def __post_init__(self) -> None:
        """Check that the kept tokens form a batch."""
        if self.fill is not None:
            return  # every token is there
        counts = sorted(set(self.keep.sum(dim=1).tolist()))
        if len(counts) != 1 or not counts[0]:
            message = (
                f"keep must have the same number of True values, 1 or more, in every image, got "
                f"{counts}. Sample the same number for all images of a batch."
            )
            raise ShapeError(message)

    def check(self, batch: int, grid: Size) -> None:
        """Raise `ShapeError` unless the mask has the batch size and the grid of the images."""
        wanted = (batch, grid[0] * grid[1])
        if tuple(self.keep.shape) != wanted:
            message = (
                f"keep must have shape {wanted} for {batch} images with {grid[0]} x {grid[1]} "
                f"patches, got {tuple(self.keep.shape)}. See mask_grid of the backbone."
            )
            raise ShapeError(message)

    def put_fill(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Replace tokens that are not kept by the mask token, if `fill` is set."""
        if self.fill is None:
            return tokens
        return torch.where(self.keep[:, :, None], tokens, self.fill.to(tokens.dtype))

    def drop(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B n C"]:
        """Select the kept tokens, in their order; all tokens if `fill` is set."""
        if self.fill is not None:
            return tokens
        return tokens[self.keep].view(tokens.shape[0], -1, tokens.shape[2])

    def take_quarter(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B Hk Wk C"]:
        """Lay the units that are processed side by side: a map of half the sides, if `quarter`."""
        if self.quarter is None:
            return x
        rows, columns = self.quarter.shape[1:]
        if x.shape[1] % (2 * rows) or x.shape[2] % (2 * columns):
            message = (
                f"quarter must divide a map of {x.shape[1]} x {x.shape[2]} tokens into blocks of "
                f"2 x 2 units, got {rows} x {columns} blocks. Choose another unit or image size."
            )
            raise ShapeError(message)
        x = x.unflatten(2, (columns, 2, -1)).unflatten(1, (rows, 2, -1))  # B, h, 2, u, w, 2, v, C
        x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(3, 4)  # B, h, w, 4, u, v, C
        chosen = self.quarter.view(*self.quarter.shape, 1, 1, 1, 1).expand(
            -1, -1, -1, 1, *x.shape[4:]
        )
        x = x.gather(3, chosen)[:, :, :, 0]  # B, h, w, u, v, C
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def refuse_maps(self) -> list[Tensor]:
        """Raise `ConfigError`: a network that dropped tokens has no maps."""
        message = (
            "maps require all patches, got a mask that drops some. Use tokens, or set fill of the "
            "mask."
        )
        raise ConfigError(message)


class Features:
    """The features of one batch; each part is computed on first access and cached.

    `maps`, `vector` and `tokens` compute the parts, `both` the first two in one pass, for families
    where each alone takes one. Of the images, only shape and device are used.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        maps: Callable[[], list[Tensor]],
        vector: Callable[[], Tensor],
        tokens: Callable[[], Tensor] | None = None,
        both: Callable[[], tuple[list[Tensor], Tensor]] | None = None,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> None:
        self.image_size: Size = (images.shape[2], images.shape[3])
        """(height, width) of the images passed to the backbone."""
        self.mask = mask
        """The mask that was applied; None without masking."""
        self._count, self._device = images.shape[0], images.device
        self._make_maps, self._make_vector = maps, vector
        self._make_tokens, self._make_both = tokens, both
        self._maps: list[Tensor] | None = None
        self._vector: Tensor | None = None
        self._tokens: Tensor | None = None
        self._sizes = sizes

    @property
    def maps(self) -> list[Tensor]:
        """The maps, B, C, H/stride, W/stride each, finest first.

        With a mask that drops tokens they are those of what is left, laid side by side (Hiera,
        Swin); a ViT has none.
        """
        if self._maps is None:
            self._maps = self._make_maps()
        return self._maps

    @property
    def vector(self) -> Float[Tensor, "B C"]:
        """One vector per image: the input of the classifier in the family's paper."""
        if self._vector is None:
            self._vector = self._make_vector()
        return self._vector

    @property
    def tokens(self) -> Float[Tensor, "B N C"]:
        """The tokens after the last block: prefix tokens, then patches in row-major order.

        With a mask that drops tokens, only the kept ones; for Hiera, grouped by mask unit.

        Raises:
            ConfigError: The family has no sequence of tokens.
        """
        if self._make_tokens is None:
            message = (
                "tokens require a ViT, DeiT, T2T-ViT or Hiera, got a backbone with maps and vector "
                "only. Use those, or choose another model."
            )
            raise ConfigError(message)
        if self._tokens is None:
            self._tokens = self._make_tokens()
        return self._tokens

    @property
    def sizes(self) -> Int[Tensor, "B 2"]:
        """(height, width) of each image inside its padding."""
        if self._sizes is None:
            self._sizes = torch.tensor([self.image_size] * self._count, device=self._device)
        return self._sizes

    def compute_both(self) -> None:
        """Compute maps and vector, in one pass where separate access would take two."""
        if self._make_both is not None and self._maps is None and self._vector is None:
            self._maps, self._vector = self._make_both()


class Backbone(nn.Module):
    """Maps images of any height and width to features. A family implements `features`."""

    blocks: nn.ModuleList | Sequence[nn.Module]
    """All blocks in order of computation."""

    drops_tokens: ClassVar[bool] = False
    """Whether masks without a fill are supported, whose other tokens are not computed."""

    keeps_quarters: ClassVar[bool] = False
    """Whether `TokenMask.quarter` is supported."""

    undecayed: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of parameters without weight decay: positions and tokens."""

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps, in the order of `forward`."""
        raise NotImplementedError

    @property
    def embed_channels(self) -> int:
        """Channels of the vector."""
        return self.spec.channels[-1] * self.spec.embed_parts

    def features(
        self,
        images: Tensor,
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Run the backbone once.

        Args:
            images: Normalised, B, in_chans, H, W.
            sizes: (height, width) of each image inside its padding, for heads that need it.
            mask: Patches to keep; default: all.

        Raises:
            ShapeError: The size rule does not allow this height and width, or the mask has another
                shape.
            ConfigError: The family does not support masks.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps, B, C, H/stride, W/stride each, finest first."""
        self.check_images(images)
        return self.features(images).maps

    def embed(self, images: Tensor) -> Float[Tensor, "B C"]:
        """Compute one vector per image: the input of the classifier in the family's paper."""
        self.check_images(images)
        return self.features(images).vector

    def check_images(self, images: Tensor) -> None:
        """Raise `ShapeError` unless images are (B, in_chans, H, W), floating-point, not empty."""
        wanted = getattr(getattr(self, "config", None), "in_chans", None)
        shaped = images.ndim == 4 and wanted in (None, images.shape[1])
        if shaped and images.is_floating_point() and 0 not in images.shape:
            return
        channels = wanted or "C"
        advice = (
            "Add the missing dimension, convert the images, or build the model with another "
            "in_chans."
        )
        if shaped and 0 in images.shape:
            advice = "Skip empty batches."
        elif shaped:
            advice = "Divide bytes by 255 and normalise them, as muntin.load does."
        message = (
            f"images must be (B, {channels}, H, W) in floating point, a batch with {channels} "
            f"channels, got {tuple(images.shape)} in {images.dtype}. {advice}"
        )
        raise ShapeError(message)

    @property
    def mask_px(self) -> int:
        """Side in pixels of a cell of `mask_grid`; 0 if the family does not support masks."""
        return 0

    def mask_grid(self, image_size: Size) -> Size:
        """Rows and columns of the grid of `TokenMask.keep` for images of (height, width) pixels.

        Raises:
            ConfigError: The family does not support masks.
            ShapeError: The size rule does not allow this height and width.
        """
        raise self._mask_error()

    def _refuse_mask(self, mask: TokenMask | None) -> None:
        if mask is not None:
            raise self._mask_error()

    def _refuse_quarters(self, mask: TokenMask | None) -> None:
        if mask is not None and mask.quarter is not None:
            message = (
                f"a mask with quarters requires a Swin or Swin V2, got {type(self).__name__}. "
                f"Use a mask without."
            )
            raise ConfigError(message)

    def _mask_error(self) -> ConfigError:
        return ConfigError(
            f"masks require a ViT, DeiT, Hiera, Swin or Swin V2, got {type(self).__name__}. Choose "
            f"another model."
        )

    @property
    def stage_unit(self) -> Literal["stage", "block"]:
        """Unit of `stage_of`: stages of a hierarchical backbone, or blocks of a plain ViT."""
        return "block"

    def layer_of(self, name: str) -> int:
        """Return the layer number of a parameter or module, by its name in the backbone.

        Returns:
            0 for everything before the blocks (patch embedding, positions, tokens), k for the k-th
            block and the downsampling after it, ``len(blocks) + 1`` for everything after the last
            block. By default, blocks are called "blocks" and what follows "norm" or "fc_norm".
        """
        kind, *path = name.split(".")
        if kind == "blocks":
            return int(path[0]) + 1
        return len(self.blocks) + 1 if kind in {"norm", "fc_norm"} else 0

    def stage_of(self, name: str) -> int:
        """Return the stage number, in `stage_unit`; `TrainConfig.freeze` counts these."""
        return self.layer_of(name)

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to this parameter, if it has two or more dimensions."""
        return not name.endswith(self.undecayed)


def name_blocks(backbone: Backbone) -> list[str]:
    """Module names of the blocks, in the order of `Backbone.blocks`."""
    names = {module: name for name, module in backbone.named_modules()}
    return [names[block] for block in backbone.blocks]


def count_stages(backbone: Backbone) -> int:
    """Number of stages of a backbone (of blocks if `stage_unit` is "block")."""
    return max(map(backbone.stage_of, name_blocks(backbone)), default=0)


def follow_depths(config: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ANN401 (of a family)
    """Complete values of another number of stages: all give a map, of no pretrained window."""
    depths = values.get("depths", config.depths)
    if not isinstance(depths, tuple | list) or len(depths) == len(config.depths):
        return values
    each = {"out_indices": tuple(range(len(depths))), "pretrained_windows": (0,) * len(depths)}
    return {**{name: each[name] for name in each if hasattr(config, name)}, **values}


_RANGES: dict[str, tuple[float, float]] = {
    "embed_dim": (1, 2**15), "depth": (1, 500), "depths": (1, 250), "num_heads": (1, 2**15),
    "patch_size": (1, 1024), "window_size": (1, 4096), "mask_unit": (1, 4096), "norm_eps": (0, 1),
    "token_dim": (1, 2**15), "bias_hidden": (1, 2**15), "registers": (0, 1000),
    "in_chans": (1, 1024), "img_size": (1, 10**5), "mlp_ratio": (0.01, 100), "drop_rate": (0, 1),
    "layer_scale": (0, 1000), "outer_norm_eps": (0, 1), "attn_drop_rate": (0, 1),
}  # fmt: skip


def reject_config(config: Any, problem: str, count: int) -> None:  # noqa: ANN401 (any family)
    """Raise the problem of a backbone config, or that of its output fields, if there is one.

    `problem` is a clause of a message, or empty; `count` the number of stages or blocks.
    """
    for name, (low, high) in _RANGES.items():
        value = getattr(config, name, low)
        every = value if isinstance(value, tuple) else (value,)
        if not all(low <= each <= high for each in every):  # false for nan too
            problem = problem or f"{name} must be from {low} to {high}, got {value}"
    norm, indices = getattr(config, "out_norm", "none"), config.out_indices
    problem = problem or find_output_problem(indices, max(count, 1), norm, config.drop_path_rate)
    if problem:
        message = f"{type(config).__name__}: {problem}. Change these fields together."
        raise ConfigError(message)


def find_output_problem(
    out_indices: tuple[int, ...], count: int, out_norm: str, drop_path_rate: float
) -> str:
    """Describe what is wrong with the output fields for so many stages or blocks; maybe empty."""
    known = [index % count for index in out_indices if -count <= index < count]
    if not out_indices or len(known) < len(out_indices):
        return (
            f"out_indices must be from 0 to {count - 1}, or from -{count} to -1, got {out_indices}"
        )
    if known != sorted(set(known)):
        return f"out_indices must be strictly increasing, got {out_indices}"
    if out_norm == "last" and known[-1] != count - 1:
        return f'out_norm="last" requires index {count - 1} in out_indices, got {out_indices}'
    if not 0 <= drop_path_rate < 1:
        return f"drop_path_rate must be in [0, 1), got {drop_path_rate}"
    return ""
