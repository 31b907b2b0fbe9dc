# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer V2: cosine attention, positions on a log scale, norms after the branches.

Patches, shifted windows, merging and stages are those of V1. The relative position bias is a small
network of the offset, so that another window needs no new table.

Source:
    Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and Resolution", arXiv 2111.09883:
    section 3.2 (norms, cosine attention), 3.3 (log-spaced continuous bias), 4.1 (variants).
    Compared live with timm 1.0.31, torchvision 0.29.2 and transformers 5.23 in
    tests/parity/test_swin_v2_parity.py: logits and input gradients within 1e-5, odd sizes included.
    Differs: sizes that do not divide evenly follow `size_rule`, in a stateless forward.
    The biases of queries and values are one parameter.

Letters: B images, H and W sides of a map in tokens, C channels, M window side, N = M*M, h heads, d
width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muntin.errors import ConfigError
from muntin.models.swin import Swin, SwinConfig
from muntin.nn.layers import BiasedLinear, DropPath, Mlp, without_key_bias
from muntin.ops.positions import expand_relative_position_bias, log_offsets
from muntin.ops.window_attention import BackendName, window_attention
from muntin.ops.windows import WindowLayout, merge_neighbours
from muntin.shapes import Float, Size

_LARGEST_LOG_SCALE = math.log(100.0)  # section 3.2: the temperature is at least 0.01
_BIAS_RANGE = 16.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinV2Config(SwinConfig):
    """Configuration of a Swin Transformer V2; other fields as in V1.

    Attributes:
        qkv_bias: Whether queries and values have a bias; keys have none.
        pretrained_windows: Side of the window, one a stage, that the offsets of the position bias
            are scaled by; 0 takes the window that fits the map at `img_size`.
        bias_hidden: Width of the network that makes the position bias.
    """

    pretrained_windows: tuple[int, ...] = (0, 0, 0, 0)
    bias_hidden: int = 512

    def __post_init__(self) -> None:
        """Validate the fields."""
        SwinConfig.__post_init__(self)
        if len(self.pretrained_windows) != len(self.depths) or min(self.pretrained_windows) < 0:
            message = (
                f"SwinV2Config: pretrained_windows must be {len(self.depths)} numbers, 0 or more, "
                f"as many as depths, got {self.pretrained_windows}. Change these fields together."
            )
            raise ConfigError(message)


def swin_v2_preset(
    size: str, window: int, side: int, drop_path_rate: float = 0.2, *, pretrained: bool = False
) -> SwinV2Config:
    """One published variant (section 4.1); pretrained at 192 pixels with windows of 12, or not."""
    embed_dim, depth, heads = {
        "tiny": (96, 6, 3),
        "small": (96, 18, 3),
        "base": (128, 18, 4),
        "large": (192, 18, 6),
    }[size]
    return SwinV2Config(
        embed_dim=embed_dim,
        depths=(2, 2, depth, 2),
        num_heads=(heads, 2 * heads, 4 * heads, 8 * heads),
        window_size=window,
        img_size=(side, side),
        drop_path_rate=drop_path_rate,
        pretrained_windows=(12, 12, 12, 6) if pretrained else (0, 0, 0, 0),
    )


class PositionBias(nn.Sequential):
    """A small network from the offset of two tokens to a bias for each head (section 3.3)."""

    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, num_heads, bias=False))

    def relative_position_bias(self, window: Size, reference: Size) -> Float[Tensor, "h N N"]:
        """Compute the bias of every pair of tokens; offsets are relative to `reference`."""
        weight: Tensor = next(self.parameters())
        # Equation 4: sign(d) log(1 + |d|), relative to the pre-training window.
        offsets = log_offsets(window, reference, device=weight.device, dtype=weight.dtype)
        # Keeps the bias in (0, 16), as the published code does.
        table = _BIAS_RANGE * torch.sigmoid(self(offsets))  # positions, h
        return expand_relative_position_bias(table, table_window=window, window=window)


class CosineWindowAttention(nn.Module):
    """Multi-head self-attention inside windows, by the cosine of queries and keys (section 3.2)."""

    recomputable = ("attend",)

    def __init__(self, config: SwinV2Config, stage: int) -> None:
        super().__init__()
        dim = config.dim(stage)
        self.window = config.windows[stage]
        self.pretrained_window = config.pretrained_windows[stage]
        self.num_heads = config.num_heads[stage]
        self.qkv = BiasedLinear(dim, 3 * dim)
        self.qv_bias = nn.Parameter(torch.zeros(2 * dim)) if config.qkv_bias else None
        # One temperature per head, stored as its logarithm; 10 at the start.
        self.logit_scale = nn.Parameter(torch.full((self.num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = PositionBias(config.bias_hidden, self.num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "B H W C"],
        layout: WindowLayout,
        dropout: float = 0.0,
        backend: BackendName = "auto",
    ) -> Float[Tensor, "B H W C"]:
        """Attend within each window."""
        fill = None if self.qv_bias is None else without_key_bias(self.qv_bias)
        dropout = dropout if self.training else 0.0
        return self.proj(self.attend(self.qkv(x, fill), fill, layout, dropout, backend))

    def attend(
        self,
        qkv: Float[Tensor, "B H W C3"],
        fill: Float[Tensor, " C3"] | None,
        layout: WindowLayout,
        dropout: float,
        backend: BackendName,
    ) -> Float[Tensor, "B H W C"]:
        """Attend within each window, before the output projection."""
        # Equation 2: cos(q, k) / tau + B. The scale is in the temperature.
        return window_attention(
            qkv,
            self.relative_position_bias(layout),
            layout,
            scale=1.0,
            fill=fill,
            temperature=self.temperature,
            dropout=dropout,
            backend=backend,
        )

    def relative_position_bias(self, layout: WindowLayout) -> Float[Tensor, "h N N"]:
        """Compute the bias of every pair of tokens of a window."""
        # Published fine-tuned models keep the window of pre-training as the unit.
        fixed = (self.pretrained_window,) * 2
        scaled_by = fixed if self.pretrained_window else layout.built_window
        return self.cpb_mlp.relative_position_bias(layout.window, scaled_by)

    @property
    def temperature(self) -> Float[Tensor, "h 1 1"]:
        """Factor of the cosines (1 / tau), at most 100."""
        return self.logit_scale.clamp(max=_LARGEST_LOG_SCALE).exp()


class SwinV2Block(nn.Module):
    """Window attention and MLP, each followed by a norm, around a shortcut (figure 1)."""

    def __init__(self, config: SwinV2Config, stage: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        dim = config.dim(stage)
        self.shifted = shifted
        self.attn_drop_rate = config.attn_drop_rate
        self.backend: BackendName = config.attention
        self.attn = CosineWindowAttention(config, stage)
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate, config.activation)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.drop_rate)
        self.drop_path = DropPath(drop_path)
        # Section 4.1: every branch starts at zero.
        nn.init.zeros_(self.norm1.weight)
        nn.init.zeros_(self.norm2.weight)

    def forward(
        self, x: Float[Tensor, "B H W C"], layout: WindowLayout
    ) -> Float[Tensor, "B H W C"]:
        """Apply attention and MLP."""

        def attend(x: Tensor) -> Tensor:
            attended = self.attn(x, layout, self.attn_drop_rate, self.backend)
            # Res-post-norm: LN(MSA(x)), added to x afterwards.
            return self.norm1(self.dropout(attended))

        x = self.drop_path.add(x, attend)
        return self.drop_path.add(x, lambda x: self.norm2(self.mlp(x)))


class PatchMergingV2(nn.Module):
    """Join 2 x 2 neighbours to one token of twice the width, and normalise that."""

    def __init__(self, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim, eps=norm_eps)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w C2"]:
        """Halve height and width, rounding up."""
        return self.norm(self.reduction(merge_neighbours(x)))


class SwinV2(Swin):
    """The whole backbone: that of V1 with other blocks and another merging."""

    block = SwinV2Block
    merging = PatchMergingV2

    def decays(self, name: str) -> bool:
        """Whether weight decay applies: not to positions and temperatures."""
        return ".cpb_mlp." not in name and not name.endswith(("absolute_pos_embed", "logit_scale"))
