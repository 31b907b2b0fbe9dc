# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from muntin.data.splitting import describe_split, split
from muntin.errors import ConfigError, DataError
from muntin.samples import Entry, Listing


def listing_of(counts: dict[str, int]) -> Listing:
    entries = tuple(
        Entry(path=f"{name}/{number}.jpg", class_ids=(class_id,))
        for class_id, (name, count) in enumerate(counts.items())
        for number in range(count)
    )
    return Listing(source="set", entries=entries, class_names=tuple(counts))


def paths(listing: Listing) -> set[str]:
    return {entry.path for entry in listing.entries}


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_nothing_is_lost_and_classes_keep_their_share(fraction):
    whole = listing_of({"a": 100, "b": 40, "c": 7, "d": 1})
    train, val = split(whole, fraction=fraction, seed=0)
    assert paths(train) | paths(val) == paths(whole)
    assert not paths(train) & paths(val)
    assert len(val) == max(1, round(fraction * 148))
    for total, kept, taken in zip(
        whole.class_counts, train.class_counts, val.class_counts, strict=True
    ):
        assert kept >= 1
        assert abs(taken - fraction * total) <= 1 or kept == 1


def test_many_tiny_classes_meet_the_total():
    whole = listing_of({f"class {number}": 4 for number in range(100)})
    train, val = split(whole, fraction=0.1, seed=0)
    assert len(val) == 40
    assert max(val.class_counts) == 1
    assert "60 classes too small" in describe_split(train, val)


def test_order_on_disk_does_not_matter_but_the_seed_does():
    whole = listing_of({"a": 50, "b": 30})
    shuffled = whole.select(np.random.default_rng(0).permutation(80).tolist())
    first = paths(split(whole, fraction=0.2, seed=1)[1])
    assert first == paths(split(shuffled, fraction=0.2, seed=1)[1])
    assert first != paths(split(whole, fraction=0.2, seed=2)[1])


def test_parts_keep_the_order_of_the_listing():
    whole = listing_of({"a": 20, "b": 20})
    for part in split(whole, fraction=0.3, seed=0):
        order = [whole.entries.index(entry) for entry in part.entries]
        assert order == sorted(order)


def test_a_class_of_one_image_stays_in_train():
    train, val = split(listing_of({"a": 10, "b": 1}), fraction=0.5, seed=0)
    assert train.class_counts[1] == 1
    assert val.class_counts[1] == 0


def grouped(num_groups: int, seed: int = 0) -> Listing:
    rng = np.random.default_rng(seed)
    entries = []
    for group in range(num_groups):
        for number in range(int(rng.integers(1, 12))):
            class_id = int(rng.integers(3))
            path = f"{group}/{number}.jpg"
            entries.append(Entry(path=path, class_ids=(class_id,), group=f"patient {group}"))
    return Listing(source="set", entries=tuple(entries), class_names=("a", "b", "c"))


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_near_the_fraction(seed):
    whole = grouped(60, seed)
    train, val = split(whole, fraction=0.2, seed=seed)
    groups = [{entry.group for entry in part.entries} for part in (train, val)]
    assert not groups[0] & groups[1]
    assert len(train) + len(val) == len(whole)
    assert 0.17 < len(val) / len(whole) < 0.23
    for total, taken in zip(whole.class_counts, val.class_counts, strict=True):
        assert 0.12 < taken / total < 0.28
    assert "whole groups" in describe_split(train, val)


def test_groups_are_split_independent_of_order():
    whole = grouped(30)
    shuffled = whole.select(np.random.default_rng(1).permutation(len(whole)).tolist())
    first = paths(split(whole, fraction=0.2, seed=1)[1])
    assert first == paths(split(shuffled, fraction=0.2, seed=1)[1])
    assert first != paths(split(whole, fraction=0.2, seed=2)[1])


def test_two_large_groups_are_parted_all_the_same():
    entries = tuple(
        Entry(path=f"{number}.jpg", class_ids=(number % 2,), group=f"g{number // 10}")
        for number in range(20)
    )
    whole = Listing(source="set", entries=entries, class_names=("a", "b"))
    train, val = split(whole, fraction=0.2, seed=0)
    assert (len(train), len(val)) == (10, 10)


def test_images_without_a_group_are_free():
    whole = listing_of({"a": 30, "b": 30})
    entries = (replace(whole.entries[0], group="x"), replace(whole.entries[1], group="x"))
    whole = replace(whole, entries=entries + whole.entries[2:])
    _, val = split(whole, fraction=0.2, seed=0)
    assert len(val) == 12
    assert len({"a/0.jpg", "a/1.jpg"} & paths(val)) in (0, 2)


@pytest.mark.parametrize("seed", range(3))
def test_multi_label_keeps_the_share_of_rare_classes(seed):
    rng = np.random.default_rng(seed)
    chances = np.array([0.6, 0.3, 0.1, 0.03])
    entries = tuple(
        Entry(path=f"{n}.jpg", class_ids=tuple(np.flatnonzero(rng.random(4) < chances).tolist()))
        for n in range(600)
    )
    whole = Listing(
        source="set", entries=entries, class_names=("a", "b", "c", "d"), multi_label=True
    )
    train, val = split(whole, fraction=0.2, seed=seed)
    assert abs(len(val) - 120) <= 3
    for total, kept, taken in zip(
        whole.class_counts, train.class_counts, val.class_counts, strict=True
    ):
        assert kept >= 1
        assert abs(taken - 0.2 * total) <= max(2, 0.05 * total)


def test_errors():
    with pytest.raises(ConfigError, match=r"fraction must .* got 1"):
        split(listing_of({"a": 3, "b": 3}), fraction=1.0, seed=0)
    with pytest.raises(DataError, match=r"class .* one image .* got 2 images"):
        split(listing_of({"a": 1, "b": 1}), fraction=0.5, seed=0)
    empty = Listing(source="set", entries=(), class_names=("a", "b"), multi_label=True)
    with pytest.raises(DataError, match=r"0 images in 'set' cannot"):
        split(empty, fraction=0.5, seed=0)
    entries = tuple(Entry(path=f"{n}", class_ids=(n % 2,), group=f"{n % 2}") for n in range(8))
    whole = Listing(source="set", entries=entries, class_names=("a", "b"))
    with pytest.raises(DataError, match=r"class .* one group .* got 2 groups"):
        split(whole, fraction=0.5, seed=0)


def test_description():
    train, val = split(listing_of({"a": 50, "b": 30}), fraction=0.25, seed=0)
    text = describe_split(train, val)
    assert text == "60 images to train on, 20 to validate (25.0%), 2 classes"
    entries = tuple(Entry(path=f"{n // 2}", class_ids=(0,), instance=n % 2) for n in range(40))
    subjects = Listing(source="set", entries=entries, class_names=("a",), multi_label=True)
    train, val = split(subjects, fraction=0.25, seed=0)
    assert describe_split(train, val) == "30 instances to train on, 10 to validate (25.0%), 1 class"
