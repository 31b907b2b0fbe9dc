# SPDX-License-Identifier: Apache-2.0
"""Small peer models with random weights, and comparison of muntin's models with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torchvision
import transformers
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.models.swin import Swin, SwinConfig
from muntin.models.vit import ViT, ViTConfig
from tests.layout_table import record_layout

TOLERANCE = 1e-5
NUM_CLASSES = 5

SWIN = SwinConfig(
    embed_dim=16,
    depths=(2, 2, 2),
    num_heads=(1, 2, 4),
    window_size=4,
    img_size=(32, 32),
    patch_size=2,
    out_indices=(0, 1, 2),
)
VIT = ViTConfig(embed_dim=24, depth=3, num_heads=3, patch_size=8, img_size=(32, 32))


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Perturb every parameter, so that swapped or missing ones change the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            scale = max(0.7 * fan_in**-0.5, 0.02) if parameter.ndim in (2, 4) else 0.2
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def network(config: SwinConfig | ViTConfig, num_classes: int = NUM_CLASSES) -> Network:
    body = Swin(config) if isinstance(config, SwinConfig) else ViT(config)
    return Network(body, LinearHead(body.embed_channels, num_classes)).eval()


def timm_swin(config: SwinConfig, num_classes: int = NUM_CLASSES) -> nn.Module:
    return TimmSwin(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=num_classes,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        strict_img_size=False,
    )


def torchvision_swin(config: SwinConfig, num_classes: int = NUM_CLASSES, **parts) -> nn.Module:
    return torchvision.models.SwinTransformer(
        [config.patch_size] * 2,
        config.embed_dim,
        list(config.depths),
        list(config.num_heads),
        [config.windows[0]] * 2,
        num_classes=num_classes,
        **parts,
    )


def transformers_swin(config: SwinConfig, num_classes: int = NUM_CLASSES) -> nn.Module:
    peer_config = transformers.SwinConfig(
        image_size=config.img_size[0],
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.windows[0],
        mlp_ratio=config.mlp_ratio,
        num_labels=num_classes,
    )
    return transformers.SwinForImageClassification(peer_config)


def timm_vit(config: ViTConfig, num_classes: int = NUM_CLASSES) -> nn.Module:
    return TimmViT(
        img_size=config.img_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=num_classes,
        class_token=config.class_token,
        global_pool="token" if config.pool == "token" else "avg",
        fc_norm=config.pool_norm == "after",
        init_values=config.layer_scale or None,
        no_embed_class=not config.prefix_positions,
        act_layer=config.activation,
        dynamic_img_size=True,
    )


def torchvision_vit(config: ViTConfig, num_classes: int = NUM_CLASSES) -> nn.Module:
    return torchvision.models.VisionTransformer(
        config.img_size[0],
        config.patch_size,
        config.depth,
        config.num_heads,
        config.embed_dim,
        int(config.embed_dim * config.mlp_ratio),
        num_classes=num_classes,
    )


def transformers_vit(config: ViTConfig, num_classes: int = NUM_CLASSES) -> nn.Module:
    peer_config = transformers.ViTConfig(
        image_size=config.img_size[0],
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=int(config.embed_dim * config.mlp_ratio),
        layer_norm_eps=config.norm_eps,
        num_labels=num_classes,
    )
    return transformers.ViTForImageClassification(peer_config)


SWINS: dict[str, Callable[..., nn.Module]] = {
    "timm": timm_swin,
    "torchvision": torchvision_swin,
    "transformers": transformers_swin,
}
VITS: dict[str, Callable[..., nn.Module]] = {
    "timm": timm_vit,
    "torchvision": torchvision_vit,
    "transformers": transformers_vit,
}


def run_peer(peer: nn.Module, images: Tensor) -> Tensor:
    """Logits of a peer at any size that it accepts."""
    if isinstance(peer, transformers.ViTForImageClassification):
        return peer(images, interpolate_pos_encoding=True).logits
    out = peer(images)
    return out if isinstance(out, Tensor) else out.logits


def batch_images(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


def logits_and_gradient(run: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a fixed random projection of them with respect to the pixels."""
    images = images.clone().requires_grad_()
    logits = run(images)
    mixture = torch.linspace(-1.0, 1.7, logits.shape[1])
    (gradient,) = torch.autograd.grad((logits * mixture).sum(), images)
    return logits.detach(), gradient


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value of theirs."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def assert_equal_outputs(model: nn.Module, peer: nn.Module, size: tuple[int, int]) -> float:
    """Logits and input gradients agree at this size, on random pixels; the difference of logits."""
    images = batch_images(size)
    logits, gradient = logits_and_gradient(model, images)
    their_logits, their_gradient = logits_and_gradient(lambda x: run_peer(peer, x), images)
    assert distance(logits, their_logits) < TOLERANCE
    assert distance(gradient, their_gradient) < TOLERANCE
    return float((logits - their_logits).abs().max())


def record_plain(model: nn.Module, dialect: str, peer: str, difference: float) -> None:
    """Add the row of a state dict as the peer itself has it."""
    record_layout(
        container="its state dict",
        prefix="",
        report=dialect,
        model=model,
        peer=peer,
        difference=difference,
    )


def with_windows(window_size: int | tuple[int, ...], img_size: tuple[int, int]) -> SwinConfig:
    return replace(SWIN, window_size=window_size, img_size=img_size)


def features_of_timm(peer: nn.Module, images: Tensor) -> list[Tensor]:
    """Maps of timm's feature extractor, channels first."""
    maps = peer.forward_intermediates(images, norm=False, intermediates_only=True)
    return list(maps)
