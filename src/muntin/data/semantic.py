# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The images of a data set for semantic segmentation, and their masks."""

from __future__ import annotations

import os
from collections.abc import Sequence

from muntin.data.mask_folders import MASK_FOLDERS, name_value, propose_table
from muntin.data.mask_layouts import MaskRequest
from muntin.data.object_masks import OBJECT_MASKS
from muntin.data.readers import Reader, find_reader
from muntin.samples import Classes, DataSets

__all__ = ["READERS", "list_semantic", "name_value", "propose_table"]

READERS: tuple[Reader[MaskRequest, DataSets], ...] = (MASK_FOLDERS, OBJECT_MASKS)
"""Layouts of masks, in the order in which they are tried."""


def list_semantic(
    path: str | os.PathLike[str],
    *,
    classes: Classes | None = None,
    colors: Sequence[str] = (),
    ignored: Sequence[str] = (),
    readers: Sequence[Reader[MaskRequest, DataSets]] = READERS,
) -> DataSets:
    """List the images of a data set and their masks.

    Args:
        path: A folder, a .zip or .tar with images and masks; or what `list_detect` takes, where
            objects have masks.
        classes: Those of a trained run, by whose names (and, where the data has no table, values)
            the masks are read.
        colors: What classes are stored as, ``road:#6EC1E4`` or ``road:3`` each; else a table in
            the data or the masks themselves define them.
        ignored: Values that are not learnt, ``#000000`` or ``255``; 255 by default for indices.
        readers: Layouts to try, in this order.

    Returns:
        The sets; a single set is in `train`, whatever its name. What is wrong with the
        sampled masks is in `problems`.

    Raises:
        DataError: The path, the layout or the table is wrong, or values have no meaning.
    """
    match = find_reader(path, readers, what="masks")
    return match.read(MaskRequest(classes=classes, colors=colors, ignored=ignored))
