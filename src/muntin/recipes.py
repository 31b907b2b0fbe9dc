# SPDX-License-Identifier: Apache-2.0
"""Presets of training and augmentation: how each kind of task is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from muntin.data.classification_transforms import AugmentConfig
from muntin.data.dense_transforms import DetectionAugmentConfig, SegmentationAugmentConfig
from muntin.data.keypoint_transforms import KeypointAugmentConfig
from muntin.errors import ConfigError, unknown_name
from muntin.samples import TaskKind
from muntin.train_config import TrainConfig

AnyAugmentConfig = (
    AugmentConfig | DetectionAugmentConfig | SegmentationAugmentConfig | KeypointAugmentConfig
)
"""Each has a `kind`, which files name; all of them are a `muntin.data.transforms.Augmentation`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A preset of training and augmentation settings, and the publication or code it is from."""

    train: TrainConfig
    augment: AnyAugmentConfig
    source: str


IMAGENET = Recipe(
    train=TrainConfig(recipe="imagenet"),
    augment=AugmentConfig(auto="randaugment", jitter=0.4, erase=0.25, mixup=0.8, cutmix=1.0),
    source="microsoft/Swin-Transformer config.py, the published Swin-T run on ImageNet-1k",
)

FINETUNE = Recipe(
    train=TrainConfig(
        recipe="finetune",
        epochs=30,
        learning_rate=1e-3,
        layer_decay=0.75,
        warmup=0.1,
        weight_decay=0.05,
        ema_decay=0.999,
        drop_path_rate=0.1,
    ),
    augment=AugmentConfig(crop_scale=0.35, auto="trivialaugment", erase=0.1),
    source="ours, after the fine-tuning of SimMIM and MAE (layer decay, short cosine)",
)

SMALL_DATA = Recipe(
    train=TrainConfig(
        recipe="small-data",
        epochs=60,
        batch_size=128,
        optimizer="muon",
        learning_rate=2e-3,
        lr_batch=0,
        betas=(0.9, 0.95),
        warmup=0.05,
        decay="linear",
        min_lr=0.001,
        drop_path_rate=0.0,
        init="mimetic",
        start_size=0.5,
        full_size_from=0.5,
    ),
    augment=AugmentConfig(crop_scale=0.7, crop_ratio=1.2),
    source="ours; docs/lab-notes",
)

# Dense tasks: the learning rate is for their own batch size, and labels are not smoothed.
_DENSE = TrainConfig(lr_batch=0, label_smoothing=0.0)

COCO_3X = Recipe(
    train=replace(
        _DENSE,
        recipe="coco-3x",
        epochs=36,
        batch_size=16,
        learning_rate=1e-4,
        warmup=500 / (36 * 7330),
        decay="steps",
        steps=(27 / 36, 33 / 36),
        clip_grad=0.0,
        drop_path_rate=0.2,
    ),
    augment=DetectionAugmentConfig(short_sides=tuple(range(480, 801, 32)), crop=0.5),
    source="SwinTransformer/Swin-Transformer-Object-Detection, the published Mask R-CNN runs: 36 "
    "epochs at 16 images per step, at --img-size 800x1333",
)

FINETUNE_DETECTION = Recipe(
    train=replace(
        _DENSE,
        recipe="finetune",
        epochs=40,
        batch_size=4,
        learning_rate=2e-4,
        layer_decay=0.9,
        warmup=0.05,
        ema_decay=0.999,
        drop_path_rate=0.1,
    ),
    augment=DetectionAugmentConfig(scale=(0.6, 1.6), jitter=0.3),
    source="ours: pretrained backbone, few images, large-scale jitter as in arXiv 2012.07177",
)

SMALL_DATA_DETECTION = Recipe(
    train=replace(
        _DENSE,
        recipe="small-data",
        epochs=120,
        batch_size=4,
        learning_rate=1e-3,
        warmup=0.03,
        clip_grad=10.0,
        ema_decay=0.998,
        drop_path_rate=0.0,
        init="mimetic",
    ),
    augment=DetectionAugmentConfig(scale=(0.7, 1.5), jitter=0.3),
    source="ours; docs/lab-notes",
)

ADE20K = Recipe(
    train=replace(
        _DENSE,
        recipe="ade20k",
        epochs=127,
        batch_size=16,
        learning_rate=6e-5,
        weight_decay=0.01,
        warmup=1500 / 160_000,
        decay="linear",
        min_lr=0.0,
        clip_grad=0.0,
        drop_path_rate=0.3,
    ),
    augment=SegmentationAugmentConfig(jitter=0.5),
    source="SwinTransformer/Swin-Transformer-Semantic-Segmentation, the published UPerNet runs: "
    "160,000 steps of 16 images, at --img-size 512 and --set data.short_side=512",
)

FINETUNE_SEGMENTATION = Recipe(
    train=replace(FINETUNE_DETECTION.train, epochs=80),
    augment=SegmentationAugmentConfig(scale=(0.6, 1.6), jitter=0.3),
    source="ours: pretrained backbone, few images",
)

SMALL_DATA_SEGMENTATION = Recipe(
    train=replace(
        SMALL_DATA_DETECTION.train, epochs=300, optimizer="muon", muon_learning_rate=0.002
    ),
    augment=SegmentationAugmentConfig(scale=(0.6, 1.6), dominant=0.9, jitter=0.3),
    source="ours; docs/lab-notes",
)

COCO_POSE = Recipe(
    train=replace(
        _DENSE,
        recipe="coco-pose",
        epochs=210,
        batch_size=512,
        learning_rate=5e-4,
        weight_decay=0.1,
        layer_decay=0.75,
        warmup=500 / (210 * 293),
        decay="steps",
        steps=(170 / 210, 200 / 210),
        clip_grad=1.0,
        drop_path_rate=0.3,
    ),
    augment=KeypointAugmentConfig(),
    source="ViTAE-Transformer/ViTPose, ViTPose-B on COCO: 512 instances per step",
)

FINETUNE_KEYPOINTS = Recipe(
    train=replace(FINETUNE_DETECTION.train, epochs=100, batch_size=16),
    augment=KeypointAugmentConfig(rotation=20.0, half_body=0.0, scale=0.25, shift=0.05, jitter=0.3),
    source="ours: pretrained backbone, few instances",
)

SMALL_DATA_KEYPOINTS = Recipe(
    train=replace(SMALL_DATA_SEGMENTATION.train, epochs=300, batch_size=4),
    augment=KeypointAugmentConfig(rotation=15.0, half_body=0.0, scale=0.2, shift=0.08, jitter=0.3),
    source="ours; docs/lab-notes",
)


PRETRAIN = Recipe(
    train=TrainConfig(
        recipe="pretrain",
        epochs=400,
        learning_rate=1.5e-4,
        lr_batch=256,
        betas=(0.9, 0.95),
        warmup=0.05,
        min_lr=0.0,
        label_smoothing=0.0,
        drop_path_rate=0.0,
    ),
    augment=AugmentConfig(crop_scale=0.2),
    source="MAE (arXiv 2111.06377, appendix A.1, 800 or 1,600 epochs of 4,096 images); SimMIM "
    "(arXiv 2111.09886) is close, with clipped gradients as here",
)

PRETRAIN_SMALL = Recipe(
    train=replace(
        PRETRAIN.train, recipe="pretrain-small", batch_size=128, learning_rate=1e-3, lr_batch=0
    ),
    augment=AugmentConfig(crop_scale=0.2),
    source="ours: as pretrain, for few or small images and small batches",
)

PRETRAIN_VIEWS = Recipe(
    train=replace(PRETRAIN_SMALL.train, recipe="pretrain-views", betas=(0.9, 0.999)),
    augment=AugmentConfig(crop_scale=0.2, jitter=0.4),
    source="ours, after LeJEPA (arXiv 2511.08544): crops and colours that differ between views",
)


def _by_name(*recipes: Recipe) -> dict[str, Recipe]:
    return {recipe.train.recipe: recipe for recipe in recipes}


RECIPES: dict[TaskKind, dict[str, Recipe]] = {
    "classification": _by_name(IMAGENET, FINETUNE, SMALL_DATA),
    "detection": _by_name(COCO_3X, FINETUNE_DETECTION, SMALL_DATA_DETECTION),
    "segmentation": _by_name(ADE20K, FINETUNE_SEGMENTATION, SMALL_DATA_SEGMENTATION),
    "keypoints": _by_name(COCO_POSE, FINETUNE_KEYPOINTS, SMALL_DATA_KEYPOINTS),
    "pretraining": _by_name(PRETRAIN, PRETRAIN_SMALL, PRETRAIN_VIEWS),
}
"""Recipes by kind of task and name."""

AUGMENTS: dict[TaskKind, type[AnyAugmentConfig]] = {
    "classification": AugmentConfig,
    "detection": DetectionAugmentConfig,
    "segmentation": SegmentationAugmentConfig,
    "keypoints": KeypointAugmentConfig,
    "pretraining": AugmentConfig,
}
"""Type of the augmentation config by kind of task."""


def find_recipe(name: str, kind: TaskKind = "classification") -> Recipe:
    """Return a preset."""
    if name not in RECIPES[kind]:
        raise ConfigError(unknown_name("recipe", name, RECIPES[kind]))
    return RECIPES[kind][name]
