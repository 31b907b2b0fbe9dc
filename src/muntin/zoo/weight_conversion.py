# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A file of weights in, a file for another ecosystem out, and the proof that nothing was lost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.configs import with_texts
from muntin.errors import WeightError, shorten
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_files import write_weights, write_whole
from muntin.weights.weight_loading import Facts, LoadReport, load_weights, look_into, open_weights
from muntin.zoo.families import BackboneConfig, build_backbone
from muntin.zoo.model_building import find_model

__all__ = ["Conversion", "convert_weights"]

# Under which key an ecosystem's own loader looks for the weights in a .pth file.
_NESTS = {"microsoft": "model", "openmmlab": "state_dict", "detectron2": "model"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What `convert_weights` did.

    Attributes:
        path: The file that was written.
        report: How the source was read.
        num_tensors: Tensors in the new file.
        num_classes: Classes of the classifier; 0 when there is none.
    """

    path: Path
    report: LoadReport
    num_tensors: int
    num_classes: int


def convert_weights(
    source: str | Path,
    target: str | Path,
    *,
    name: str,
    to: str,
    dialect: str = "auto",
    settings: Iterable[tuple[str, str]] = (),
    force: bool = False,
) -> Conversion:
    """Read weights of any ecosystem and write them for another.

    Args:
        source: What `load_weights` takes.
        target: The new file: ``.safetensors``, ``.pth`` or ``.pt`` (in the nesting that the
            ecosystem's loader expects), or ``.npz`` for "google".
        name: The model in the zoo.
        to: The dialect to write, or "muntin".
        dialect: That of the source.
        settings: Fields of the model's architecture and their values as text, where it differs from
            the one in the zoo: ``("img_size", "96")``.
        force: Whether a file at `target` is replaced.

    Returns:
        What was done. The new file has been read again, and holds the same bits.

    Raises:
        WeightError: The source cannot be read or does not fit the model, the dialect has no place
            for it, or the target cannot be written.
        ConfigError: The model or a field is unknown.
    """
    target = Path(target)
    if target.suffix not in (".safetensors", ".pth", ".pt", ".npz"):
        message = (
            f"converted weights must go to .safetensors, .pth, .pt or .npz, got {str(target)!r}. "
            f"Change the suffix."
        )
        raise WeightError(message)
    if target.exists() and not force:
        message = f"{target} must be a new file, got one that exists. Choose another, or --force."
        raise WeightError(message)
    config = with_texts(find_model(name).config, settings)
    opened = open_weights(source, dialect, config)
    facts = look_into(opened, config)
    model = _build(config, facts)
    report = load_weights(model, opened)
    if report.resized:
        message = (
            f"weights from {source} must have the sizes of the model, or something would change, "
            f"got others for {shorten(report.resized, limit=2)}. Say how it was built: --set "
            f"img_size=..., --set window_size=... and the like."
        )
        raise WeightError(message)
    body_only = facts.num_classes == 0
    state = {
        # What came in half precision goes out in it; float32 holds the same numbers between.
        key: tensor.to(facts.dtype) if tensor.is_floating_point() else tensor
        for key, tensor in to_dialect(model.backbone if body_only else model, to).items()
    }
    texts = {"dialect": to, "model": name, "source": str(source)}
    if report.class_names:
        texts["class_names"] = json.dumps(report.class_names)
    if report.license:
        texts["license"] = report.license
    _write(target, state, to, texts)
    again = _build(config, facts)
    load_weights(again, target, to)
    _compare(model.state_dict(), again.state_dict(), target)
    return Conversion(
        path=target,
        report=report,
        num_tensors=len(state),
        num_classes=facts.num_classes,
    )


def _build(config: BackboneConfig, facts: Facts) -> Network:
    backbone = build_backbone(dataclasses.replace(config, in_chans=facts.in_chans))
    return Network(backbone, build_classifier(backbone, facts.num_classes))


def _write(path: Path, state: Mapping[str, Tensor], to: str, texts: Mapping[str, str]) -> None:
    if path.suffix == ".safetensors":
        write_weights(path, state, texts)
    elif path.suffix == ".npz":
        arrays = {key: _as_array(tensor) for key, tensor in state.items()}
        write_whole(path, lambda place: np.savez(place, **arrays))  # type: ignore[arg-type]
    else:
        nest = _NESTS.get(to)
        content: dict[str, Any] = {nest: dict(state), "meta": dict(texts)} if nest else dict(state)
        # What other ecosystems read; nothing but tensors and texts is in it.
        write_whole(path, lambda place: torch.save(content, place))  # noqa: TID251


def _as_array(tensor: Tensor) -> NDArray[Any]:
    # numpy has no bfloat16; it is stored as the same number in float32.
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor], path: Path) -> None:
    other = [key for key in before if not torch.equal(before[key], after[key])]
    if other:
        message = (
            f"{path} must hold the same bits as its source, got others in {other[0]} and "
            f"{len(other) - 1} more. Please report this; do not use the file."
        )
        raise WeightError(message)
