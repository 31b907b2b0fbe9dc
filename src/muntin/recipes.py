# SPDX-License-Identifier: Apache-2.0
"""Training settings (`TrainConfig`), where training runs (`MachineConfig`), and presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from muntin.configs import check_range
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.dense_transforms import DetectionAugmentConfig, SegmentationAugmentConfig
from muntin.data.keypoint_transforms import KeypointAugmentConfig
from muntin.errors import ConfigError, unknown_name
from muntin.samples import TaskKind

AnyAugmentConfig = (
    AugmentConfig | DetectionAugmentConfig | SegmentationAugmentConfig | KeypointAugmentConfig
)
"""Each has a `kind`, which files name; all of them are a `muntin.data.transforms.Augmentation`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        recipe: Name of the preset that gave the other fields their values.
        epochs: Passes over the training images.
        max_time_s: Wall time for everything, in seconds; 0 = no limit. With a limit the learning
            rate schedule follows the time instead of the epochs.
        batch_size: Images per step, over all devices; 0 = by the size of images and data set.
        accumulate: Steps whose gradients are accumulated for one weight update.
        optimizer: "adamw"; or "muon" for the matrices of the blocks, with adamw for the rest.
        learning_rate: Peak learning rate for a batch of `lr_batch` images, scaled linearly to the
            effective batch; not scaled if `lr_batch` is 0.
        lr_batch: Batch size that the learning rate refers to; 0 = no scaling.
        muon_learning_rate: Peak learning rate of muon, for updates of the size of adamw's; never
            scaled.
        betas: Betas of adamw.
        weight_decay: Decoupled weight decay; not on biases, norms, position embeddings, relative
            position biases and tokens.
        layer_decay: Factor on the learning rate from each block to the one before; 1 = off.
        warmup: Part of the training with linear warmup.
        decay: Decay of the learning rate after warmup; "steps" divides it by 10 at each of `steps`.
        steps: When to do so, as parts of the training.
        min_lr: Final learning rate as a part of the peak; no effect on "steps".
        clip_grad: Maximum norm of the gradient; 0 = off.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: Whether to weight the loss of each class by its inverse frequency.
        ema_decay: Decay of the exponential moving average of the weights, which is then evaluated
            and saved; 0 = off.
        drop_path_rate: Replaces that of the model; "model" keeps it.
        init: Initialisation of fresh weights: as published, or "mimetic" (`muntin.nn.mimetic`).
        freeze: Number of frozen leading stages (blocks of a ViT), the patch embedding included;
            -1 freezes the whole backbone.
        checkpointing: Whether activations of blocks are recomputed in the backward pass: less
            memory, more time.
        residual: "half" runs the residual stream between blocks in bf16 or fp16, the precision of
            the products: half of its memory, less accuracy.
        recomputed_layers: Whether norms, attention weights and hidden channels are recomputed in
            the backward pass, block by block: half the memory of the activations, and a quarter
            more time; `memory_gib` may choose it.
        recomputed_blocks: As `checkpointing`, for this many leading blocks, whose maps are
            largest; `memory_gib` chooses it.
        memory_gib: Memory budget in GiB for training, beyond the process itself (about 0.9 GiB on
            a CPU). Recomputes as little as possible, then reduces the batch;
            validation uses no larger batch than training. 0 = no limit.
        early_stop: Epochs without improvement after which training ends; 0 = off.
        start_size: Image side at the start of training, as a part of `img_size`; 1 = full.
        full_size_from: Part of the training after which images have full size.
        seed: Random seed.
    """

    recipe: str = "imagenet"
    epochs: int = 300
    max_time_s: float = 0.0
    batch_size: int = 0
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 5e-4
    lr_batch: int = 512
    muon_learning_rate: float = 0.005
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    warmup: float = 20 / 300
    decay: Literal["cosine", "linear", "steps"] = "cosine"
    steps: tuple[float, ...] = (0.75, 11 / 12)
    min_lr: float = 0.01
    clip_grad: float = 5.0
    label_smoothing: float = 0.1
    class_weights: bool = False
    ema_decay: float = 0.0
    drop_path_rate: float | Literal["model"] = "model"
    init: Literal["plain", "mimetic"] = "plain"
    freeze: int = 0
    checkpointing: bool = False
    residual: Literal["full", "half"] = "full"
    recomputed_layers: bool = False
    recomputed_blocks: int = 0
    memory_gib: float = 0.0
    early_stop: int = 0
    start_size: float = 1.0
    full_size_from: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("train.epochs", self.epochs, 1, 10**6)
        check_range("train.max_time_s", self.max_time_s, 0, 10**9)
        check_range("train.batch_size", self.batch_size, 0, 10**6)
        check_range("train.accumulate", self.accumulate, 1, 10**4)
        check_range("train.learning_rate", self.learning_rate, 0, 100)
        check_range("train.muon_learning_rate", self.muon_learning_rate, 0, 100)
        for beta in self.betas:
            check_range("train.betas", beta, 0, 0.9999999)
        check_range("train.weight_decay", self.weight_decay, 0, 10)
        check_range("train.layer_decay", self.layer_decay, 0.01, 1)
        check_range("train.warmup", self.warmup, 0, 0.9)
        for part in self.steps:
            check_range("train.steps", part, 0, 1)
        check_range("train.min_lr", self.min_lr, 0, 1)
        check_range("train.clip_grad", self.clip_grad, 0, 10**6)
        check_range("train.label_smoothing", self.label_smoothing, 0, 0.9)
        check_range("train.ema_decay", self.ema_decay, 0, 0.999999)
        check_range("train.freeze", self.freeze, -1, 1000)
        check_range("train.recomputed_blocks", self.recomputed_blocks, 0, 10**4)
        check_range("train.memory_gib", self.memory_gib, 0, 10**6)
        check_range("train.early_stop", self.early_stop, 0, 10**6)
        check_range("train.seed", self.seed, -(2**62), 2**62)
        check_range("train.start_size", self.start_size, 0.1, 1)
        check_range("train.full_size_from", self.full_size_from, 0, 1)

    @property
    def validation_batch(self) -> int:
        """Upper limit of the batch size in validation."""
        return self.batch_size if self.memory_gib else max(64, self.batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineConfig:
    """Where a run is executed; has no influence on the architecture.

    Attributes:
        device: "auto" uses a GPU if available.
        devices: Number of devices, each with its own process.
        precision: Precision of the matrix products; weights stay in float32. "auto" = bf16 on a
            GPU, the faster of fp32 and bf16 on a CPU.
        compile: Whether steps are compiled; "auto" = on a GPU.
        workers: Processes that decode images; -1 = by the number of cores.
        tensorboard: Whether metrics are also written as TensorBoard events; "auto" = if it is
            installed.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    workers: int = -1
    tensorboard: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("machine.devices", self.devices, 1, 4096)
        check_range("machine.workers", self.workers, -1, 512)


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
