# SPDX-License-Identifier: Apache-2.0
"""From a user's request to a run with every field resolved."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from muntin import configs
from muntin.configs import with_texts
from muntin.data.data_config import DataConfig
from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.data.entry_images import MeasuredRange, choose_range
from muntin.errors import ConfigError, MuntinWarning
from muntin.heads.head_table import AnyHeadConfig
from muntin.heads.network import HeadConfig, Network
from muntin.models.transformers_backbone import TransformersConfig
from muntin.nn.mimetic_init import init_mimetic
from muntin.objectives.pretraining import PRETRAINING
from muntin.recipes import Recipe, find_recipe
from muntin.run_config import RunConfig
from muntin.runs import Run, is_run
from muntin.shapes import Size
from muntin.train_config import TrainConfig
from muntin.training.data_splits import PRETRAINING_DATA, list_labelled, list_unlabelled
from muntin.training.defaults import (
    Choice,
    choose_augment_window,
    choose_head,
    choose_preprocessing,
    choose_scale,
    default_model,
    default_recipe,
    enlarge_img_size,
    is_small,
    measure_instances,
    measure_objects,
    median_size,
    normalise_as,
    use_instance_crop,
)
from muntin.training.detector_defaults import choose_mixing, suit_objects
from muntin.training.distillation import read_distill, resolve_distill
from muntin.training.extension import extend_listings, find_extension, hold_backbone
from muntin.training.initial_weights import (
    find_beside,
    find_continued,
    find_origin,
    find_stated_model,
    find_tuning,
    initialize,
    warn_of_fresh,
)
from muntin.training.input_bands import fit_bands, use_measured
from muntin.training.low_rank import suit_adapters
from muntin.training.machine import check_attention, resolve_machine, use_available_attention
from muntin.training.optimization import check_freeze, scaled_learning_rate
from muntin.training.pretraining_defaults import choose_objective, pretraining_recipe
from muntin.training.recompute import checkpoint_blocks
from muntin.training.request import (
    PreparedRun,
    Request,
    check_request,
    choose_seed,
    group_settings,
    require_sides,
    task_of,
)
from muntin.training.run_logs import choose_logs
from muntin.training.sharding import check_sharding
from muntin.training.transformers_defaults import choose_whole_head, keep_drop_path
from muntin.zoo.model_building import canonical_name, dense_config, find_model, model_config
from muntin.zoo.model_zoo import BackboneConfig

Value = TypeVar("Value")


def prepare(request: Request) -> PreparedRun:
    """Resolve a request: data, model, head, weights, recipe, machine."""
    return _RunBuilder(request).finish()


class _RunBuilder:
    """A request whose data are listed, and what is resolved from both, step by step."""

    def __init__(self, request: Request) -> None:
        self.request, self.base = request, request.base
        self.settings = group_settings(request.settings)
        # Before any file is read: a typo must not be reported after minutes.
        check_request(request, self.settings)
        self.notes: list[str] = []
        self.task = task_of(request)
        self.distill = read_distill(request, self.settings["distill"], self.task)
        self.seed = choose_seed(request, self.settings["train"])
        start = PRETRAINING_DATA if self.unlabelled else DataConfig()
        start = start if self.base is None else self.base.data_config
        self.data = with_texts(start, self.settings["data"], group="data")
        requested = with_texts(request.machine, self.settings["machine"], group="machine")
        choose_logs(requested)  # raises for one that is asked for, but not installed
        shard = [row for row in self.settings["train"] if row[0] == "shard"]
        start_train = TrainConfig() if self.base is None else self.base.train
        compiles = not (self.task.detects or with_texts(start_train, shard, group="train").shard)
        self.machine = self.take(resolve_machine(requested, compiles))
        self.extend = find_extension(request)
        listed = (
            list_unlabelled(request.data, self.task, self.data, self.seed)
            if self.unlabelled
            else list_labelled(request, self.task, self.data, self.seed)
        )
        self.train, self.val = self.take(listed)
        if self.extend is not None:
            self.train, self.val = self.take(extend_listings(self.extend, self.train, self.val))
        self.is_new = self.base is None and self.extend is None
        self.measured = (
            choose_range(self.train, self.val, self.data.range) if self.is_new else MeasuredRange()
        )
        measure = measure_instances if self.task.top_down else measure_objects
        self.statistics = measure(self.train) if self.task.dense else None
        self.origin = find_origin(request, self.task)
        self.continued = find_continued(request, self.task.classes(self.train))
        self.tuning = find_tuning(request, self.task, len(self.train))

    @property
    def unlabelled(self) -> bool:
        """Whether this is pretraining."""
        return self.task.kind == "pretraining"

    def take(self, choice: Choice[Value]) -> Value:
        """Collect the notes of a choice."""
        self.notes += choice.notes
        return choice.value

    def finish(self) -> PreparedRun:
        """Choose everything else, and build the network."""
        name, model, original_size = self.choose_model()
        if "in_chans" not in dict(self.settings["model"]):
            model = self.take(fit_bands(model, self.measured))
        entry = self.take(normalise_as(find_model(name), self.request.weights))
        check_attention(model, self.machine)
        head = self.choose_head(model)
        if self.unlabelled and head is not None:
            model = PRETRAINING[head.kind].fit_model(model)
        # Maps that the head does not read need not be computed.
        elif head is not None and "out_indices" not in dict(self.settings["model"]):
            model = dense_config(model, finest=head.finest)
        # A repeated run keeps its values, even where other images would suggest different ones.
        if self.base is None and self.extend is None:
            self.data = self.take(self.adapt_data_config(model))
        size = (0, 0) if self.statistics is None else self.statistics.size
        pre = choose_preprocessing(entry, model, self.data, self.task.recipe_kind, size)
        if self.task.top_down:
            pre = self.take(use_instance_crop(pre, head, self.train))
        if self.extend is not None and is_run(self.extend.run):
            pre = Run.open(self.extend.run).preprocessing
        run = Run(
            path=Path(self.request.out),
            config=RunConfig(
                task=self.request.task,
                data=self.request.data,
                val=self.request.val,
                model_name=name,
                model=model,
                head=cast(AnyHeadConfig | None, head),
                data_config=self.data,
                machine=self.machine,
                extend=self.extend,
            ),
            classes=self.task.classes(self.train),
            preprocessing=pre,
        )
        # Here and not earlier: the initial weights must not depend on how the data were listed.
        torch.manual_seed(self.seed)
        network = run.build_network()
        source = self.take(initialize(network, run, self.request.weights, entry))
        # The license is known for published weights only.
        license_ = entry.license if source == entry.weights else ""
        run = replace(run, config=replace(run.config, weights=source, license=license_))
        run, network = self.configure_training(run, network, original_size)
        if self.distill is not None:
            choice = resolve_distill(self.distill, run.config, run.classes, len(self.train))
            run = replace(run, config=replace(run.config, distill=self.take(choice)))
        self.notes += hold_backbone(network, run.config)
        return PreparedRun(
            run=run,
            network=network,
            train=self.train,
            val=self.val,
            keep_batch=self.is_batch_given,
            notes=(*self.notes, _describe(run.config)),
        )

    def choose_model(self) -> tuple[str, Any, Size]:
        """Choose name and config of the model, and the image size before `enlarge_img_size`."""
        request, origin = self.request, self.origin
        changed: dict[str, Any] = {}
        original: Size = (0, 0)
        why = ""
        kind, device = self.task.recipe_kind, self.machine.device
        name = request.model or (origin.model_name if origin else "")
        stated = None if name else find_stated_model(request, self.task)
        if stated is not None:
            name, why = stated[0], ", as files beside the weights state (--model)"
        if self.statistics is not None and (origin is None or origin.task != request.task):
            images = self.statistics.size
            default, size = default_model(kind, images, request.weights, device)
            if not name and request.weights == "auto":
                warn_of_fresh(kind, images, device, default)
            name = name or default
            if not any(request.img_size):
                why += ", by the size of images and objects (--img-size)"
                original, changed["img_size"] = size, enlarge_img_size(self.statistics, size)
        elif not name:
            why = ", by the size of the images (--model)"
            size = median_size(self.train)
            name, changed["img_size"] = default_model(kind, size, request.weights, device)
            if request.weights == "auto":
                warn_of_fresh(kind, size, device, name)
        name = canonical_name(name)
        find_model(name)
        if any(request.img_size):
            changed["img_size"] = request.img_size
        if origin is not None and not request.model:
            # The architecture that the weights belong to; settings of that run may differ from
            # the zoo.
            free = self.take(use_available_attention(origin.model, device))
            config = replace(free, **changed)
        elif stated is not None:
            config = configs.replace(stated[1], changed)
        else:
            config = model_config(name, changed)
        config = with_texts(config, self.settings["model"])
        require_sides(config.img_size, self.task)
        shown = "x".join(map(str, config.img_size))
        self.notes.append(f"model {name} at {shown} pixels{why}")
        return name, config, original

    def choose_head(self, model: BackboneConfig) -> HeadConfig | None:
        origin = self.origin
        base: HeadConfig | None = origin.head if origin and origin.task == self.task.name else None
        if self.unlabelled:
            settings = self.settings["head"]
            beside = find_beside(self.request)
            return self.take(choose_objective(self.request.head, base, model, settings, beside))
        if isinstance(model, TransformersConfig):
            base = choose_whole_head(self.request.head, base, self.task, model)
        max_objects = 0 if self.statistics is None else self.statistics.max_objects
        settings = self.settings["head"]
        small = getattr(model, "embed_dim", 0) <= 64
        known = max_objects if self.is_new else 0  # else answers must stay as they are
        head = self.take(choose_head(self.request.head, base, self.task, small, known, settings))
        # A head that is trained already, or told so, keeps its levels.
        given = (base is not None and not self.request.head) or "neck.finest" in dict(settings)
        if head is None or self.statistics is None or given:
            return head
        return self.take(suit_objects(head, self.statistics, model.img_size))

    def adapt_data_config(self, model: BackboneConfig) -> Choice[DataConfig]:
        """Set the fields that depend on model and images, unless the user set them."""
        data = self.take(use_measured(self.data, self.measured, model.in_chans))
        if self.statistics is None:
            if is_small(model) and "crop_fraction" not in dict(self.settings["data"]):
                data = replace(data, crop_fraction=1.0)
            return Choice(data)
        if self.task.kind != "segmentation" or data.scale or data.short_side:
            return Choice(data)
        scale = choose_scale(self.statistics.size, model.img_size, self.machine.device)
        notes = (f"images are scaled by {scale:g} (data.scale)",) if scale < 1 else ()
        return Choice(replace(data, scale=scale), notes)

    def configure_training(
        self, run: Run, network: Network, original_size: Size
    ) -> tuple[Run, Network]:
        """Choose recipe, batch and augmentation for an initialised network, and apply them."""
        img_size, has_head = run.config.model.img_size, run.config.head is not None
        recipe = self.choose_recipe(run.config)
        augment = recipe.augment
        if isinstance(augment, DetectionAugmentConfig) and any(original_size):
            augment = self.take(choose_augment_window(augment, img_size, original_size))
        if isinstance(augment, DetectionAugmentConfig):
            augment = choose_mixing(augment, run.config.head)
        tuned = self.choose_train_config(recipe, img_size)
        if tuned.residual == "half" and self.machine.precision == "fp32":
            message = "train.residual=half needs precision bf16 or fp16, got fp32. Set it to full."
            raise ConfigError(message)
        self.notes += check_sharding(tuned, self.machine)
        tuned = self.take(keep_drop_path(tuned, run.config.model, self.settings["train"]))
        check_freeze(network.backbone, tuned.freeze)
        known = run.config.weights or (self.base and self.base.weights)
        if (tuned.freeze == -1 or tuned.adapt == "lora") and not known:
            cause = "train.freeze=-1" if tuned.freeze == -1 else "train.adapt=lora"
            what = "keeps the backbone from learning" if self.unlabelled else _ON_RANDOM
            text = f"{cause} with random weights {what}. Load weights with --weights, or omit it"
            warnings.warn(text, MuntinWarning, stacklevel=2)
        if tuned.recomputed_blocks:  # raises for more blocks than the backbone has
            checkpoint_blocks(copy.deepcopy(network.backbone), tuned.recomputed_blocks)
        config = replace(
            run.config,
            # Loading may have adopted the size rule that the weights were trained with.
            model=cast(BackboneConfig, network.backbone.config),
            head=cast(AnyHeadConfig, network.head.config) if has_head else None,
            train=tuned,
            augment=with_texts(
                self.base.augment if self.base else augment, self.settings["augment"]
            ),
        )
        # Blocks get their drop path when they are built: build them again around the same weights.
        if tuned.drop_path_rate != "model":
            model: Any = config.model
            model = replace(model, drop_path_rate=tuned.drop_path_rate)
            config = replace(config, model=model)
            state = network.state_dict()
            network = replace(run, config=config).build_network()
            network.load_state_dict(state)
        # Only without loaded weights, which it would overwrite.
        if tuned.init == "mimetic" and not config.weights:
            init_mimetic(network.backbone, self.seed)
        return replace(run, config=config), network

    def choose_recipe(self, config: RunConfig) -> Recipe:
        """Choose the recipe by the source of the weights and the number of images."""
        name = dict(self.settings["train"]).get("recipe", self.request.recipe)
        if name == "auto" and self.base is not None:
            name = self.base.train.recipe
        kind = self.task.recipe_kind
        if name == "auto" and self.continued is not None:
            name = self.continued.recipe
            self.notes.append(f"recipe {name}: that of {self.request.weights} (--recipe)")
        if name == "auto" and self.tuning is not None:
            name = self.tuning.recipe
            why = "few images without labels taught the backbone"
            self.notes.append(f"recipe {name}, as from random weights: {why} (--recipe)")
        if name == "auto":
            count = len(self.train)
            if self.unlabelled and config.head is not None:
                name, why = pretraining_recipe(count, config.model, config.head)
            else:
                name, why = default_recipe(count, pretrained=bool(config.weights), kind=kind)
            self.notes.append(f"recipe {name}: {why} (--recipe)")
        return find_recipe(name, kind)

    def choose_train_config(self, recipe: Recipe, img_size: Size) -> TrainConfig:
        """Choose the training config: of the recipe, then the options, then ``--set``."""
        request, count = self.request, len(self.train)
        config = self.base.train if self.base is not None else recipe.train
        # A recipe that the user names has its own rates.
        if self.request.recipe == "auto":
            config = self.continued or self.tuning or config
        options = ("epochs", "max_time_s", "batch_size")
        given = {name: value for name in options if (value := getattr(request, name))}
        config = replace(config, seed=self.seed, **given)
        if dict(self.settings["train"]).get("adapt") == "lora" and self.base is None:
            config = suit_adapters(config)
        if request.max_time_s and not request.epochs:
            # The time limit ends the run, not the number of epochs.
            config = replace(config, epochs=10_000)
        if self.extend is not None and self.base is None:
            # One linear layer on frozen features barely moves at the rates of a whole network.
            rate = config.learning_rate * (10 if self.task.dense is None else 1)
            config = replace(config, freeze=-1, learning_rate=rate)
            config = replace(config, location_loss=0.0, class_weights=False)
        config = with_texts(config, self.settings["train"])
        unused = {"lora_rank", "lora_alpha"} & dict(self.settings["train"]).keys()
        if unused and config.adapt != "lora":
            message = f"train.{min(unused)} has no effect without train.adapt=lora. Set that too."
            raise ConfigError(message)
        if config.batch_size == 0:
            large = 64 if self.machine.device == "cuda" else 16
            config = replace(config, batch_size=128 if max(img_size) <= 64 else large)
        # Small sets still need several steps an epoch: the weights change too rarely otherwise.
        limit = max(min(count, 4), count // 8)
        if not self.is_batch_given and config.batch_size > limit:
            config = replace(config, batch_size=limit)
        return config

    @property
    def is_batch_given(self) -> bool:
        """Whether the user, or the repeated run, chose the batch size."""
        given = self.request.batch_size or "batch_size" in dict(self.settings["train"])
        return bool(given) or self.base is not None


_ON_RANDOM = "trains the head on random features"


def _describe(config: RunConfig) -> str:
    tuned, machine = config.train, config.machine
    effective = tuned.batch_size * tuned.accumulate
    scaled = f" ({tuned.learning_rate:g} x {effective}/{tuned.lr_batch})" if tuned.lr_batch else ""
    accumulated = f" x {tuned.accumulate}" if tuned.accumulate > 1 else ""
    rate = scaled_learning_rate(tuned)
    return (
        f"{tuned.optimizer}, learning rate {rate:.2g}{scaled}, "
        f"batch {tuned.batch_size}{accumulated}, {machine.precision} on {machine.device}"
    )
