# SPDX-License-Identifier: Apache-2.0
"""Published classifiers: network, classes and preprocessing from their weights."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from muntin.configs import to_dict
from muntin.data.data_config import DataConfig
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, MuntinWarning, shorten
from muntin.features import Backbone
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.models.timm_backbone import describe_timm, has_timm, name_classes
from muntin.samples import Classes
from muntin.tasks.classification_task import CLASSIFY
from muntin.tasks.task import Task
from muntin.weights.head_rows import read_head_rows
from muntin.weights.opened_weights import OpenedWeights
from muntin.weights.source_preprocessing import of_timm, of_torchvision
from muntin.weights.weight_loading import LoadReport, inspect_weights, load_weights
from muntin.zoo.model_building import canonical_name
from muntin.zoo.model_zoo import ModelEntry, build_backbone


def imagenet_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet in their order."""
    from torchvision.models import ViT_B_16_Weights

    return tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])


_TORCHVISION = (
    "swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b", "vit_b_16", "vit_b_32",
    "vit_l_16", "vit_l_32", "vit_h_14",
)  # fmt: skip


class PublishedModel(NamedTuple):
    """A published model with its weights, and what a run holds beside them."""

    task: Task
    network: Network
    report: LoadReport
    classes: Classes
    preprocessing: Preprocessing


def read_classifier(
    opened: OpenedWeights,
    name: str,
    entry: ModelEntry,
    class_names: tuple[str, ...] = (),
    head_rows: str | Path | None = None,
) -> PublishedModel:
    """Read a classifier from weights that were found in a file.

    Args:
        opened: The weights.
        name: Of the model in the zoo.
        entry: Its row, perhaps of another image size.
        class_names: By class number; empty = as stated beside the weights.
        head_rows: As in `load_weights`.

    Raises:
        ConfigError: The classes are not known, or do not fit, or there is no classifier.
        WeightError: The weights do not fit.
    """
    info = inspect_weights(opened, build_shell(entry))
    count = info.num_classes if head_rows is None else len(read_head_rows(head_rows))
    backbone = build_backbone(replace(entry.config, in_chans=info.in_chans))
    if not info.num_classes:
        stated = opened.stated is not None and (opened.stated.family or opened.stated.model)
        model = "" if stated else f"--model {name} "  # else training takes it from the same files
        left = load_weights(backbone, opened).beside  # one of another model is refused here
        message = (
            f"{opened.where} must have a classifier of one linear layer on the "
            f"{backbone.embed_channels} channels of {name} to become a run, got "
            f"{f'several or others: {shorten(left)}' if left else 'none'}. Train one: muntin "
            f"train classify DATA {model}--weights ..."
        )
        raise ConfigError(message)
    network = Network(backbone, build_classifier(backbone, count))
    report = load_weights(network, opened, head_rows=head_rows)
    class_names = class_names or _stated_names(opened, report, count)
    if len(class_names) != count:
        message = f"--classes must name the {count} classes of {opened.where}, got "
        raise ConfigError(message + f"{len(class_names)} names.")
    repeated = [text for text, times in Counter(class_names).items() if times > 1]
    if repeated:
        message = f"several classes of {opened.where} have the same name: {shorten(repeated)}."
        warnings.warn(message, MuntinWarning, stacklevel=3)
    several = opened.stated is not None and opened.stated.multi_label
    classes = Classes(names=class_names, multi_label=several)
    preprocessing = _classifier_preprocessing(opened, name, entry, info.in_chans)
    return PublishedModel(CLASSIFY, network, report, classes, preprocessing)


def read_backbone(opened: OpenedWeights, name: str, entry: ModelEntry) -> PublishedModel:
    """Read a backbone from weights that may have no classifier; its network gives vectors.

    Raises:
        WeightError: The weights do not fit.
    """
    info = inspect_weights(opened, build_shell(entry))
    backbone = build_backbone(replace(entry.config, in_chans=info.in_chans))
    report = load_weights(backbone, opened, made_with=to_dict(entry.config))
    network = Network(backbone, build_classifier(backbone, 0))
    preprocessing = _classifier_preprocessing(opened, name, entry, info.in_chans)
    return PublishedModel(CLASSIFY, network, report, Classes(names=()), preprocessing)


def _stated_names(opened: OpenedWeights, report: LoadReport, count: int) -> tuple[str, ...]:
    """Names in the file or beside it, which must be those of all classes; else default ones."""
    problem = opened.stated.label_problem if opened.stated is not None else ""
    if opened.class_names and len(report.class_names) != count:
        problem = f"the names must be those of all {count} classes, got {len(opened.class_names)}."
    if problem:
        message = f"{problem} They are those of {opened.where}. Correct them, or pass --classes."
        raise ConfigError(message)
    if report.class_names or count == 1000:
        return report.class_names or imagenet_names()
    return name_classes(count) or tuple(f"class {number}" for number in range(count))


def build_shell(entry: ModelEntry) -> Backbone:
    """The backbone without parameters, by which weights are found in a file."""
    with torch.device("meta"):
        return build_backbone(entry.config)


def _classifier_preprocessing(
    opened: OpenedWeights, name: str, entry: ModelEntry, in_chans: int
) -> Preprocessing:
    """Give what is stated beside the weights, else what the dialect's library does."""
    size = entry.config.img_size
    if opened.stated is not None and opened.stated.problem:
        raise ConfigError(opened.stated.problem)
    if opened.stated is not None and opened.stated.preprocessing is not None:
        return opened.stated.preprocessing
    peer = next((peer for peer in _TORCHVISION if canonical_name(peer) == name), "")
    if opened.dialect == "torchvision" and peer:
        return of_torchvision(peer, size)
    if opened.dialect == "timm" and has_timm(name.removeprefix("timm:")):
        published = describe_timm(name.removeprefix("timm:"))
        if published:
            return of_timm({**published, "input_size": (in_chans, *size)})
    mean, std = (
        values if in_chans == len(values) else (sum(values) / len(values),) * in_chans
        for values in (entry.mean, entry.std)
    )
    fraction = DataConfig().crop_fraction
    return Preprocessing(
        img_size=size, mean=mean, std=std, crop_fraction=fraction, in_chans=in_chans
    )
