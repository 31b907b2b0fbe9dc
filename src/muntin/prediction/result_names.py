# SPDX-License-Identifier: Apache-2.0
"""Names of the files of results: those of their inputs, and never the name of another file."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def name_results(endings: Mapping[str, Sequence[str]], taken: Iterable[str] = ()) -> dict[str, str]:
    """Name the result files of inputs, given what is appended to the name of each.

    The name is that of the input without suffix. If two would be equal, all have the folders below
    which the inputs differ; those that are still equal keep their suffixes (``a.jpg.png`` and
    ``a.tif.png``), then are numbered. Capitals do not count, nor do names that are `taken`.

    Examples:
        >>> name_results({"new/three.png": [".png"]})
        {'new/three.png': 'three'}
        >>> name_results({"mon/1.jpg": [".png"], "tue/1.jpg": [".png"]})
        {'mon/1.jpg': 'mon/1', 'tue/1.jpg': 'tue/1'}
    """
    paths = {source: Path(os.path.abspath(source)) for source in endings}
    stems = {source: Path(path.stem) for source, path in paths.items()}
    counts = Counter(str(stem).casefold() for stem in stems.values())
    shared = _shared_folder(paths.values()) if max(counts.values(), default=0) > 1 else ""
    if shared:
        stems = {
            source: path.relative_to(shared).with_name(path.stem) for source, path in paths.items()
        }
        counts = Counter(str(stem).casefold() for stem in stems.values())
    used = {name.casefold() for name in taken}
    found = {}
    for source, stem in stems.items():
        alone = counts[str(stem).casefold()] == 1
        whole = stem.with_name(paths[source].name)
        numbered = (stem.with_name(f"{stem.name}_{number}") for number in itertools.count(2))
        for name in itertools.chain([stem] if alone else [], [whole], numbered):
            files = {f"{name.as_posix()}{ending}".casefold() for ending in endings[source]}
            if used.isdisjoint(files):
                break
        used |= files
        found[source] = name.as_posix()
    return found


def _shared_folder(paths: Iterable[Path]) -> str:
    try:
        return os.path.commonpath([path.parent for path in paths])
    except ValueError:  # on several drives
        return ""
