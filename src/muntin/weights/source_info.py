# SPDX-License-Identifier: Apache-2.0
"""Files beside weights: what they say about the model, its classes and its images.

Source:
    ``config.json`` and ``preprocessor_config.json`` of transformers 5.24, in its words and those of
    version 4; ``config.json`` of timm 1.0.31 (`save_config_for_hf`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muntin import configs
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, WeightError
from muntin.heads.pixel_decoder import PatchPredictor
from muntin.untrusted import parse_json, read_regular, reading
from muntin.weights.dialects import NATIVE, family_name
from muntin.weights.source_fields import read_labels, read_timm, read_transformers, take
from muntin.weights.source_preprocessing import of_timm, of_transformers
from muntin.weights.weight_files import fetch, is_hub_id

_BESIDE = re.compile(
    r"((pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|weights\.safetensors)"
)
"""Names of weight files that a configuration belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """What the files beside weights state.

    Attributes:
        where: Path of ``config.json``.
        dialect: "transformers" or "timm"; "muntin" in the folder of a run.
        model: timm's name of the architecture, or ours in the folder of a run, else empty.
        model_type: transformers' name of the architecture, else empty.
        family: Class of our config; None if the files do not tell, or it is none of ours.
        fields: Values of fields of that class.
        whole: The config of the model of a run, with its family; else empty.
        implied: Further ones, which names and shapes of the weights show too.
        decoder_heads: Attention heads of a decoder of pretraining; 0 if not stated.
        pretraining: Values of fields of a masked autoencoder's head.
        class_names: In the order of the classifier; empty if not stated.
        label_problem: Why those that are stated are not names of all classes, else empty.
        multi_label: Whether an image may have several classes.
        preprocessing: How images are prepared; None if not stated.
        problem: Why that could not be read, and what helps; else empty.
    """

    where: str
    dialect: str
    model: str = ""
    model_type: str = ""
    family: type | None = None
    fields: Mapping[str, Any]
    whole: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    implied: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decoder_heads: int = 0
    pretraining: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    label_problem: str = ""
    multi_label: bool = False
    preprocessing: Preprocessing | None = None
    problem: str = ""


def read_source_info(source: object) -> SourceInfo | None:
    """Read the configuration beside weights: of a folder, a file in one, or a hub id.

    Raises:
        WeightError: ``config.json`` is damaged, or states what no model here can do.
    """
    with reading(lambda: repr(str(source)), "Check the path and its permissions.", WeightError):
        folder = _folder_of(source)
        values = {} if folder is None else _read_json(folder / "config.json")
    if folder is None or not values:
        return None
    try:
        return _read_folder(folder, values)
    except ConfigError as error:
        message = f"{error} Correct the file, or delete it to ignore it."
        raise WeightError(message) from error


def _read_folder(folder: Path, values: Mapping[str, Any]) -> SourceInfo | None:
    where = str(folder / "config.json")
    if "architecture" in values and "pretrained_cfg" in values:
        return _read_timm(values, where)
    if "model_type" in values or "backbone_config" in values:
        return _read_transformers(values, folder / "preprocessor_config.json", where)
    if "task" in values and isinstance(values.get("model"), Mapping):
        run = _read_run(values["model"], str(values.get("model_name", "")), folder)
        head = take(values, "head", dict, where) or {}
        return dataclasses.replace(run, decoder_heads=take(head, "num_heads", int, where) or 0)
    return None  # of another program


def _folder_of(source: object) -> Path | None:
    if not isinstance(source, str | Path):
        return None
    if "#" in str(source) and not Path(source).exists():  # a part of a file
        source = str(source).partition("#")[0]
    path = Path(source).expanduser()
    if path.exists():
        return path if path.is_dir() else path.parent if _BESIDE.fullmatch(path.name) else None
    text = str(source).removeprefix("hf-hub:")
    return fetch(text).parent if is_hub_id(text) and not Path(text.split("/")[0]).is_dir() else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = parse_json(read_regular(path))
    except (OSError, ValueError) as error:
        message = (
            f"{str(path)!r}, beside the weights, must be JSON: {error}. Download it again, or "
            f"delete it to ignore it."
        )
        raise WeightError(message) from error
    return values if isinstance(values, dict) else {}


def _read_transformers(values: Mapping[str, Any], path: Path, where: str) -> SourceInfo:
    labels = take(values, "id2label", dict, where)
    names, label_problem = read_labels(labels, f"id2label in {where}")
    plain = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    preprocessing, problem = _try_preprocessing(of_transformers, _read_json(path))
    return SourceInfo(
        where=where,
        dialect="transformers",
        **read_transformers(values, where),
        class_names=() if plain else names,
        label_problem=label_problem,
        multi_label=values.get("problem_type") == "multi_label_classification",
        preprocessing=preprocessing,
        problem=problem
        and f"{problem} See {path}; without that file, images are prepared as for the model.",
    )


def _read_run(body: Mapping[str, Any], model: str, folder: Path) -> SourceInfo:
    names = (
        "norm_eps", "outer_norm_eps", "activation", "num_heads", "pretrained_windows", "img_size",
        "patch_size", "window_size",
    )  # fmt: skip
    images = _read_json(folder / "preprocessing.json")
    preprocessing, problem = _try_preprocessing(
        functools.partial(configs.from_dict, Preprocessing), images
    )
    fields = {name: body[name] for name in names if body.get(name) is not None}
    return SourceInfo(
        where=str(folder / "config.json"),
        dialect=NATIVE,
        model=model,
        whole=body,
        fields={
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        },
        preprocessing=preprocessing,
        problem=problem,
    )


def _read_timm(values: Mapping[str, Any], where: str) -> SourceInfo:
    published = take(values, "pretrained_cfg", dict, where) or {}
    key = "label_names"
    labels = take(values, key, (list, dict), where) or take(published, key, (list, dict), where)
    names, label_problem = read_labels(labels, f"{key} in {where}")
    preprocessing, problem = _try_preprocessing(of_timm, published)
    return SourceInfo(
        where=where,
        dialect="timm",
        model=take(values, "architecture", str, where) or "",
        fields=read_timm(values, where),
        class_names=names,
        label_problem=label_problem,
        preprocessing=preprocessing,
        problem=problem and f"{problem} It is stated in {where}: set what is possible there.",
    )


def _try_preprocessing(
    read: Any,  # noqa: ANN401 (a function)
    values: Mapping[str, Any],
) -> tuple[Preprocessing | None, str]:
    try:
        return (read(values) if values else None), ""
    except ConfigError as error:
        return None, str(error)


_SIZES = {"img_size", "patch_size", "in_chans", "window_size", "out_indices", "out_norm"}
"""Fields in which a model may differ from its weights, whose parameters are resized."""
_UNSEEN = {"num_heads", "activation", "window_size", "pretrained_windows", "pool"}
"""Fields that neither names nor shapes of parameters show."""


def build_adopted(backbone: nn.Module, fields: Mapping[str, Any], where: str) -> nn.Module | None:
    """Build a backbone, without parameters, that differs in the stated fields; None if equal.

    Raises:
        WeightError: The fields are those of another model than the weights.
    """
    config: Any = backbone.config
    names = {field.name for field in dataclasses.fields(config)}
    without = {name: fields[name] for name in _UNSEEN & fields.keys() if name not in names}
    # Families without a choice pool by the mean; a dialect implies GELU of all of its models.
    pool = getattr(backbone, "pool", "mean") or without.get("pool")
    usual = {"pool": pool, "activation": "gelu"}
    without = {name: value for name, value in without.items() if usual.get(name) != value}
    if without:
        message = (
            f"config.json beside {where} must describe its model, but {family_name(type(config))} "
            f"does not have {without}. Correct the file, or delete it to ignore it. The model is "
            f"unchanged."
        )
        raise WeightError(message)
    known = names - _SIZES
    stated = {name: value for name, value in fields.items() if name in known}
    changed = {name: value for name, value in stated.items() if getattr(config, name) != value}
    if not changed:
        return None
    family: Any = type(backbone)
    try:
        with torch.device("meta"):
            other: nn.Module = family(configs.replace(config, changed, where=where))
        shapes, own = ({k: v.shape for k, v in m.state_dict().items()} for m in (other, backbone))
        if shapes == own:
            return other
        reason = "parameters of other names or shapes"
    except ConfigError as error:
        reason = str(error)
    message = (
        f"config.json beside {where} must describe its model, but {changed} needs {reason}. "
        f"Correct the file, or delete it to ignore it. The model is unchanged."
    )
    raise WeightError(message)


def check_decoder(info: SourceInfo | None, head: nn.Module | None) -> None:
    """Raise if a decoder that is loaded has other attention heads, which no shape shows."""
    if info is None or not info.decoder_heads or not isinstance(head, PatchPredictor):
        return
    config: Any = head.config
    if config.num_heads != info.decoder_heads:
        message = (
            f"head.num_heads must be {info.decoder_heads}, as {info.where} says of the decoder, "
            f"got {config.num_heads}. Set it to {info.decoder_heads}. The model is unchanged."
        )
        raise WeightError(message)


def adopt(backbone: nn.Module, other: nn.Module) -> dict[str, Any]:
    """Take over everything but parameters and buffers; return the fields that changed."""
    before: Any = backbone.config
    for name, module in other.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if key != "training" and not key.startswith("_") and _is_plain(value)
        }
        vars(backbone.get_submodule(name)).update(plain)
    after: Any = backbone.config
    fields = [field.name for field in dataclasses.fields(after)]
    return {
        name: getattr(after, name)
        for name in fields
        if getattr(after, name) != getattr(before, name)
    }


def set_config(backbone: nn.Module, config: Any) -> None:  # noqa: ANN401 (of the family)
    """Give a backbone another config that needs the same parameters: another size rule, windows."""
    family: Any = type(backbone)
    with torch.device("meta"):
        other: nn.Module = family(config)
    adopt(backbone, other)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, int | float | str) or dataclasses.is_dataclass(value)
