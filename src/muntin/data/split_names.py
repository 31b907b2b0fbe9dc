# SPDX-License-Identifier: Apache-2.0
"""Words that name a set of a data set: train, val or test."""

from __future__ import annotations

import re
from functools import lru_cache

PARTS = ("train", "val", "test")
"""The sets of a data set, in the order in which they are reported."""

# Capitals begin a word: "TrainSet" is "Train", "Set".
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PART_WORDS = re.compile(
    r"(?P<train>train(?:ing|val|set)?)|(?P<test>test(?:ing|set|dev)?)"
    r"|(?P<val>(?:mini)?val(?:id|idation|set)?|valminusminival)"
)


def part_named(name: str) -> str:
    """Give the set that a whole name stands for; "" for none.

    Examples:
        >>> part_named("Validation"), part_named("test_tube")
        ('val', '')
    """
    found = _PART_WORDS.fullmatch(name.lower())
    return str(found.lastgroup) if found else ""


@lru_cache(maxsize=4096)
def part_in(name: str) -> str:
    """Find train, val or test in one name; "" when none is there.

    Examples:
        >>> part_in("instances_train2017"), part_in("valid"), part_in("latest")
        ('train', 'val', '')
    """
    return next((part for word in _WORDS.findall(name) if (part := part_named(word))), "")
