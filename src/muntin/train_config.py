# SPDX-License-Identifier: Apache-2.0
"""Settings of a training (`TrainConfig`), and where it runs (`MachineConfig`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from muntin.configs import Range, check_ranges

AdaptName = Literal["none", "lora"]


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
        adapt: "lora" freezes the backbone and trains low-rank additions to the linear layers of its
            blocks (and the head): memory for gradients and moments of few weights. They are merged
            into the saved weights. Rates of the recipe are set for them (`training.low_rank`).
        lora_rank: Rank of these additions.
        lora_alpha: Their factor, divided by the rank.
        location_loss: Weight of an auxiliary loss for small data sets, the error of predicted
            distances between tokens (`objectives.relative_location`); 0.5 as published for Swin,
            0 = off.
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
        shard: Whether each process keeps only its part of parameters, gradients and moments
            (FSDP2, `training.sharding`); without effect on one process.
        early_stop: Epochs without improvement after which training ends; 0 = off.
        start_size: Image side at the start of training, as a part of `img_size`; 1 = full.
        full_size_from: Part of the training after which images have full size.
        seed: Random seed.
        overfit_check: Whether a few images must be learnt by heart, in a minute at most, before
            the training: faults of data, weights and rates show then. "auto" = if it takes more
            than 10 minutes.
    """

    recipe: str = "imagenet"
    epochs: Annotated[int, Range(1, 10**6)] = 300
    max_time_s: Annotated[float, Range(0, 10**9)] = 0.0
    batch_size: Annotated[int, Range(0, 10**6)] = 0
    accumulate: Annotated[int, Range(1, 10**4)] = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Range(0, 100)] = 5e-4
    lr_batch: int = 512
    muon_learning_rate: Annotated[float, Range(0, 100)] = 0.005
    betas: Annotated[tuple[float, float], Range(0, 0.9999999)] = (0.9, 0.999)
    weight_decay: Annotated[float, Range(0, 10)] = 0.05
    layer_decay: Annotated[float, Range(0.01, 1)] = 1.0
    warmup: Annotated[float, Range(0, 0.9)] = 20 / 300
    decay: Literal["cosine", "linear", "steps"] = "cosine"
    steps: Annotated[tuple[float, ...], Range(0, 1)] = (0.75, 11 / 12)
    min_lr: Annotated[float, Range(0, 1)] = 0.01
    clip_grad: Annotated[float, Range(0, 10**6)] = 5.0
    label_smoothing: Annotated[float, Range(0, 0.9)] = 0.1
    class_weights: bool = False
    ema_decay: Annotated[float, Range(0, 0.999999)] = 0.0
    drop_path_rate: float | Literal["model"] = "model"
    init: Literal["plain", "mimetic"] = "plain"
    freeze: Annotated[int, Range(-1, 1000)] = 0
    adapt: AdaptName = "none"
    lora_rank: Annotated[int, Range(1, 4096)] = 8
    lora_alpha: Annotated[float, Range(0.001, 10**4)] = 16.0
    location_loss: Annotated[float, Range(0, 100)] = 0.0
    checkpointing: bool = False
    residual: Literal["full", "half"] = "full"
    recomputed_layers: bool = False
    recomputed_blocks: Annotated[int, Range(0, 10**4)] = 0
    memory_gib: Annotated[float, Range(0, 10**6)] = 0.0
    shard: bool = False
    early_stop: Annotated[int, Range(0, 10**6)] = 0
    start_size: Annotated[float, Range(0.1, 1)] = 1.0
    full_size_from: Annotated[float, Range(0, 1)] = 0.0
    seed: Annotated[int, Range(-(2**62), 2**62)] = 0
    overfit_check: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("train", self)

    @property
    def validation_batch(self) -> int:
        """Upper limit of the batch size in validation."""
        return self.batch_size if self.memory_gib else max(64, self.batch_size)


LogName = Literal["tensorboard", "mlflow", "wandb"]
"""A library that shows the figures of runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineConfig:
    """Where a run is executed; has no influence on the architecture.

    Attributes:
        device: "auto" uses a GPU if available.
        devices: Number of devices of each machine, each with its own process.
        nodes: Number of machines, whose processes torchrun or SLURM starts.
        timeout_s: Seconds that processes wait for each other before the training ends.
        precision: Precision of the matrix products; weights stay in float32. "auto" = bf16 on a
            GPU, the faster of fp32 and bf16 on a CPU.
        compile: Whether steps are compiled; "auto" = on a GPU.
        workers: Processes that decode images; -1 = by the number of cores.
        tensorboard: Whether metrics are also written as TensorBoard events; "auto" = if it is
            installed.
        log: Where the figures of epochs go besides journal.jsonl and results.csv: "tensorboard",
            "mlflow", "wandb".
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Annotated[int, Range(1, 4096)] = 1
    nodes: Annotated[int, Range(1, 4096)] = 1
    timeout_s: Annotated[float, Range(1, 10**6)] = 1800.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    workers: Annotated[int, Range(-1, 512)] = -1
    tensorboard: Literal["auto", "on", "off"] = "auto"
    log: tuple[LogName, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("machine", self)
