# SPDX-License-Identifier: Apache-2.0
"""Weights of whole models of the transformers library: of a run, or of a folder of the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from muntin.errors import WeightError, quote, shorten
from muntin.heads.network import Network
from muntin.heads.transformers_model import name_architecture, read_state
from muntin.models.transformers_backbone import TransformersBackbone
from muntin.untrusted import parse_json, read_regular, reading
from muntin.weights.dialects import NATIVE
from muntin.weights.opened_weights import OpenedWeights, resolve_source
from muntin.weights.state_matching import MatchResult, class_tensors, copy_values, reject_values

_PREFIX = "head.net."


def is_whole_model(model: object) -> bool:
    """Whether a network is a whole model of the library."""
    return isinstance(model, Network) and isinstance(model.backbone, TransformersBackbone)


def _refuse_pickles(source: Path) -> None:
    """Refuse a folder whose weights would have to be unpickled."""
    if source.is_dir() and not any(source.glob("*.safetensors")):
        held = sorted(path.name for path in source.iterdir())
        message = (
            f"{source} must hold model.safetensors, got {shorten(held)}. Pickled weights are not "
            f"read for whole models: download the safetensors file, or write it where you trust "
            f"the file: from_pretrained({quote(source)}).save_pretrained(NEW)."
        )
        raise WeightError(message)


def load_whole_model(model: Network, source: object) -> dict[str, Any]:
    """Load weights by the names of parameters; gives the fields of a `LoadReport`."""
    given: Any = source.found.state if isinstance(source, OpenedWeights) else source
    with reading(
        str(given) if isinstance(given, str | Path) else "the state dict",
        "Copy or download it again.",
        WeightError,
    ):
        if isinstance(given, str | Path):
            _refuse_pickles(Path(given))
        content, texts, where = resolve_source(given)
        matched = _match(model, content, given, where)
        own = model.state_dict()
        floats = {key: x for key, x in matched.values.items() if own[key].is_floating_point()}
        reject_values(floats, own, where)
    copy_values(matched.values, model)
    return {
        "dialect": NATIVE if texts.get("dialect") == NATIVE else "transformers",
        "source": where,
        **dict.fromkeys(("renamed", "resized", "ignored"), ()),
        "reset": tuple(matched.reset),
        "size_rule": "",
        "license": texts.get("license", ""),
    }


def _match(model: Network, state: Mapping[str, Tensor], source: object, where: str) -> MatchResult:
    """Match weights to a network by their names; layers of other classes are reset."""
    if not any(key.startswith(_PREFIX) for key in state):
        state = _convert(model, state, source, where)
    own, result = model.state_dict(), MatchResult(has_head=True)
    result.unexpected += [key for key in state if key not in own]
    for key, tensor in own.items():
        if key not in state:
            result.missing.append(key)
        elif (state[key].shape, _is_float(state[key])) == (tensor.shape, _is_float(tensor)):
            result.values[key] = state[key]
        else:
            result.mismatched[key] = f"{tuple(state[key].shape)} for {tuple(tensor.shape)}"
    # Which layers have a row per class is told by a second model, so only where it is needed.
    rows = class_tensors(model) if result.mismatched else ()
    for key in [*result.mismatched]:
        if key in rows and state[key].shape[1:] == own[key].shape[1:]:
            del result.mismatched[key]
            result.reset.append(key)
    wrong = (*result.missing, *result.unexpected, *result.mismatched)
    if wrong:
        config: Any = model.backbone.config
        message = (
            f"weights from {where} must be those of hf:{config.name} with the settings of the "
            f"run, got {len(result.missing)} missing, {len(result.unexpected)} unexpected and "
            f"{len(result.mismatched)} of another shape: {shorten(wrong)}. Give its own folder."
        )
        raise WeightError(message)
    return result


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _convert(
    model: Network, state: Mapping[str, Tensor], source: object, where: str
) -> dict[str, Tensor]:
    """Weights of a folder in the names of the run, with the classes that the folder states."""
    config: Any = model.backbone.config
    path = Path(str(source)) / "config.json"
    values = parse_json(read_regular(path)) if path.is_file() else {}
    if name_architecture(values) != config.name:
        message = (
            f"weights from {where} must lie in a folder of hf:{config.name} with its config.json, "
            f"got {values.get('model_type', 'none')}. Give the folder that was downloaded."
        )
        raise WeightError(message)
    _refuse_pickles(path.parent)
    count = len(values.get("id2label") or ()) or int(values.get("num_labels", 2))
    found = read_state(config.name, json.dumps(values), count, state, where)
    return {_PREFIX + key: tensor for key, tensor in found.items()}
