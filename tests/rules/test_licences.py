# SPDX-License-Identifier: Apache-2.0
"""What the project depends on, and what that depends on, has no copyleft licence."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from itertools import chain

import pytest
from packaging.requirements import Requirement

from tests.rules.sources import ROOT, none

# Copyleft of a whole work. The MPL binds its own files only.
COPYLEFT = re.compile(r"GPL|GNU|EUPL|SSPL|OSL|CeCILL|CC-BY-SA|Affero", re.IGNORECASE)
# Packages whose metadata say nothing: what their licence is.
UNSTATED = {
    "cuda-toolkit": "an empty package that names NVIDIA's libraries",
    "faster-coco-eval": "Apache-2.0, by the LICENSE that is installed with it",
}


def _dependencies() -> dict[str, importlib.metadata.Distribution]:
    """Every installed package that pyproject.toml leads to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    found: dict[str, importlib.metadata.Distribution] = {}
    while wanted:
        requirement = Requirement(wanted.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or not _applies(requirement):
            continue
        try:
            found[name] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        wanted += found[name].requires or ()
    return found


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str:
    """The expression, or else the classifiers, or else the first line of the text; "" if none."""
    kinds = [line for line in metadata.get_all("Classifier", []) if line.startswith("License")]
    text = (metadata.get("License") or "").strip()
    return metadata.get("License-Expression") or "; ".join(kinds) or text.partition("\n")[0]


def _binding(licence: str) -> Iterator[str]:
    """Parts of an expression that hold whatever is chosen, and are copyleft."""
    for part in re.split(r"\bAND\b|;", licence):
        choices = re.split(r"\bOR\b", part)
        exempt = "WITH" in part  # such as the exception of compilers' libraries
        if all(COPYLEFT.search(choice) for choice in choices) and not exempt:
            yield part.strip(" ()")


def test_dependencies_have_no_copyleft_licence() -> None:
    found = {name: licence_of(one.metadata) for name, one in _dependencies().items()}
    assert {"torch", "pillow", "pyyaml"} <= found.keys()
    wrong = [f"{name}: {part}" for name, text in found.items() for part in _binding(text)]
    none(wrong, "Take another library, or record why this one binds nobody.")
    none(
        sorted(name for name, text in found.items() if not text and name not in UNSTATED),
        "Look its licence up, and write it into UNSTATED.",
    )


@pytest.mark.parametrize(
    ("licence", "wrong"),
    [
        ("GPL-3.0-only", True), ("MIT AND LGPL-2.1-or-later", True), ("GPL-2.0-only OR MIT", False),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("GPL-3.0-only WITH GCC-exception-3.1 AND BSD-3-Clause", False), ("MPL-2.0 AND MIT", False),
    ],
)  # fmt: skip
def test_what_binds(licence: str, wrong: bool) -> None:
    assert bool([*_binding(licence)]) == wrong
