# SPDX-License-Identifier: Apache-2.0
"""Which networks are asked: a row for each family, task and head, all as small as they can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SWIN = "swin_nano_patch4_window4_64"
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": (64, 64)}


@dataclass(frozen=True, kw_only=True)
class FamilyCase:
    """A family of backbones.

    Attributes:
        model: Its name in the zoo.
        fields: Architecture.
        sizes: (height, width) of the images that it is shown.
        dialects: Formats of weights that it is written in.
    """

    model: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (72, 88))
    dialects: tuple[str, ...] = ()


_STAGES = {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}

FAMILIES: dict[str, FamilyCase] = {
    "swin": FamilyCase(
        model=SWIN, fields=_STAGES,
        dialects=("microsoft", "timm", "torchvision", "transformers"),
    ),
    "swin_v2": FamilyCase(
        model="swinv2_tiny_window8_256",
        fields={**_STAGES, "window_size": 4, "img_size": (64, 64), "bias_hidden": 16},
        dialects=("microsoft", "timm", "torchvision", "transformers"),
    ),
    "vit": FamilyCase(
        model="vit_tiny_patch16_224", fields=VIT, dialects=("google", "timm", "transformers")
    ),
    "deit_distilled": FamilyCase(
        model="deit_tiny_distilled_patch16_224", fields=VIT, dialects=("timm", "transformers")
    ),
    "deit3": FamilyCase(model="deit3_small_patch16_224", fields=VIT, dialects=("timm",)),
    "t2t_vit": FamilyCase(
        model="t2t_vit_7",
        fields={
            "embed_dim": 16, "depth": 2, "num_heads": 2, "token_dim": 8, "img_size": (64, 64),
        },
        sizes=((64, 64), (80, 96)),
    ),
    "hiera": FamilyCase(
        model="hiera_tiny_224",
        fields={
            "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": 1, "img_size": (64, 64),
        },
        dialects=("timm",),
    ),
    "mae": FamilyCase(model="mae_vit_base_patch16", fields=VIT, dialects=("timm",)),
    "simmim_vit": FamilyCase(model="simmim_vit_base_patch16_224", fields=VIT),
    "simmim_swin": FamilyCase(
        model="simmim_swin_base_window6_192",
        fields={**_STAGES, "window_size": 4, "img_size": (64, 64)},
    ),
    "vitpose": FamilyCase(model="vitpose_small", fields=VIT),
    "timm_vit": FamilyCase(model="timm:test_vit", sizes=((160, 160),)),
    "timm_convnext": FamilyCase(model="timm:test_convnext", sizes=((64, 64), (72, 88))),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """A network that is trained through `muntin.train`.

    Attributes:
        task: Task.
        data: Path below the folder of data.
        model: Name in the zoo.
        head: Name of the head; empty for classifiers.
        side: Of the images in pixels.
        settings: What else is set.
        augmented: Whether images are changed at random as the recipe says; what rounding does to
            resizing then reaches the losses.
        slow: Whether the test of it is left out unless asked for.
    """

    task: str
    data: str
    model: str = SWIN
    head: str = ""
    side: int = 48
    settings: Mapping[str, Any] = field(default_factory=dict)
    augmented: bool = False
    slow: bool = True


_SWIN = {
    "model.embed_dim": 8, "model.depths": "2,1", "model.num_heads": "1,2",
    "model.out_indices": "0,1",
}  # fmt: skip
_SWIN_3 = {"model.embed_dim": 4, "model.depths": "1,1,1", "model.num_heads": "1,1,2"}
_VIT = {"model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "model.patch_size": 8}
_FCOS = {**_SWIN_3, "head.neck.channels": 8, "head.num_convs": 1}
_RCNN = {
    **_SWIN_3, "head.neck.channels": 8, "head.box_dim": 16, "head.roi_size": 3,
    "head.roi_batch": 16, "head.rpn_batch": 16, "head.pre_nms": "50,50",
    "head.proposals": "20,20",
}  # fmt: skip
_CASCADE = {**_RCNN, "head.box_convs": 1, "head.box_linears": 1}
_MASKS = {"head.mask_dim": 8, "head.mask_convs": 1}
_MAPS = {**_SWIN_3, "head.channels": 8}
_STILL = {
    "classify": {
        "augment.crop_scale": 1, "augment.crop_ratio": 1, "augment.auto": "none",
        "augment.erase": 0,
    },
    "detect": {"augment.scale": "1,1", "augment.jitter": 0},
    "instance": {"augment.scale": "1,1", "augment.jitter": 0},
    "semantic": {"augment.scale": "1,1", "augment.jitter": 0},
    "pose": {
        "augment.scale": 0, "augment.shift": 0, "augment.rotate": 0, "augment.half_body": 0,
        "augment.jitter": 0,
    },
    "keypoint_rcnn": {"augment.scale": "1,1", "augment.jitter": 0},
}  # fmt: skip


def still(case: TrainCase) -> Mapping[str, Any]:
    """Settings under which training images stay as they are but for mirroring."""
    if case.augmented:
        return {}
    return _STILL["keypoint_rcnn" if "rcnn" in case.head and case.task == "pose" else case.task]


def _family(model: str, settings: Mapping[str, Any], **more: Any) -> TrainCase:
    return TrainCase(
        task="classify", data="classify", model=model, side=more.pop("side", 32),
        settings=settings, **more,
    )  # fmt: skip


TRAININGS: dict[str, TrainCase] = {
    # every family, as a classifier
    "classify-swin": _family(SWIN, _SWIN, slow=False),
    "classify-several": TrainCase(
        task="classify", data="classify/several.csv", side=32, settings=_SWIN
    ),
    "classify-swin_v2": _family("swinv2_tiny_window8_256", {
        **_SWIN, "model.window_size": 4, "model.bias_hidden": 16,
        "model.pretrained_windows": "0,0",
    }),
    "classify-vit": _family("vit_tiny_patch16_224", _VIT),
    "classify-deit_distilled": _family("deit_tiny_distilled_patch16_224", _VIT),
    "classify-deit3": _family("deit3_small_patch16_224", _VIT),
    "classify-mae": _family("mae_vit_base_patch16", _VIT),
    "classify-simmim_vit": _family("simmim_vit_base_patch16_224", _VIT),
    "classify-t2t_vit": _family("t2t_vit_7", {
        "model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "model.token_dim": 8,
    }),
    "classify-hiera": _family("hiera_tiny_224", {
        "model.embed_dim": 8, "model.depths": "1,1,1,1", "model.num_heads": 1,
    }),
    "classify-timm": _family("timm:test_convnext", {}, side=32),
    # how training itself is done
    "classify-muon": _family(SWIN, {**_SWIN, "train.optimizer": "muon"}),
    "classify-layer_decay": _family(SWIN, {
        **_SWIN, "train.layer_decay": 0.5, "train.accumulate": 2, "train.batch_size": 3,
    }),
    "classify-vit_layer_decay": _family("vit_tiny_patch16_224", {
        **_VIT, "train.layer_decay": 0.5, "train.freeze": 1,
    }),
    "classify-freeze": _family(SWIN, {**_SWIN, "train.freeze": 1}),
    "classify-checkpointing": _family(SWIN, {**_SWIN, "train.checkpointing": "true"}),
    "classify-mixed": _family(
        SWIN, {**_SWIN, "augment.mixup": 0.8, "augment.cutmix": 1, "train.drop_path_rate": 0.1},
        augmented=True,
    ),
    # every head
    "fcos_small": TrainCase(
        task="detect", data="scenes", head="fcos_small", settings=_FCOS, slow=False
    ),
    "faster_rcnn_small": TrainCase(
        task="detect", data="scenes", head="faster_rcnn_small", settings=_RCNN
    ),
    "cascade_rcnn_small": TrainCase(
        task="detect", data="scenes", head="cascade_rcnn_small", settings=_CASCADE
    ),
    "mask_rcnn_small": TrainCase(
        task="instance", data="scenes", head="mask_rcnn_small", settings={**_RCNN, **_MASKS},
    ),
    "cascade_mask_rcnn_small": TrainCase(
        task="instance", data="scenes", head="cascade_mask_rcnn_small",
        settings={**_CASCADE, **_MASKS},
    ),
    "fcos_vit": TrainCase(
        task="detect", data="scenes", model="vit_tiny_patch16_224", head="fcos_small",
        settings={**_VIT, "head.neck.channels": 16, "head.num_convs": 1},
    ),
    "light_small": TrainCase(
        task="semantic", data="maps", head="light_small", settings=_MAPS, slow=False
    ),
    "upernet": TrainCase(
        task="semantic", data="maps", head="upernet",
        settings={**_MAPS, "head.aux_channels": 8},
    ),
    "light_pose_small": TrainCase(
        task="pose", data="frames", head="light_pose_small", settings=_MAPS, slow=False
    ),
    "simple_baseline": TrainCase(
        task="pose", data="scenes", head="simple_baseline", settings=_MAPS
    ),
    "vitpose": TrainCase(
        task="pose", data="frames", model="vitpose_small", head="vitpose",
        settings={**_VIT, "model.patch_size": 16, "head.channels": 8},
    ),
    "vitpose_simple": TrainCase(
        task="pose", data="frames", model="vitpose_small", head="vitpose_simple",
        settings={**_VIT, "model.patch_size": 16, "head.channels": 8},
    ),
    "keypoint_rcnn_small": TrainCase(
        task="pose", data="scenes", head="keypoint_rcnn_small",
        settings={**_RCNN, **_MASKS},
    ),
    # with images changed at random as recipes say
    "augmented-detect": TrainCase(
        task="detect", data="scenes", head="fcos_small", settings=_FCOS, augmented=True
    ),
    "augmented-instance": TrainCase(
        task="instance", data="scenes", head="mask_rcnn_small", settings={**_RCNN, **_MASKS},
        augmented=True,
    ),
    "augmented-semantic": TrainCase(
        task="semantic", data="maps", head="light_small", settings=_MAPS, augmented=True
    ),
    "augmented-pose": TrainCase(
        task="pose", data="scenes", head="light_pose_small", settings=_MAPS, augmented=True
    ),
}  # fmt: skip


OLD_RUNS: dict[str, tuple[str, int]] = {
    "classify": ("classify-swin", 40),
    "several": ("classify-several", 40),
    "detect": ("fcos_small", 80),
    "instance": ("mask_rcnn_small", 120),
    "semantic": ("light_small", 200),
    "pose": ("light_pose_small", 60),
    "keypoint_rcnn": ("keypoint_rcnn_small", 60),
}
"""Run folder that is kept, to the case that it was trained as and for how many epochs."""

STOPPED = "stopped"
"""The run folder that was stopped between two validations, to be resumed."""

OLD_FILES: dict[str, tuple[str, str]] = {
    "classify.onnx": ("classify", "onnx"),
    "detect.pt2": ("detect", "torch"),
}
"""Exported file that is kept, to its run and its format."""
