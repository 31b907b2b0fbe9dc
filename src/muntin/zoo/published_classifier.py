# SPDX-License-Identifier: Apache-2.0
"""Published classifiers: which model weights are of, its network, classes and preprocessing.

The model is named, or stated in files beside the weights.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from muntin import configs
from muntin.data.data_config import DataConfig
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, MuntinWarning, WeightError, shorten
from muntin.features import Backbone
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.models.timm_backbone import describe_timm, has_timm, name_classes
from muntin.samples import Classes
from muntin.tasks.classification_task import CLASSIFY
from muntin.tasks.task import Task
from muntin.weights.head_rows import read_head_rows
from muntin.weights.opened_weights import OpenedWeights
from muntin.weights.source_info import SourceInfo
from muntin.weights.source_preprocessing import of_timm, of_torchvision
from muntin.weights.weight_loading import LoadReport, inspect_weights, load_weights
from muntin.zoo.model_building import TIMM, canonical_name, find_model
from muntin.zoo.model_zoo import MODELS, ModelEntry, build_backbone, config_from_dict


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
    backbone = build_backbone(dataclasses.replace(entry.config, in_chans=info.in_chans))
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
    backbone = build_backbone(dataclasses.replace(entry.config, in_chans=info.in_chans))
    report = load_weights(backbone, opened, made_with=configs.to_dict(entry.config))
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


def find_source_model(
    name: str, beside: SourceInfo | None, settings: Mapping[str, str]
) -> tuple[str, ModelEntry]:
    """Find name and row of the model of weights, with the config that belongs to them.

    Args:
        name: Its name, or empty: then files beside the weights must state what it is.
        beside: What they state; None without such files.
        settings: Fields as text, which override what is stated.

    Raises:
        ConfigError: The model is not stated, or not one of ours.
        WeightError: What is stated of it is inconsistent, or of the wrong types.
    """
    name = canonical_name(name)
    named = bool(name)
    name = name or _stated_name(beside)
    entry = find_model(name)
    config: Any = entry.config
    if beside is not None:
        try:
            config = _adopt_stated(config, beside, named=named)
        except ConfigError as error:
            message = f"{error} Correct {beside.where}, or delete it and pass --model."
            raise WeightError(message) from error
    config = configs.with_texts(config, settings.items())
    return name, dataclasses.replace(entry, config=config)


def _adopt_stated(config: Any, beside: SourceInfo, *, named: bool) -> Any:  # noqa: ANN401 (of any family)
    if beside.whole and not named:
        return config_from_dict(beside.whole, where=beside.where)
    if beside.family is not None and not named:
        return configs.from_dict(beside.family, _whole(beside), where=beside.where)
    if beside.family not in (None, type(config)):  # the name of another family takes precedence
        return config
    known = {field.name for field in dataclasses.fields(config)}
    stated = {**beside.implied, **beside.fields}
    fields = {key: value for key, value in stated.items() if key in known}
    if "pool" in fields and fields["pool"] != config.pool:
        # Where the mean is read, the norm comes after it in timm and transformers.
        fields.setdefault("pool_norm", "after" if fields["pool"] == "mean" else "before")
    return configs.replace(config, fields, where=beside.where)


def _stated_name(beside: SourceInfo | None) -> str:
    if beside is not None and beside.family is not None:
        rows = [(name, row.config) for name, row in MODELS.items()]
        own = [(name, config) for name, config in rows if type(config) is beside.family]
        return min(own, key=lambda row: _count_other(row[1], _whole(beside)))[0]
    stated = "" if beside is None else beside.model
    name = canonical_name(stated)
    of_timm = stated.removeprefix(TIMM)  # a run names it with the prefix
    if name in MODELS or has_timm(of_timm):
        return name if name in MODELS else TIMM + of_timm
    if beside is not None and beside.model_type:
        message = (
            f"model_type in {beside.where} must be known here, got {beside.model_type!r}. If a "
            f"model here is equal to it, pass its name with --model; see: muntin models."
        )
        raise ConfigError(message)
    message = (
        f"the model of the weights must be stated beside them, in a config.json of transformers or "
        f"timm, got {stated or 'none of them'!r}. Pass its name with --model; see: muntin models."
    )
    raise ConfigError(message)


def _count_other(config: object, fields: Mapping[str, Any]) -> int:
    return sum(getattr(config, name, value) != value for name, value in fields.items())


def _whole(beside: SourceInfo) -> dict[str, Any]:
    """All fields of a config: every stage has a map."""
    fields = {**beside.implied, **beside.fields}
    if "depths" in fields:
        fields["out_indices"] = tuple(range(len(fields["depths"])))
    return fields
