# SPDX-License-Identifier: Apache-2.0
"""A teacher's answers to whole training images, computed once and stored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from muntin.configs import to_dict
from muntin.data.batches import evaluation_batch
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.loading import EvalLoader, Processes
from muntin.errors import WeightError
from muntin.objectives.distilled_objective import SharedClasses
from muntin.objectives.teacher import Teacher
from muntin.run_config import RunConfig
from muntin.runs import Run
from muntin.samples import Listing
from muntin.shapes import Float
from muntin.staging import part_of
from muntin.training.progress import Reporter
from muntin.weights.weight_files import read_weights, write_weights

FOLDER, NAME = "teacher", "answers.safetensors"


class StoredLogits(NamedTuple):
    """Logits of a teacher, float16, in the order of the training listing and of shared classes."""

    logits: Float[Tensor, "N K"]
    shared: SharedClasses


class AnswerFile(NamedTuple):
    """Where answers are stored, and the key of what they depend on."""

    path: Path
    key: str

    def read(self, shape: tuple[int, int]) -> tuple[Tensor, int, str]:
        """Give the logits, how many rows were computed, and why a file cannot be used."""
        empty = torch.zeros(shape, dtype=torch.float16)
        if not self.path.is_file():
            return empty, 0, ""
        try:
            file = read_weights(self.path)
        except WeightError:
            return empty, 0, "is damaged"
        logits, stated = file.tensors.get("logits"), file.metadata
        if stated.get("key") != self.key:
            return empty, 0, "belongs to another teacher, other images or other classes"
        whole = isinstance(logits, Tensor) and logits.dtype == empty.dtype
        if not whole or logits.shape != shape or stated.get("checksum") != _sum_of(logits):
            return empty, 0, "is damaged"
        return logits, int(stated["done"]), ""

    def write(self, logits: Tensor, done: int) -> None:
        """Replace the file as a whole."""
        stated = {"key": self.key, "checksum": _sum_of(logits), "done": str(done)}
        write_weights(self.path, {"logits": logits}, stated)


def _sum_of(logits: Tensor) -> str:
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()


def find_answers(run: Run, teacher: Teacher, shared: SharedClasses, listing: Listing) -> AnswerFile:
    """Find the file of answers of a run.

    Its key depends on the weights and the preprocessing of the teacher, on its classes, and on path
    and size of every file.
    """
    assert run.config.distill is not None, "a run with a teacher"
    names = [] if teacher.classes is None else [teacher.classes.names[i] for i in shared.teacher]
    parts = [teacher.checksum, to_dict(teacher.preprocessing), names, _list_files(listing)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if folder := run.config.distill.cache_dir:
        return AnswerFile(Path(folder) / f"{key[:16]}.safetensors", key)
    return AnswerFile(part_of(run.path, FOLDER, NAME), key)


def _list_files(listing: Listing) -> list[tuple[str, int]]:
    """Path of each image inside the source, and its size in bytes; of an archive, that of all."""
    source = Path(listing.source)
    archive = source.stat().st_size if source.is_file() else None
    rows = []
    for entry in listing.entries:
        size = archive
        if size is None:
            with contextlib.suppress(OSError):  # one that cannot be read is left out later
                size = os.path.getsize(source / entry.path)
        rows.append((entry.path, -1 if size is None else size))
    return rows


def compute_answers(
    teacher: Teacher,
    shared: SharedClasses,
    loader: EvalLoader,
    take: Callable[[Tensor, Tensor], None],
) -> None:
    """Ask about each image of a loader, fitted as the teacher predicts; give indices and logits."""
    columns = list(shared.teacher)
    # An engine of an exported file has no parameters, and takes images on the CPU.
    device = next((p.device for p in teacher.network.parameters()), torch.device("cpu"))
    for batch in loader:
        logits = teacher.logits(batch.images.to(device).float())[:, columns]
        take(batch.indices, logits.clamp(-6e4, 6e4).half().cpu())


def load_images(
    teacher: Teacher, listing: Listing, config: RunConfig, first: int = 0
) -> EvalLoader:
    """Load images as the teacher sees them, one batch in memory at a time, from `first` on."""
    data: DataConfig = replace(config.data_config, cache_mib=0)
    store = ImageCache(listing, teacher.preprocessing, data)
    count = evaluation_batch(teacher.preprocessing)
    workers = Processes(workers=max(config.machine.workers, 0))
    return EvalLoader(store, batch_size=count, processes=workers, first=first)


def store_answers(
    run: Run, teacher: Teacher, shared: SharedClasses, listing: Listing, reporter: Reporter
) -> StoredLogits:
    """Read the stored answers of a run, and compute what is missing.

    What was computed is kept after Ctrl-C or an error, and the next run goes on from there.

    Raises:
        WeightError: The answers cannot be written.
    """
    file = find_answers(run, teacher, shared, listing)
    count = len(listing)
    logits, done, fault = file.read((count, len(shared.teacher)))
    if fault:
        reporter.note(f"teacher: {file.path} {fault}; its answers are computed again")
    if done == count:
        reporter.note(f"teacher: answers to {count} images read from {file.path}")
        return StoredLogits(logits, shared)

    def take(indices: Tensor, found: Tensor) -> None:
        nonlocal done
        logits[indices] = found
        done = int(indices[-1]) + 1
        reporter.step("teacher", done / count, {"answers": f"{done}/{count}"})

    try:
        compute_answers(teacher, shared, load_images(teacher, listing, run.config, done), take)
    except BaseException:
        with contextlib.suppress(WeightError):
            file.write(logits, done)
        raise
    file.write(logits, done)
    return StoredLogits(logits, shared)
