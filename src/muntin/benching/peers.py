# SPDX-License-Identifier: Apache-2.0
"""What a benchmark measures, and other libraries' implementations of a model to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from muntin.configs import check_range
from muntin.engines.engine_table import is_installed
from muntin.errors import ConfigError, unknown_name
from muntin.heads.network import Network
from muntin.models.swin import SwinConfig
from muntin.shapes import Size
from muntin.weights.dialects import to_dialect
from muntin.zoo.model_building import canonical_name, find_model

PEERS = ("timm", "torchvision", "transformers", "onnxruntime", "openvino")
"""Libraries to compare with. The last two run timm's model, as a user without muntin would."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRequest:
    """What to measure, and compared with whom.

    Peers that are not installed, or lack the model, are skipped; `log` receives the reasons and
    the progress. A batch of 1 measures latency; the default size (pixels) is the model's own.
    With `run`, a run folder or an exported file, its predictions are measured instead of the model.
    """

    model: str
    peers: Sequence[str] = PEERS
    batch_size: int = 8
    size: Size | None = None
    rounds: int = 5
    compiled: bool = False
    log: Callable[[str], None] = lambda line: None
    run: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds"):
            check_range(name, getattr(self, name), 1, 10**6)
        for peer in self.peers:
            if peer not in PEERS:
                raise ConfigError(unknown_name("peer", peer, PEERS))

    @property
    def img_size(self) -> Size:
        """(height, width) of the images in pixels."""
        return self.size or find_model(self.model).config.img_size

    def select_peers(self, offered: Sequence[str]) -> list[str]:
        """Select the requested peers that are installed and take part in a benchmark."""
        chosen = []
        for name in self.peers:
            if name not in offered:
                self.log(f"skipped {name}: it does not take part in this benchmark")
            elif not is_installed(name):
                self.log(f"skipped {name}: not installed")
            else:
                chosen.append(name)
        return chosen

    def describe(self, kind: str, rows: list[dict[str, Any]], **more: object) -> dict[str, Any]:
        """Return the result of a benchmark: its settings, `more`, and one row per case."""
        return {
            "kind": kind,
            "model": self.model,
            "img_size": list(self.img_size),
            "batch_size": self.batch_size,
            "threads": torch.get_num_threads(),
            **more,
            "contestants": rows,
        }


class Logits(nn.Module):
    """A peer whose output is reduced to the logits."""

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, K)."""
        output = self.peer(images)
        return getattr(output, "logits", output)


def build_peers(
    request: BenchRequest, names: Sequence[str], network: Network
) -> dict[str, nn.Module]:
    """Build the peers' models (images to logits) with the weights of muntin's classifier.

    The request's `log` receives the reason for every peer that is skipped.
    """
    found: dict[str, nn.Module] = {}
    size = request.img_size
    for name in names:
        built = build_peer(name, canonical_name(request.model), network)
        if built is None:
            request.log(f"skipped {name}: it does not have this model")
        elif not _accepts(built, size):
            request.log(f"skipped {name}: its model does not accept {size[0]} x {size[1]} pixels")
        else:
            found[name] = Logits(built)
    return found


def build_peer(name: str, model: str, network: Network) -> nn.Module | None:
    """Build a peer's own model with the weights of muntin's classifier; None if it has none.

    `model` is the name in the zoo, which is timm's. The model is in evaluation mode.
    """
    peer = BUILDERS[name](model, network)
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


@torch.no_grad()
def _accepts(peer: nn.Module, size: tuple[int, int]) -> bool:
    try:
        peer(torch.zeros(1, 3, *size))
    except (AssertionError, RuntimeError, ValueError):  # libraries raise different types
        return False
    return True


def make_deterministic(module: nn.Module) -> nn.Module:
    """Put the module in training mode with gradients, but without dropout and drop path."""
    module.train().requires_grad_(True)
    for part in module.modules():
        name = type(part).__name__
        if "Drop" in name or name == "StochasticDepth":
            part.eval()
    return module


def _timm(model: str, network: Network) -> nn.Module | None:
    import timm

    return timm.create_model(model) if timm.is_model(model) else None


def _torchvision(model: str, network: Network) -> nn.Module | None:
    from torchvision import models

    name = {
        "swin_tiny_patch4_window7_224": "swin_t",
        "swin_small_patch4_window7_224": "swin_s",
        "swin_base_patch4_window7_224": "swin_b",
        "vit_base_patch16_224": "vit_b_16",
        "vit_large_patch16_224": "vit_l_16",
    }.get(model)
    return models.get_model(name, weights=None) if name else None


def _transformers(model: str, network: Network) -> nn.Module | None:
    import transformers as hf

    if not model.endswith(("_patch4_window7_224", "vit_small_patch16_224", "vit_base_patch16_224")):
        return None
    config: Any = network.backbone.config
    if isinstance(config, SwinConfig):
        swin = hf.SwinConfig(
            embed_dim=config.embed_dim, depths=[*config.depths], num_heads=[*config.num_heads]
        )
        swin.num_labels = 1000
        return hf.SwinForImageClassification(swin)
    vit = hf.ViTConfig(
        hidden_size=config.embed_dim,
        intermediate_size=4 * config.embed_dim,
        num_attention_heads=config.num_heads,
        layer_norm_eps=1e-6,
    )
    vit.num_labels = 1000
    return hf.ViTForImageClassification(vit)


BUILDERS: dict[str, Callable[[str, Network], nn.Module | None]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
"""From a name in the zoo and muntin's model to a peer's own; None if the peer lacks it."""
