# SPDX-License-Identifier: Apache-2.0
"""Find the classifier of a backbone in a foreign module, whatever it is called there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

# Names of classifiers; other layers are one only if they have as many outputs as the model.
_HEAD = re.compile(r"(cls_|linear_)?heads?|\w*classifier|fc|linear")
_NO_HEAD = re.compile(r"\w*(proj|predictor|prototype|queue|embed|memory)\w*")
# What no classifier reads or is read by, whatever its shape.
_ASIDE = re.compile(
    r"\w*(projector|predictor|(projection|prediction)_head|prototype|queue|memory|decoder|criterion"
    r"|loss|metric|accuracy|momentum|teacher)\w*|\w*weights?|ema\w*|center"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorGroup:
    """Tensors of a file with the same first name on a level that they share with the backbone.

    `distance` is how many levels that is above the backbone; keys are those in the mapping.
    """

    name: str
    distance: int
    tensors: Mapping[str, Tensor]

    @property
    def num_rows(self) -> int:
        """Number of outputs, of a linear layer."""
        return len(next(iter(self.tensors.values())))


def group_tensors(
    names: Sequence[str], mappings: Mapping[tuple[str, ...], Mapping[str, Tensor]]
) -> Iterator[TensorGroup]:
    """Group all tensors of a file by level and first name, nearest first.

    `names` lead to the backbone: keys of mappings, then the parts of a prefix.
    """
    levels = ["".join(f"{name}." for name in names[:n]) for n in range(len(names), -1, -1)]
    groups: dict[tuple[int, str], dict[str, Tensor]] = {}
    for path, tensors in mappings.items():
        start = "".join(f"{name}." for name in path)
        for key, tensor in tensors.items():
            whole = start + key
            distance = next(n for n, level in enumerate(levels) if whole.startswith(level))
            name = whole[len(levels[distance]) :].partition(".")[0]
            groups.setdefault((distance, name), {})[key] = tensor
    for (distance, name), group in sorted(groups.items(), key=lambda item: item[0][0]):
        yield TensorGroup(name=name, distance=distance, tensors=group)


def find_linears(groups: Iterable[TensorGroup], channels: int) -> Iterator[TensorGroup]:
    """Groups that are one linear layer with this many inputs: weight and perhaps bias."""
    for group in groups:
        tensors = group.tensors
        weights = [key for key in tensors if key.endswith("weight") and tensors[key].ndim == 2]
        rest = [key for key in tensors if key not in weights]
        if len(weights) != 1 or rest not in ([], [f"{weights[0].removesuffix('weight')}bias"]):
            continue
        if tensors[weights[0]].shape[1] == channels:
            yield replace(group, tensors={key: tensors[key] for key in (*weights, *rest)})


def find_between(weight: Tensor, near: Iterable[Mapping[str, Tensor]]) -> Iterator[str]:
    """Names of tensors that may lie between the backbone and a classifier (K, C), or behind it.

    Such are a linear layer or a norm that gives C values, or one that takes K. `near` are unused
    tensors by the network that they belong to; one with maps is no such layer.
    """
    rows, channels = weight.shape[:2]
    for tensors in near:
        if any(tensor.ndim > 2 for tensor in tensors.values()):
            continue
        matrices = {key.rpartition(".")[0] for key in tensors if tensors[key].ndim == 2}
        for key, tensor in tensors.items():
            *modules, _ = key.split(".")
            counter = not tensor.ndim or not tensor.is_floating_point()
            if counter or any(map(_ASIDE.fullmatch, modules)):
                continue
            fits = len(tensor) == channels or tensor.shape[-1] == rows
            norm = ".".join(modules) not in matrices and (modules or len(tensor) == channels)
            if "pre_logits" in key or (fits and (tensor.ndim == 2 or norm)):
                yield key


def choose_classifier(linears: Sequence[TensorGroup], num_classes: int) -> TensorGroup | None:
    """Choose the classifier among linear layers, by number of classes (0: unknown) and name.

    A layer that is not called a head must have as many outputs as the model has classes. None if
    there is none, or if several are equally likely.
    """
    fitting = [
        ((layer.num_rows != num_classes, layer.distance, not _HEAD.fullmatch(layer.name)), layer)
        for layer in linears
        if not _NO_HEAD.fullmatch(layer.name)
        and (layer.num_rows == num_classes or _HEAD.fullmatch(layer.name))
    ]
    best = min((order for order, _ in fitting), default=None)
    chosen = [layer for order, layer in fitting if order == best]
    return chosen[0] if len(chosen) == 1 else None


def is_classifier(name: str) -> bool:
    """Whether a tensor of this name belongs to a classifier, or to another head."""
    return any(re.fullmatch(rf"\w*heads?|{_HEAD.pattern}", part) for part in name.split(".")[:-1])
