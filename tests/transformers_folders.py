# SPDX-License-Identifier: Apache-2.0
"""Folders as the transformers library writes them, of tiny models with random weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from muntin.heads.transformers_model import find_architecture

_STAGES = ["stage2", "stage3", "stage4"]
_SIDES = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
_RESNET = {"model_type": "resnet", "layer_type": "basic", "out_features": _STAGES, **_SIDES}
_HGNET = {
    "model_type": "hgnet_v2", "stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [8, 16, 16, 24],
    "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1], **_SIDES,
    "hidden_sizes": [8, 16, 16, 24], "out_features": _STAGES,
}  # fmt: skip
_SWIN = {
    "model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2], "window_size": 4, "out_features": ["stage1", *_STAGES],
}  # fmt: skip
_REAL_TIME = {
    "backbone_config": {**_RESNET, "model_type": "rt_detr_resnet"}, "encoder_hidden_dim": 16,
    "encoder_in_channels": [12, 16, 24], "encoder_layers": 1, "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2, "d_model": 16, "num_queries": 12, "num_denoising": 6,
    "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16, "decoder_layers": 2,
    "decoder_attention_heads": 2,
}  # fmt: skip
_DETR = {
    "backbone_config": _RESNET, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, "num_queries": 7,
}  # fmt: skip
_LIGHT = {
    "d_model": 32, "decoder_layers": 1, "decoder_self_attention_heads": 2, "num_queries": 7,
    "decoder_cross_attention_heads": 2, "decoder_ffn_dim": 16, "group_detr": 2,
    "decoder_n_points": 2,
}  # fmt: skip
_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}
_DECODER = {
    "model_type": "detr", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, "num_queries": 9,
}  # fmt: skip
_SQUARE = {"height": 64, "width": 96}
_EDGES = {"shortest_edge": 60, "longest_edge": 97}

MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rt_detr": ("RTDetr", {"size": _SQUARE}, _REAL_TIME),
    "rt_detr_v2": ("RTDetr", {"size": _SQUARE}, _REAL_TIME),
    "d_fine": ("RTDetr", {"size": _SQUARE}, {
        **_REAL_TIME, "backbone_config": _HGNET, "encoder_in_channels": [16, 16, 24],
    }),
    "detr": ("Detr", {"size": _EDGES}, _DETR),
    "conditional_detr": ("ConditionalDetr", {"size": _EDGES}, _DETR),
    "deformable_detr": ("DeformableDetr", {"size": _EDGES}, {
        **_DETR, "encoder_n_points": 2, "decoder_n_points": 2, "num_feature_levels": 4,
    }),
    "yolos": ("Yolos", {"size": _EDGES}, {
        **_VIT, "image_size": [64, 64], "intermediate_size": 16, "num_detection_tokens": 7,
        "use_mid_position_embeddings": False,
    }),
    "rf_detr": ("RfDetr", {"size": {"height": 64, "width": 64}}, {**_LIGHT, "backbone_config": {
        **_VIT, "model_type": "rf_detr_dinov2", "patch_size": 16, "num_windows": 2,
        "out_features": ["stage1", "stage2"],
    }}),
    "rf_detr_instance": ("RfDetr", {"size": {"height": 64, "width": 64}}, {
        **_LIGHT, "mask_downsample_ratio": 4, "backbone_config": {
            **_VIT, "model_type": "rf_detr_dinov2", "patch_size": 16, "num_windows": 2,
            "out_features": ["stage1", "stage2"],
    }}),
    "lw_detr": ("DeformableDetr", {"size": {"height": 64, "width": 128}}, {
        **_LIGHT, "projector_scale_factors": [1.0], "backbone_config": {
            **_VIT, "model_type": "lw_detr_vit", "patch_size": 16, "num_windows": 4,
            "pretrain_image_size": 64, "window_block_indices": [0],
            "out_features": ["stage1", "stage2"],
    }}),
    "segformer": ("Segformer", {"size": _SQUARE}, {
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
        "num_attention_heads": [1, 1, 2, 2],
    }),
    "upernet": ("Segformer", {"size": _SQUARE}, {
        "backbone_config": _SWIN, "hidden_size": 16, "auxiliary_in_channels": 32,
        "auxiliary_channels": 8,
    }),
    "dpt": ("DPT", {"size": {"height": 64, "width": 64}}, {
        **_VIT, "num_hidden_layers": 4, "intermediate_size": 16, "fusion_hidden_size": 16,
        "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8],
    }),
    "mask2former": ("Mask2Former", {"size": _EDGES}, {
        "backbone_config": _SWIN, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
        "encoder_feedforward_dim": 16, "encoder_layers": 1, "decoder_layers": 2,
        "num_attention_heads": 2, "dim_feedforward": 16, "num_queries": 9,
    }),
    "maskformer": ("MaskFormer", {"size": _EDGES}, {
        "backbone_config": _SWIN, "decoder_config": _DECODER, "fpn_feature_size": 32,
        "mask_feature_size": 16,
    }),
    "eomt": ("Eomt", {
        "size": {"shortest_edge": 64, "longest_edge": None}, "do_split_image": True,
    }, {
        **_VIT, "num_hidden_layers": 3, "patch_size": 16, "num_blocks": 1, "num_queries": 9,
        "num_upscale_blocks": 1,
    }),
    "eomt_dinov3": ("Eomt", {
        "size": {"shortest_edge": 64, "longest_edge": 64}, "do_split_image": False, "do_pad": True,
    }, {
        **_VIT, "num_hidden_layers": 3, "patch_size": 16, "num_blocks": 1, "num_queries": 9,
        "num_upscale_blocks": 2, "intermediate_size": 16,
    }),
}  # fmt: skip
"""Name -> image processor, its fields, and the fields of the model."""

NAMES = ("cat", "dog", "N/A", "N/A")


def write_folder(
    name: str, folder: Path, *, spread: float = 0.9, settled: bool = False
) -> tuple[Any, Any]:
    """Write a model and its processor; gives both, for comparison.

    `spread`: of random weights, such that answers to different images differ.
    `settled`: whether batch norms know what they normalise, as trained ones do; otherwise scores of
    an encoder's cells are equal but for rounding, which then chooses the queries.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    processor, steps, fields = MODELS[name]
    kind = getattr(transformers, find_architecture(name).model_class)
    torch.manual_seed(0)
    labels = dict(enumerate(NAMES))
    model = kind(kind.config_class.from_dict({**fields, "id2label": labels})).eval()
    for parameter in model.parameters():
        if spread and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=spread * parameter[0].numel() ** -0.5)
    if settled:
        norms = [one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
            norm.reset_running_stats()
            norm.train()
        with torch.no_grad():
            model(torch.rand(8, 3, 96, 96))
        model.eval()
    model.save_pretrained(folder)
    images = getattr(transformers, f"{processor}ImageProcessor")(**steps)
    images.save_pretrained(folder)
    return model, images
