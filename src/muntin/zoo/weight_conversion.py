# SPDX-License-Identifier: Apache-2.0
"""Convert weight files between ecosystems, and verify that no bit was lost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muntin.errors import WeightError, shorten
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.models.vit import ViTConfig
from muntin.staging import refuse_existing
from muntin.untrusted import reading
from muntin.weights.dialects import to_dialect
from muntin.weights.head_rows import read_head_rows
from muntin.weights.opened_weights import open_weights
from muntin.weights.parameter_resizing import move_positions
from muntin.weights.source_geometry import MADE_WITH
from muntin.weights.source_info import read_source_info
from muntin.weights.weight_files import write_weights, write_whole
from muntin.weights.weight_loading import LoadReport, WeightInfo, inspect_weights, load_weights
from muntin.zoo.model_building import find_model
from muntin.zoo.model_zoo import BackboneConfig, build_backbone
from muntin.zoo.published_classifier import build_shell, find_source_model

# Key under which an ecosystem's own loader expects the state dict in a .pth file.
_NESTED_KEYS = {"microsoft": "model", "openmmlab": "state_dict", "detectron2": "model"}

# Ends of the names of buffers that are computed from weights or config.
_DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """Result of `convert_weights`.

    `unwritten` are fields of the config, other than those of the zoo, that no parameter shows.
    `left_out` are names in the source of what the file does not hold, such as a decoder or the
    head of another task; buffers that are derived from weights are not among them.
    """

    path: Path
    report: LoadReport
    num_tensors: int
    num_classes: int
    unwritten: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def convert_weights(
    source: str | Path,
    target: str | Path,
    *,
    name: str = "",
    to: str,
    dialect: str = "auto",
    settings: Iterable[tuple[str, str]] = (),
    force: bool = False,
) -> Conversion:
    """Read weights of any ecosystem, write them for another, read them back and compare every bit.

    `source` is as in `load_weights`; `target` a new ``.safetensors``, ``.pth`` or ``.pt`` (with the
    nesting that the ecosystem's loader expects), or ``.npz`` for "google"; `name` a model of the
    zoo, or empty if files beside the weights state it; `to` a dialect, or "muntin". `settings` are
    fields in which the architecture differs from the zoo, with values as text: ``("img_size",
    "96")``; "head.rows" is as `head_rows` of `load_weights`.
    """
    target = Path(target)
    if target.suffix not in (".safetensors", ".pth", ".pt", ".npz"):
        message = (
            f"target must end in .safetensors, .pth, .pt or .npz, got {str(target)!r}. "
            f"Change the suffix."
        )
        raise WeightError(message)
    given = Path(str(source).rpartition("#")[0] or source)
    with reading(lambda: repr(str(source)), "Check the path and its permissions.", WeightError):
        inside = list(given.iterdir()) if given.is_dir() else []
    sources = [source, given, *inside]
    refuse_existing([target], sources, option="OUT", force=force, error=WeightError)
    texts = dict(settings)
    head_rows = texts.pop("head.rows", None)
    name, entry = find_source_model(name, read_source_info(source), texts)
    config = entry.config
    shell = build_shell(entry)
    opened = open_weights(source, dialect, shell)
    info = inspect_weights(opened, shell)
    # Pre-training normalises all tokens, not the mean.
    if info.norms_tokens and isinstance(config, ViTConfig) and config.pool_norm == "after":
        config = dataclasses.replace(config, pool_norm="before")
    if head_rows is not None:
        info = dataclasses.replace(info, num_classes=len(read_head_rows(head_rows)))
    model = _build(config, info)
    report = load_weights(model, opened, head_rows=head_rows)
    if report.resized:
        message = (
            f"weights from {source} must have the sizes of the model to be converted without loss, "
            f"but these would be resized: {shorten(report.resized, limit=2)}. Describe the "
            f"architecture, for example with --set img_size=... or --set window_size=..."
        )
        raise WeightError(message)
    _reject_fresh(report)
    body_only = info.num_classes == 0
    written = to_dialect(model.backbone if body_only else model, to)
    state = {key: _narrow(tensor, info.dtype) for key, tensor in written.items()}
    made_with = json.dumps({"img_size": config.img_size})
    texts = {"dialect": to, "model": name, "source": str(source), MADE_WITH: made_with}
    if report.class_names:
        texts["class_names"] = json.dumps(report.class_names)
    if report.license:
        texts["license"] = report.license

    def write_compared(place: str) -> None:
        _write(Path(place), state, to, texts)
        _compare(model, _build(config, info), load=Path(place), to=to, path=target)

    # What differs never takes the place of a file.
    write_whole(target, write_compared)
    return Conversion(
        path=target,
        report=report,
        num_tensors=len(state),
        num_classes=info.num_classes,
        left_out=tuple(name for name in report.ignored if not name.endswith(_DERIVED)),
        unwritten=_unwritten(model.backbone, name),
    )


def _reject_fresh(report: LoadReport) -> None:
    if report.reset:
        message = (
            f"weights from {report.source} must have every parameter of the model, or random "
            f"values would be written; they lack {shorten(report.reset, limit=2)}. Describe the "
            f"architecture with --set."
        )
        raise WeightError(message)


def _unwritten(backbone: Any, name: str) -> dict[str, Any]:  # noqa: ANN401 (any family)
    usual = find_model(name).config
    names = ("norm_eps", "outer_norm_eps", "activation", "num_heads", "pretrained_windows")
    pairs = [(field, getattr(backbone.config, field, None)) for field in names]
    return {field: value for field, value in pairs if value != getattr(usual, field, None)}


def _build(config: BackboneConfig, info: WeightInfo) -> Network:
    backbone = build_backbone(dataclasses.replace(config, in_chans=info.in_chans))
    return Network(backbone, build_classifier(backbone, info.num_classes))


def _write(path: Path, state: Mapping[str, Tensor], to: str, texts: Mapping[str, str]) -> None:
    if path.suffix == ".safetensors":
        write_weights(path, state, texts)
    elif path.suffix == ".npz":
        # numpy has no bfloat16; float32 represents the same values exactly.
        arrays = {
            key: (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
            for key, tensor in state.items()
        }
        write_whole(path, lambda place: np.savez(place, **arrays))  # type: ignore[arg-type]
    else:
        nest = _NESTED_KEYS.get(to)
        content: dict[str, Any] = {nest: dict(state), "meta": dict(texts)} if nest else dict(state)
        # Other ecosystems read only pickles; this one holds nothing but tensors and strings.
        write_whole(path, lambda place: torch.save(content, place))  # noqa: TID251


def _narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type of the file, unless only that of the model between holds a new sum."""
    narrow = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def _compare(before: Network, after: Network, *, load: Path, to: str, path: Path) -> None:
    """Load what is to be at `path` into another network, and compare every bit."""
    if cut := load_weights(after, load, to).resized:
        config: Any = after.backbone.config
        message = (
            f"{path} must hold all values of the model, but at an img_size of {config.img_size} "
            f"the windows of {to} are smaller, and {shorten(cut, limit=2)} would be cut. Write it "
            f"for a larger size, such as --set img_size=224."
        )
        raise WeightError(message)
    one, two = _list_summed(before), _list_summed(after)
    other = [key for key in one if not torch.equal(one[key], two[key])]
    if other:
        message = (
            f"{path} would differ from its source in {other[0]} and {len(other) - 1} more tensors, "
            f"and was not written. Please report this."
        )
        raise WeightError(message)


def _list_summed(model: Network) -> dict[str, Tensor]:
    """Tensors of a network, those of a ViT with the positions of its tokens added to these."""
    config: Any = model.backbone.config
    tensors = {key.removeprefix("backbone."): x for key, x in model.state_dict().items()}
    if isinstance(config, ViTConfig):
        tensors |= move_positions(tensors, config, 0, config.positioned_tokens)
    return tensors
