# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Other libraries' implementations of a model, with the same weights.

Inference engines (ONNX Runtime, OpenVINO) run timm's model, because that is what a user without
muntin would convert.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from muntin.errors import ConfigError, unknown_name
from muntin.heads.network import Network
from muntin.weights.dialects import to_dialect

__all__ = ["PEERS", "build_peer"]

PEERS = ("timm", "torchvision", "transformers", "onnxruntime", "openvino")
"""Names that ``--peers`` accepts. The last two run timm's model."""


def build_peer(name: str, model: str, network: Network) -> nn.Module | None:
    """Build a peer's own model with the weights of muntin's.

    Args:
        name: "timm", "torchvision" or "transformers".
        model: Name in the zoo, which is timm's.
        network: Muntin's model, with a classifier.

    Returns:
        The model in evaluation mode; None if the peer does not have it.

    Raises:
        ConfigError: The peer is unknown.
    """
    build = _BUILDERS.get(name)
    if build is None:
        raise ConfigError(unknown_name("peer", name, PEERS))
    peer = build(model)
    if peer is None:
        return None
    state = to_dialect(network, name)
    if name == "transformers":  # only its loader maps the keys of published files
        loaded: nn.Module = type(peer).from_pretrained(None, config=peer.config, state_dict=state)  # type: ignore[attr-defined]
        return loaded.eval().requires_grad_(False)
    missing, unexpected = peer.load_state_dict(state, strict=False)
    # Missing buffers are computed by the peer; a missing parameter would stay random.
    buffers = dict(peer.named_buffers())
    if unexpected or any(key not in buffers for key in missing):
        return None
    return peer.eval().requires_grad_(False)


def _timm(model: str) -> nn.Module | None:
    import timm

    return timm.create_model(model) if timm.is_model(model) else None


def _torchvision(model: str) -> nn.Module | None:
    from torchvision import models

    builder = {
        "swin_tiny_patch4_window7_224": models.swin_t,
        "swin_small_patch4_window7_224": models.swin_s,
        "swin_base_patch4_window7_224": models.swin_b,
        "vit_base_patch16_224": models.vit_b_16,
        "vit_large_patch16_224": models.vit_l_16,
    }.get(model)
    return None if builder is None else builder(weights=None)


def _transformers(model: str) -> nn.Module | None:
    import transformers

    sizes = {
        "swin_tiny_patch4_window7_224": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
        "swin_small_patch4_window7_224": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
        "swin_base_patch4_window7_224": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    }
    if model in sizes:
        width, depths, heads = sizes[model]
        config = transformers.SwinConfig(embed_dim=width, depths=depths, num_heads=heads)
        config.num_labels = 1000
        return transformers.SwinForImageClassification(config)
    widths = {"vit_small_patch16_224": (384, 6), "vit_base_patch16_224": (768, 12)}
    if model not in widths:
        return None
    width, count = widths[model]
    vit = transformers.ViTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=count,
        layer_norm_eps=1e-6,
    )
    vit.num_labels = 1000
    return transformers.ViTForImageClassification(vit)


_BUILDERS: dict[str, Callable[[str], nn.Module | None]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}


class Logits(nn.Module):
    """A peer whose output is reduced to the logits."""

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, K)."""
        output = self.peer(images)
        logits: torch.Tensor = getattr(output, "logits", output)
        return logits
