# SPDX-License-Identifier: Apache-2.0
"""Messages give advice that matches the cause: these sentences are pinned.

Everywhere else tests pin the class of an error, the value and the name of the option.
"""

from __future__ import annotations

import errno

import pytest

from muntin.errors import cannot_write, shorten, unknown_name

ADVICE = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), "Free disk space."),
    "full disk, from a library": (
        RuntimeError("I/O error (os error 28)"),
        "Free disk space.",
    ),
    "file in the way": (FileExistsError(errno.EEXIST, "File exists"), "move it."),
    "not allowed": (PermissionError(errno.EACCES, "denied"), "Choose a writable location."),
    "unknown": (RuntimeError("broken"), "(broken). Choose a writable location."),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_for_unwritable_files(case):
    error, advice = ADVICE[case]
    message = cannot_write("runs/a.png", error)
    assert message.startswith("runs/a.png could not be written (")
    assert message.endswith(advice)


def test_nearest_name():
    assert unknown_name("fruit", "aple", ["pear", "apple"]).endswith("Did you mean 'apple'?")
    assert unknown_name("fruit", "x", ["pear", "apple"]).endswith("Known: apple, pear.")
    assert (
        unknown_name("fruit", "x", [], hint="See the tree.") == "Unknown fruit 'x'. See the tree."
    )


def test_shorten():
    assert shorten("abc") == "a, b, c"
    assert shorten("abcdefg") == "a, b, c, d, e and 2 more"


def test_names_in_upper_case_abbreviated_or_of_another_type():
    names = ["cuda", "onnxruntime"]
    assert unknown_name("engine", "CUDA", names) == "Unknown engine 'CUDA'. Did you mean 'cuda'?"
    assert unknown_name("engine", "onnx", names).endswith("Did you mean 'onnxruntime'?")
    assert unknown_name("engine", None, names) == "Unknown engine None. Known: cuda, onnxruntime."
