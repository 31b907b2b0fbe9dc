# SPDX-License-Identifier: Apache-2.0
"""Score a run on a cluster: its machines answer, this one computes the figures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from muntin.clusters.ray_stages import Failed, Stage, run_stages
from muntin.data.batches import Batch
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.loading import EvalLoader
from muntin.data.transforms import Preprocessing
from muntin.errors import ClusterError, MuntinWarning
from muntin.prediction.from_run import find_threshold, load
from muntin.runs import Run
from muntin.samples import Listing
from muntin.scoring.evaluator import Outputs, Scored, compute_figures, run_network


class _Read(NamedTuple):
    """A batch that was read, and why images of it could not be, by index."""

    batch: Batch
    unreadable: Mapping[int, str]


def score_on(
    on: str,
    run: Run,
    store: ImageCache,
    *,
    batch_size: int,
    device: str = "auto",
    tta: bool = False,
) -> Scored:
    """Score a run as `evaluator.score` does, with batches read and answered on a cluster.

    The figures are those of one machine, of the same batches in the order of the images. `store`
    keeps nothing in memory; what cannot be read is noted in it.

    Raises:
        ClusterError: A batch was lost; figures of the rest would be wrong, and look right.
        DataError: No image can be read.
    """
    listing = store.listing
    kept = store.fits(DataConfig().cache_mib)
    starts = range(0, len(listing), batch_size)
    stages = (
        Stage(partial(_Reading, listing, run.preprocessing, kept, batch_size)),
        Stage(partial(_Answers, run, device, listing, tta), network=True, device=device),
    )
    paths = [one for one in (str(run.path), listing.source) if os.path.exists(one)]
    parts: list[Outputs] = []
    for start, found in zip(starts, run_stages(on, starts, stages, paths=paths), strict=True):
        if isinstance(found, Failed):
            first = listing.entries[start].path
            message = (
                f"every {listing.unit[:-1]} must be scored, but each process that had the "
                f"{batch_size} from {first} on died. Look at the memory of the nodes, or evaluate "
                f"without --on."
            )
            raise ClusterError(message)
        parts.append(found[0])
        store.unreadable |= found[1]
    store.refuse_unreadable()
    store.warn()
    scored = compute_figures(parts, run.task, run.classes, listing)
    threshold = find_threshold(run).score if run.task.detects else 0.0
    return replace(scored, threshold=threshold)


@contextmanager
def _untold() -> Iterator[None]:
    """Context without the warnings of parts: the whole is told of once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MuntinWarning)
        yield


class _Reading:
    """The stage that reads: the index of its first image to a batch."""

    def __init__(self, listing: Listing, pre: Preprocessing, kept: bool, batch_size: int) -> None:
        with _untold():
            self._store = ImageCache(listing, pre, DataConfig(cache_mib=0), as_if_kept=kept)
        self._batch_size = batch_size

    def __call__(self, start: int) -> _Read:
        end = start + self._batch_size
        with _untold():
            loader = EvalLoader(self._store, batch_size=self._batch_size, first=start, limit=end)
            (batch,) = loader
        texts = self._store.unreadable
        return _Read(batch, {at: texts[at] for at in range(start, end) if at in texts})


class _Answers:
    """The stage that runs the network: a batch to its outputs, with the ground truth."""

    def __init__(self, run: Run, device: str, listing: Listing, tta: bool) -> None:
        self._predictor, self._listing, self._tta = load(run, device=device), listing, tta
        self._truth = run.task.ground_truth(listing, run.classes)

    def __call__(self, read: _Read) -> tuple[Outputs, Mapping[int, str]]:
        outputs = run_network(
            self._predictor, [read.batch], self._listing, truth_rows=self._truth, tta=self._tta
        )
        return outputs, read.unreadable
