# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from muntin.configs import from_dict, to_dict
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError
from muntin.samples import Classes, Entry, Listing

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


def test_files_of_earlier_versions_are_read():
    old = {
        "names": ["fly"],
        "coding": {"kind": "index", "values": [0, 1]},
        "skeleton": {"names": ["head", "left", "right"], "links": [[0, 1]], "pairs": [[1, 2]]},
    }
    classes = from_dict(Classes, old)
    assert classes.encoding.values == (0, 1)
    assert classes.skeleton.edges == ((0, 1),)
    assert classes.skeleton.flip_pairs == ((1, 2),)
    assert from_dict(Classes, to_dict(classes)) == classes
    with pytest.raises(ConfigError, match="pear"):
        from_dict(Classes, {"names": ["fly"], "skeleton": {"names": ["head"], "pear": []}})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("crop", "center_crop"),
        ("inside", "letterbox"),
        ("window", "sliding_window"),
        ("subject", "instance_crop"),
    ],
)
def test_fits_of_earlier_versions_are_read(old, new):
    values = {"img_size": [8, 8], "mean": [0.5], "std": [0.5], "in_chans": 1, "fit": old}
    pre = from_dict(Preprocessing, values)
    assert pre.fit == new
    assert from_dict(Preprocessing, to_dict(pre)) == pre
