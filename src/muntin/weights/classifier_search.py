# SPDX-License-Identifier: Apache-2.0
"""Find the classifier of a backbone in a foreign module, whatever it is called there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

# Names of classifiers; other layers are one only if they have as many outputs as the model.
_HEAD = re.compile(r"(cls_|linear_)?heads?|\w*classifier|fc|linear")
_NO_HEAD = re.compile(r"\w*(proj|predictor|prototype|queue|embed|memory)\w*")


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearLayer:
    """A linear layer that stands alone in a file: perhaps the classifier of a backbone.

    `name` is its first name on the level of the file that it shares with the backbone, `distance`
    how many levels that is above the backbone; `tensors` are weight and perhaps bias, by their
    names in the mapping.
    """

    name: str
    distance: int
    tensors: Mapping[str, Tensor]

    @property
    def num_rows(self) -> int:
        """Number of outputs."""
        return len(next(iter(self.tensors.values())))


def find_linears(
    names: Sequence[str], mappings: Mapping[tuple[str, ...], Mapping[str, Tensor]], channels: int
) -> Iterator[LinearLayer]:
    """Layers with this many inputs that are alone on a level of the file; nearest first.

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
        weights = [key for key in group if key.endswith("weight") and group[key].ndim == 2]
        rest = [key for key in group if key not in weights]
        if len(weights) != 1 or rest not in ([], [f"{weights[0].removesuffix('weight')}bias"]):
            continue
        if group[weights[0]].shape[1] == channels:
            ordered = {key: group[key] for key in (*weights, *rest)}
            yield LinearLayer(name=name, distance=distance, tensors=ordered)


def choose_classifier(linears: Sequence[LinearLayer], num_classes: int) -> LinearLayer | None:
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
