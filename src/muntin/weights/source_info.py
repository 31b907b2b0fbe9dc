# SPDX-License-Identifier: Apache-2.0
"""Files beside weights: what they say about the model, its classes and its images.

Source:
    ``config.json`` and ``preprocessor_config.json`` of transformers 5.24, in its words and those of
    version 4; ``config.json`` of timm 1.0.31 (`save_config_for_hf`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
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
from muntin.models.hiera import HieraConfig
from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.vit import ViTConfig
from muntin.weights.dialects import NATIVE
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
        model: timm's name of the architecture, else empty.
        family: Class of our config; None if the files do not tell, or it is none of ours.
        fields: Values of fields of that class.
        implied: Further ones, which names and shapes of the weights show too.
        class_names: In the order of the classifier; empty if not stated.
        multi_label: Whether an image may have several classes.
        preprocessing: How images are prepared; None if not stated.
        problem: Why that could not be read, else empty.
    """

    where: str
    dialect: str
    model: str = ""
    family: type | None = None
    fields: Mapping[str, Any]
    implied: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    multi_label: bool = False
    preprocessing: Preprocessing | None = None
    problem: str = ""


_SHARED = {
    "image_size": "img_size",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "layer_norm_eps": "norm_eps",
    "hidden_act": "activation",
}
_PLAIN = {
    **_SHARED,
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
}
_STAGES = {
    **_SHARED,
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "use_absolute_embeddings": "absolute_pos_embed",
    "pretrained_window_sizes": "pretrained_windows",
}
_HIERA = {
    **{name: ours for name, ours in _STAGES.items() if name not in ("patch_size", "qkv_bias")},
    "masked_unit_size": "mask_unit",
    "num_query_pool": "pooled_stages",
}
_DINOV2 = {**_PLAIN, "layerscale_value": "layer_scale", "num_register_tokens": "registers"}
_VITPOSE = {
    "class_token": False, "shared_position": True, "patch_padding": 2, "pool": "mean"
}  # fmt: skip
# model_type: our family, their names and ours, what they leave unsaid, our fields that it implies.
_KINDS: dict[str, tuple[type, Mapping[str, str], float, Mapping[str, Any]]] = {
    "vit": (ViTConfig, _PLAIN, 1e-12, {}),
    "deit": (ViTConfig, _PLAIN, 1e-12, {"distillation_token": True}),
    "vit_mae": (ViTConfig, _PLAIN, 1e-12, {}),
    "vitpose_backbone": (ViTConfig, _PLAIN, 1e-12, _VITPOSE),
    "dinov2": (ViTConfig, _DINOV2, 1e-6, {}),
    "dinov2_with_registers": (ViTConfig, _DINOV2, 1e-6, {}),
    "swin": (SwinConfig, _STAGES, 1e-5, {}),
    "swinv2": (SwinV2Config, _STAGES, 1e-5, {}),
    "hiera": (HieraConfig, _HIERA, 1e-6, {}),
}
_ACTIVATIONS = {
    "swiglu": "swiglu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_TIMM_NAMES = {"init_values": "layer_scale", "act_layer": "activation"}
_POOLS = {"token": "token", "avg": "mean"}


def read_source_info(source: object) -> SourceInfo | None:
    """Read the configuration beside weights: of a folder, a file in one, or a hub id.

    Raises:
        WeightError: ``config.json`` is damaged, or states what no model here can do.
    """
    folder = _folder_of(source)
    values = {} if folder is None else _read_json(folder / "config.json")
    if folder is None or not values:
        return None
    where = str(folder / "config.json")
    if "architecture" in values and "pretrained_cfg" in values:
        return _read_timm(values, where)
    if "model_type" in values or "backbone_config" in values:
        return _read_transformers(values, _read_json(folder / "preprocessor_config.json"), where)
    if "task" in values and isinstance(values.get("model"), Mapping):
        return _read_run(values["model"], folder)
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
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = (
            f"{str(path)!r}, beside the weights, must be JSON: {error}. Download it again, or "
            f"delete it to ignore it."
        )
        raise WeightError(message) from error
    return values if isinstance(values, dict) else {}


def _read_transformers(
    values: Mapping[str, Any], images: Mapping[str, Any], where: str
) -> SourceInfo:
    body = values.get("backbone_config") or values
    family, implied = None, {}
    fields = {"img_size": body["image_size"]} if "image_size" in body else {}
    if body.get("model_type") in _KINDS:
        family, names, eps, known = _KINDS[body["model_type"]]
        body = {"layer_norm_eps": eps, **body}
        fields = {ours: body[theirs] for theirs, ours in names.items() if theirs in body}
        implied = dict(known)
        if "pretrained_windows" in fields:  # theirs may be longer
            fields["pretrained_windows"] = fields["pretrained_windows"][: len(fields["depths"])]
        if "intermediate_size" in body:
            fields["mlp_ratio"] = _ratio(body["intermediate_size"], body["hidden_size"])
        if body.get("use_swiglu_ffn"):
            wide = int(int(body["hidden_size"] * body["mlp_ratio"]) * 2 / 3) + 7
            fields["activation"] = "swiglu"
            fields["mlp_ratio"] = _ratio(wide // 8 * 8, body["hidden_size"])
        if "dinov2" in body["model_type"] and any(
            name.endswith("ForImageClassification") for name in values.get("architectures") or ()
        ):
            implied["pool"] = "token_and_mean"
        if issubclass(family, SwinConfig) and fields["norm_eps"] != 1e-5:
            fields["outer_norm_eps"] = 1e-5  # theirs sets that of blocks and of the last norm only
    number = {int(key): str(name) for key, name in (values.get("id2label") or {}).items()}
    named = sorted(number) == list(range(len(number)))
    plain = all(re.fullmatch(r"LABEL_\d+", name) for name in number.values())
    preprocessing, problem = _try_preprocessing(of_transformers, images)
    return SourceInfo(
        where=where,
        dialect="transformers",
        family=family,
        fields=_convert(fields, where),
        implied=implied,
        class_names=tuple(number[i] for i in sorted(number)) if named and not plain else (),
        multi_label=values.get("problem_type") == "multi_label_classification",
        preprocessing=preprocessing,
        problem=problem,
    )


def _read_run(body: Mapping[str, Any], folder: Path) -> SourceInfo:
    names = (
        "norm_eps", "outer_norm_eps", "activation", "num_heads", "pretrained_windows", "img_size",
        "patch_size", "window_size",
    )  # fmt: skip
    images = _read_json(folder / "preprocessing.json")
    where = str(folder / "config.json")
    preprocessing, problem = _try_preprocessing(
        functools.partial(configs.from_dict, Preprocessing), images
    )
    return SourceInfo(
        where=where,
        dialect=NATIVE,
        fields=_convert({name: body[name] for name in names if name in body}, where),
        preprocessing=preprocessing,
        problem=problem,
    )


def _ratio(wide: int, narrow: int) -> float:
    ratio = wide / narrow
    return ratio if int(narrow * ratio) == wide else (wide + 0.5) / narrow


def _read_timm(values: Mapping[str, Any], where: str) -> SourceInfo:
    published = values["pretrained_cfg"]
    arguments: dict[str, Any] = dict(values.get("model_args") or {})
    fields: dict[str, Any] = {_TIMM_NAMES.get(key, key): value for key, value in arguments.items()}
    if published.get("input_size"):
        fields.setdefault("img_size", published["input_size"][1:])
    if "no_embed_class" in fields:
        fields["prefix_positions"] = not fields.pop("no_embed_class")
    pool = fields.pop("global_pool", values.get("global_pool", ""))
    if pool in _POOLS:
        fields["pool"] = _POOLS[pool]
    names = values.get("label_names") or published.get("label_names") or ()
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    preprocessing, problem = _try_preprocessing(of_timm, published)
    return SourceInfo(
        where=where,
        dialect="timm",
        model=str(values["architecture"]),
        fields=_convert(fields, where),
        class_names=tuple(map(str, names)),
        preprocessing=preprocessing,
        problem=problem,
    )


def _try_preprocessing(
    read: Any,  # noqa: ANN401 (a function)
    values: Mapping[str, Any],
) -> tuple[Preprocessing | None, str]:
    try:
        return (read(values) if values else None), ""
    except ConfigError as error:
        return None, str(error)


def _convert(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values as our configs have them."""
    converted: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "activation":
            if value not in _ACTIVATIONS:
                message = (
                    f"the activation in {where} must be one of {', '.join(_ACTIVATIONS)}, got "
                    f"{value!r}. No model here has it; a model named timm:... may."
                )
                raise WeightError(message)
            converted[name] = _ACTIVATIONS[value]
        elif name in ("patch_size", "mask_unit") and isinstance(value, list | tuple):
            converted[name] = value[0]
        elif value is not None:
            converted[name] = tuple(value) if isinstance(value, list) else value
    if "mask_unit" in converted:  # Hiera: the heads of the first stage
        converted["num_heads"] = converted["num_heads"][0]
    return converted


_SIZES = {"img_size", "patch_size", "in_chans", "window_size", "out_indices", "out_norm"}
"""Fields in which a model may differ from its weights, whose parameters are resized."""


def build_adopted(backbone: nn.Module, fields: Mapping[str, Any], where: str) -> nn.Module | None:
    """Build a backbone, without parameters, that differs in the stated fields; None if equal.

    Raises:
        WeightError: The fields are those of another model than the weights.
    """
    config: Any = backbone.config
    known = {field.name for field in dataclasses.fields(config)} - _SIZES
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
