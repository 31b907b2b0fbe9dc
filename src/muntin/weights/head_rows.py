# SPDX-License-Identifier: Apache-2.0
"""Some classes of a larger classifier: ImageNet-1k from 22k, as in published fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from muntin.errors import WeightError, shorten
from muntin.untrusted import read_regular


def read_head_rows(rows: Sequence[int] | str | Path) -> list[int]:
    """Read class ids, one per line, from a file; a list is returned unchanged."""
    if not isinstance(rows, (str, Path)):
        if not all(isinstance(row, int) for row in rows):
            message = f"head_rows must be integers, got {shorten(rows)}."
            raise WeightError(message)
        return list(rows)
    try:
        return [int(line) for line in read_regular(rows).decode("utf-8").split()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = (
            f"head_rows {str(rows)!r} must be a text file with one class id per line: {reason}."
        )
        raise WeightError(message) from error


def select_rows(
    tensors: dict[str, Tensor], rows: list[int] | None, model: nn.Module, where: str
) -> None:
    """Keep rows of a classifier in its tensors, one for each class of the model; None keeps all."""
    if rows is None:
        return
    own = model.state_dict().get("head.fc.weight")
    names = [name for name in tensors if name.startswith("head.fc")]
    if own is None or not names:
        owner = "the model" if own is None else where
        message = f"head_rows must be of a classifier, but {owner} has none. Leave it out."
        raise WeightError(message)
    if len(rows) != len(own):
        message = (
            f"head_rows must have one entry for each of the model's {len(own)} classes, got "
            f"{len(rows)}."
        )
        raise WeightError(message)
    for name in names:
        count = tensors[name].shape[0]
        if not rows or min(rows) < 0 or max(rows) >= count:
            message = (
                f"head_rows must be class ids from 0 to {count - 1} of {where}, got "
                f"{f'{min(rows)} to {max(rows)}' if rows else 'none'}. Check head_rows."
            )
            raise WeightError(message)
        tensors[name] = tensors[name][rows]


def select_names(names: tuple[str, ...], rows: list[int] | None) -> tuple[str, ...]:
    """Names of the rows that are kept, if those of all are known."""
    known = rows is not None and max(rows) < len(names)
    return tuple(names[row] for row in rows or ()) if known else names if rows is None else ()
