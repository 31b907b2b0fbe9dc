# SPDX-License-Identifier: Apache-2.0
"""Add classes to a trained run, without the images that it learnt from.

The classes of the run come first, then those that only the new data have; classes of both are the
same if their names are. What the run answers stays as it was, see `muntin.heads.extended_head`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from muntin.errors import ConfigError, DataError, RunError, plural, shorten
from muntin.heads.network import Network
from muntin.run_config import ExtendConfig, RunConfig
from muntin.run_files import weights_checksum
from muntin.runs import Run, is_run
from muntin.samples import Entry, Listing
from muntin.training.defaults import Choice

if TYPE_CHECKING:
    from muntin.training.request import Request

_UNSEEN = -2
"""Value of a class that the masks do not have; -1 is what no object covers."""


def find_extension(request: Request) -> ExtendConfig | None:
    """Describe the run that is extended: that of the request, or of the run to repeat."""
    if not request.extend:
        return None if request.base is None else request.base.extend
    if not is_run(request.extend):
        message = f"--extend must be a run folder of muntin train, got {request.extend!r}."
        raise RunError(message)
    origin = Run.open(request.extend)
    if origin.config.task != request.task:
        message = (
            f"--extend must be a run of {request.task}, got {request.extend}, a run of "
            f"{origin.config.task}. Its backbone alone can be used: --weights {request.extend}"
        )
        raise ConfigError(message)
    # A run that added classes itself has several parts, which stay apart.
    names, before = origin.classes.names, origin.config.extend
    counts = (*before.counts, len(names) - sum(before.counts)) if before else (len(names),)
    return ExtendConfig(
        run=request.extend,
        checksum=weights_checksum(origin.path),
        classes=names,
        counts=counts,
    )


def extend_listings(
    extend: ExtendConfig, train: Listing, val: Listing
) -> Choice[tuple[Listing, Listing]]:
    """Number the classes of the data behind those of the run."""
    old = extend.classes
    added = [name for name in train.class_names if name not in old]
    shared = [name for name in train.class_names if name in old]
    if not added:
        message = (
            f"the data must have classes that {extend.run} lacks, got {shorten(shared)} only. To "
            f"go on with these, train with --weights {extend.run}."
        )
        raise DataError(message)
    names = (*old, *added)
    notes = [
        f"adds {plural(len(added), 'class', 'classes')} ({shorten(added)}) to the "
        f"{len(old)} of {extend.run} ({shorten(old)})"
    ]
    if shared:
        notes.append(
            f"classes of both ({shorten(shared)}) stay as the run has learnt them: their labels "
            f"only teach what is none of the added classes"
        )
    return Choice((_renumber(train, names), _renumber(val, names)), tuple(notes))


def _renumber(listing: Listing, names: tuple[str, ...]) -> Listing:
    number = [names.index(name) for name in listing.class_names]
    if listing.encoding is not None:  # whose values are in the order of the classes
        # Objects that masks are drawn from keep their numbers: the values refer to these.
        values = dict(zip(number, listing.encoding.values, strict=True))
        row = tuple(values.get(place, _UNSEEN) for place in range(len(names)))
        encoding = replace(listing.encoding, values=row)
        return replace(listing, class_names=names, encoding=encoding)
    entries = tuple(_renumber_entry(entry, np.array(number)) for entry in listing.entries)
    return replace(listing, class_names=names, entries=entries)


def _renumber_entry(entry: Entry, number: np.ndarray[Any, np.dtype[np.int64]]) -> Entry:
    objects = entry.objects
    if objects is not None:
        ids = objects.class_ids  # -1 is a region of any class
        objects = replace(objects, class_ids=np.where(ids < 0, ids, number[ids]))
    return replace(entry, class_ids=tuple(number[[*entry.class_ids]].tolist()), objects=objects)


def hold_backbone(network: Network, config: RunConfig) -> tuple[str, ...]:
    """Keep the backbone of an extended run as it is, unless it learns; say what is given up."""
    train = config.train
    if config.extend is None:
        return ()
    # Not where other runs freeze it: those have always trained with its dropout.
    network.holds_backbone = train.freeze == -1
    if train.freeze == -1 and train.adapt == "none":
        return (
            "the backbone stays as it is, and with it every score of the earlier classes: it does "
            "not adapt to the new images (train.freeze=0 lets it)",
        )
    return (
        "the backbone learns from the new images only: scores of the earlier classes change, and "
        "may get worse (train.freeze=-1 keeps them)",
    )
