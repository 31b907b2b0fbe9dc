# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a data set is made of: where each picture is and what is known about it.

A `Listing` names pictures without opening them. It never knows who made it: a folder, an archive
and a CSV give the same listing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = ["Entry", "Listing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One picture and its classes.

    Attributes:
        path: The file, relative to the source of its listing, with forward slashes.
        class_ids: One number for single-label data, none to all for multi-label data.
        group: Pictures of one group (a patient, a video) must not be parted by a split; "" = none.
    """

    path: str
    class_ids: tuple[int, ...] = ()
    group: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The pictures of one set, in a fixed order.

    Attributes:
        source: The folder or archive that the paths of the entries are in.
        entries: The pictures.
        class_names: What the class numbers stand for.
        multi_label: Whether a picture may have any number of classes.
    """

    source: str
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    multi_label: bool = False

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.entries)

    @property
    def num_classes(self) -> int:
        """Count the classes, those without pictures included."""
        return len(self.class_names)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Pictures of each class, in the order of `class_names`."""
        counts = Counter(class_id for entry in self.entries for class_id in entry.class_ids)
        return tuple(counts[class_id] for class_id in range(len(self.class_names)))

    def select(self, indices: Iterable[int]) -> Listing:
        """Keep the entries at these positions, in this order."""
        return replace(self, entries=tuple(self.entries[index] for index in indices))
