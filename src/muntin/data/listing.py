# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The images of a classification data set and their classes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from muntin.data.class_folders import CLASS_FOLDERS
from muntin.data.class_tables import CLASS_TABLE
from muntin.data.readers import Reader, find_reader
from muntin.samples import DataSets

__all__ = ["READERS", "list_classify"]

READERS: tuple[Reader[Sequence[str] | None, DataSets], ...] = (CLASS_TABLE, CLASS_FOLDERS)
"""Layouts of labelled images, in the order in which they are tried."""


def list_classify(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    readers: Sequence[Reader[Sequence[str] | None, DataSets]] = READERS,
) -> DataSets:
    """List the images of a classification data set and their classes.

    Hidden files, `__MACOSX` and `Thumbs.db` are left out in silence, other files that are not
    images by their names with a count in the note. Folders inside a class folder belong to the
    class. One folder around everything is looked through.

    Args:
        path: A folder, a .zip or .tar, or a .csv with the columns `path` and `class`.
        class_names: Classes of a trained run; class numbers then follow them. When left out, the
            numbers follow the sorted names that are found.
        readers: Layouts to try, in this order.

    Returns:
        The sets; a single set is in `train`, whatever its name.

    Raises:
        DataError: The path or the layout is wrong; the message names what and where.
    """
    advice = "Give the folder that holds the class folders."
    reader, source, found = find_reader(path, readers, what="labelled images", advice=advice)
    return reader.read(source, found, class_names)
