# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from muntin.samples import Entry, Listing

ENTRIES = (
    Entry(path="a.jpg", class_ids=(0,)),
    Entry(path="b.jpg", class_ids=(2, 0), group="x"),
    Entry(path="c.jpg"),
)
LISTING = Listing(
    source="set", entries=ENTRIES, class_names=("cat", "cow", "dog"), multi_label=True
)


def test_counts():
    assert len(LISTING) == 3
    assert LISTING.num_classes == 3
    assert LISTING.class_counts == (2, 0, 1)


def test_select_keeps_the_given_order_and_the_rest():
    part = LISTING.select([2, 0])
    assert [entry.path for entry in part.entries] == ["c.jpg", "a.jpg"]
    assert (part.source, part.class_names, part.multi_label) == ("set", LISTING.class_names, True)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LISTING.source = "other"  # type: ignore[misc]
