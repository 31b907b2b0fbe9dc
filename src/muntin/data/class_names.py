# SPDX-License-Identifier: Apache-2.0
"""Names of classes, and the numbers that they get."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from muntin.errors import DataError, shorten


def clean_class_name(name: object) -> str:
    """One spelling of a class name: no space around it, one way to write an accent."""
    return unicodedata.normalize("NFC", str(name)).strip()


def number_classes(
    found: Iterable[str], used: Collection[str], wanted: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Give the names in the order of the numbers, and the number of each name.

    `found` lists the classes in order, `used` those of them that images or objects have. Numbers
    follow `wanted`, the classes of a trained run; a class that is only listed then has none.
    """
    names = tuple(dict.fromkeys(found))
    if wanted is None:
        if not names:
            message = (
                f"A data set of objects needs at least one class, got none in {where}. "
                f"Annotate objects first."
            )
            raise DataError(message)
        return names, {name: class_id for class_id, name in enumerate(names)}
    numbers = {clean_class_name(name): class_id for class_id, name in enumerate(wanted)}
    refuse_unknown([n for n in names if n in used and n not in numbers], wanted, where)
    return tuple(wanted), numbers


def refuse_unknown(
    unknown: Sequence[str],
    wanted: Sequence[str],
    where: str,
    advice: str = "Rename or remove them.",
) -> None:
    """Refuse classes that a trained run does not have."""
    if unknown:
        message = (
            f"Classes must be among the {len(wanted)} that the run was trained on "
            f"({shorten(wanted, limit=12)}), got also {shorten(unknown)} in {where}. {advice}"
        )
        raise DataError(message)
