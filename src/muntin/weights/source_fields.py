# SPDX-License-Identifier: Apache-2.0
"""Fields of our configs that ``config.json`` of transformers or timm states.

Source:
    transformers 5.24, configuration files of the models in `_KINDS`; timm 1.0.31, arguments of
    VisionTransformer, SwinTransformer, SwinTransformerV2 and Hiera.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muntin import configs
from muntin.errors import ConfigError, shorten
from muntin.models.hiera import HieraConfig
from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.vit import ViTConfig
from muntin.weights.source_preprocessing import TimmImages

_SHARED = {
    "image_size": "img_size", "patch_size": "patch_size", "num_channels": "in_chans",
    "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "layer_norm_eps": "norm_eps",
    "hidden_act": "activation",
}  # fmt: skip
_PLAIN = {
    **_SHARED, "hidden_size": "embed_dim", "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
}  # fmt: skip
_STAGES = {
    **_SHARED, "embed_dim": "embed_dim", "depths": "depths", "num_heads": "num_heads",
    "window_size": "window_size", "use_absolute_embeddings": "absolute_pos_embed",
    "pretrained_window_sizes": "pretrained_windows",
}  # fmt: skip
_HIERA = {
    **{name: ours for name, ours in _STAGES.items() if name not in ("patch_size", "qkv_bias")},
    "masked_unit_size": "mask_unit",
    "num_query_pool": "pooled_stages",
}
_DINOV2 = {**_PLAIN, "layerscale_value": "layer_scale", "num_register_tokens": "registers"}
_BEIT = {
    **_PLAIN, "layer_scale_init_value": "layer_scale",
    "use_absolute_position_embeddings": "absolute_pos_embed",
    "use_relative_position_bias": "relative_pos_bias",
}  # fmt: skip
_E12, _E6, _E5 = ({"layer_norm_eps": eps} for eps in (1e-12, 1e-6, 1e-5))
_OF_BEIT = {
    **_E12, "layer_scale_init_value": 0.1, "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False, "use_mean_pooling": True,
}  # fmt: skip
_VITPOSE = {
    "class_token": False, "shared_position": True, "patch_padding": 2, "pool": "mean"
}  # fmt: skip
# model_type: our family, their names and ours, what they leave unsaid, our fields that it implies.
_KINDS: dict[str, tuple[type, Mapping[str, str], Mapping[str, Any], Mapping[str, Any]]] = {
    "vit": (ViTConfig, _PLAIN, _E12, {}),
    "deit": (ViTConfig, _PLAIN, _E12, {"distillation_token": True}),
    "vit_mae": (ViTConfig, _PLAIN, {**_E12, "decoder_num_attention_heads": 16}, {}),
    "vit_msn": (ViTConfig, _PLAIN, _E6, {}),
    "beit": (ViTConfig, _BEIT, _OF_BEIT, {"key_bias": False}),
    "vitpose_backbone": (ViTConfig, _PLAIN, _E12, _VITPOSE),
    "dinov2": (ViTConfig, _DINOV2, _E6, {}),
    "dinov2_with_registers": (ViTConfig, _DINOV2, _E6, {}),
    "swin": (SwinConfig, _STAGES, _E5, {}),
    "swinv2": (SwinV2Config, _STAGES, _E5, {}),
    "hiera": (HieraConfig, _HIERA, _E6, {}),
}
_DECODERS: dict[str, dict[str, tuple[str, type | tuple[type, ...]]]] = {
    "vit_mae": {
        "mask_ratio": ("mask_ratio", (int, float)), "norm_pix_loss": ("norm_pix", bool),
        "decoder_hidden_size": ("dim", int), "decoder_num_hidden_layers": ("depth", int),
        "decoder_num_attention_heads": ("num_heads", int),
    },
    "hiera": {
        "mask_ratio": ("mask_ratio", (int, float)), "normalize_pixel_loss": ("norm_pix", bool),
        "decoder_hidden_size": ("dim", int), "decoder_depth": ("depth", int),
        "decoder_num_heads": ("num_heads", int),
    },
}  # fmt: skip
"""Fields of masked autoencoders by model_type: their name, ours, and the type."""
_ACTIVATIONS = {
    "swiglu": "swiglu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu",
}  # fmt: skip

_SAME = (
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "depths", "num_heads",
    "window_size", "mlp_ratio", "qkv_bias", "class_token", "drop_rate", "attn_drop_rate",
    "drop_path_rate",
)  # fmt: skip
# They change no output of weights that were read, at the sizes that timm accepts.
_WITHOUT_EFFECT = (
    "num_classes", "pretrained", "strict_img_size", "dynamic_img_size", "dynamic_img_pad",
    "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "weight_init", "fix_init",
    "head_init_scale", "scriptable", "exportable",
)  # fmt: skip
_TIMM = {
    **{name: name for name in _SAME}, **dict.fromkeys(_WITHOUT_EFFECT, ""),
    "init_values": "layer_scale", "act_layer": "activation", "reg_tokens": "registers",
    "pretrained_window_sizes": "pretrained_windows", "stages": "depths",
    "mask_unit_size": "mask_unit", "q_pool": "pooled_stages", "global_pool": "pool",
    "fc_norm": "pool_norm", "no_embed_class": "prefix_positions", "pos_embed": "absolute_pos_embed",
}  # fmt: skip
"""Arguments of timm by our fields."""
_TIMM_VALUES: dict[str, dict[Any, Any]] = {
    "fc_norm": {True: "after", False: "before"},
    "no_embed_class": {True: False, False: True},
    "pos_embed": {"learn": True, "none": False, "": False},
    "act_layer": _ACTIVATIONS,
}
_USUAL = {
    "qk_norm": False, "pre_norm": False, "final_norm": True, "proj_bias": True,
    "always_partition": False,
}  # fmt: skip
"""Arguments of timm that have no counterpart here, with the values that change nothing."""


def take(values: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], where: str) -> Any:  # noqa: ANN401 (of these types)
    """Return an entry, None if it is absent or null; of other types it is a `ConfigError`."""
    value = values.get(name)
    if value is None or isinstance(value, kinds):
        return value
    known = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    message = f"{name} in {where} must be of type {known}, got {value!r}."
    raise ConfigError(message)


def read_transformers(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read fields of a `SourceInfo`; values of wrong types are a `ConfigError`."""
    stated = take(values, "backbone_config", dict, where) or values
    model_type = take(stated, "model_type", str, where) or ""
    if model_type not in _KINDS:
        size = take(stated, "image_size", (int, list), where)
        return {"model_type": model_type, "fields": {} if size is None else {"img_size": size}}
    family, names, unsaid, known = _KINDS[model_type]
    body = {**unsaid, **{name: value for name, value in stated.items() if value is not None}}
    fields = {
        ours: _read_field(family, ours, body[theirs], f"{theirs} in {where}")
        for theirs, ours in names.items()
        if theirs in body
    }
    if "pretrained_windows" in fields and "depths" in fields:  # theirs may be longer
        fields["pretrained_windows"] = fields["pretrained_windows"][: len(fields["depths"])]
    if fields.get("embed_dim") and family is ViTConfig:
        dim, wide = fields["embed_dim"], take(body, "intermediate_size", int, where)
        if take(body, "use_swiglu_ffn", bool, where):
            wide = (int(int(dim * fields.get("mlp_ratio", 4.0)) * 2 / 3) + 7) // 8 * 8
            fields["activation"] = "swiglu"
        if wide is not None:
            exact = int(dim * (wide / dim)) == wide
            fields["mlp_ratio"] = (wide if exact else wide + 0.5) / dim
    implied = dict(known)
    classes = take(values, "architectures", list, where) or ()
    if "dinov2" in model_type and any("ForImageClassification" in str(name) for name in classes):
        implied["pool"] = "token_and_mean"
    if model_type == "beit":
        mean = take(body, "use_mean_pooling", bool, where)
        implied |= {"pool": "mean", "pool_norm": "after"} if mean else {"pool": "token"}
    if issubclass(family, SwinConfig) and fields["norm_eps"] != 1e-5:
        fields["outer_norm_eps"] = 1e-5  # theirs sets that of blocks and of the last norm only
    learnt = {
        ours: value
        for theirs, (ours, kinds) in _DECODERS.get(model_type, {}).items()
        if (value := take(body, theirs, kinds, where)) is not None
    }
    return {
        "model_type": model_type, "family": family, "fields": fields, "implied": implied,
        "decoder_heads": learnt.get("num_heads", 0), "pretraining": learnt,
    }  # fmt: skip


def _read_field(family: type, name: str, value: Any, where: str) -> Any:  # noqa: ANN401 (any JSON value)
    """Convert a value to what our config has; `where` is its name there, and the file."""
    if name == "activation":
        return _look_up(_ACTIVATIONS, value, where)
    if isinstance(value, list) and value:
        first = family is HieraConfig and name == "num_heads"  # those of the first stage
        square = name in ("patch_size", "mask_unit") and value.count(value[0]) == len(value)
        value = value[0] if first or square else value
    return configs.read_field(family, name, value, where=where)


def _look_up(table: Mapping[Any, Any], value: object, where: str) -> Any:  # noqa: ANN401 (of the table)
    if isinstance(value, str | bool) and value in table:
        return table[value]
    message = f"{where} must be one of {', '.join(map(str, table))}, got {value!r}."
    raise ConfigError(message)


def read_timm(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read fields from ``config.json`` of timm; an unknown argument is a `ConfigError`."""
    given = {name: value for name, value in values.items() if name == "global_pool" and value}
    given |= take(values, "model_args", dict, where) or {}
    given = {name: value for name, value in given.items() if value is not None}
    usual = [name for name in given if _USUAL.get(name) is given[name]]
    unknown = {name: given[name] for name in given.keys() - _TIMM.keys() - {*usual}}
    if unknown:
        message = (
            f"model_args in {where} must be known here, got {unknown}, which may change outputs. "
            f"Remove from the file those that do not."
        )
        raise ConfigError(message)
    if size := (take(values, "pretrained_cfg", dict, where) or {}).get("input_size"):
        size = configs.read_field(TimmImages, "input_size", size, where=f"input_size in {where}")
        given.setdefault("img_size", size[1:])
    fields: dict[str, Any] = {}
    for name, value in given.items():
        ours = _TIMM.get(name, "")
        if name in _TIMM_VALUES:
            fields[ours] = _look_up(_TIMM_VALUES[name], value, f"{name} in {where}")
        elif name == "global_pool":  # others are checked where a model is built
            fields[ours] = "mean" if value == "avg" else value
        elif isinstance(value, list) and value:
            sides = ("patch_size", "mask_unit", "window_size")
            square = ours in sides and value.count(value[0]) == len(value)
            fields[ours] = value[0] if square else tuple(value)
        elif ours:
            fields[ours] = value
    return fields


def read_labels(
    given: Mapping[str, Any] | list[Any] | None, what: str
) -> tuple[tuple[str, ...], str]:
    """Read names in the order of the classifier; else say why they are not those of all classes."""
    rows = given.items() if isinstance(given, Mapping) else enumerate(given or ())
    by_id = {str(key): name for key, name in rows}
    names = [by_id.get(str(class_id)) for class_id in range(len(by_id))]
    absent = [n for n, name in enumerate(names) if not isinstance(name, str | int | float)]
    if absent:
        named = f"classes 0 to {len(names) - 1}"
        return (), f"{what} must name {named}, got none for {shorten(absent)}."
    return tuple(map(str, names)), ""
