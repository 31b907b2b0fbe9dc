# SPDX-License-Identifier: Apache-2.0
"""A teacher's answers to whole training images, computed once and stored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from muntin.configs import to_dict
from muntin.data.batches import evaluation_batch
from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader, Processes
from muntin.errors import WeightError
from muntin.objectives.teacher import Teacher
from muntin.objectives.teacher_answer import SharedClasses, StoredAnswer
from muntin.run_config import DistillConfig, RunConfig
from muntin.samples import Listing
from muntin.staging import part_of
from muntin.weights.weight_files import read_weights, write_weights

if TYPE_CHECKING:
    from muntin.training.progress import Reporter

FOLDER, NAME = "teacher", "answers.safetensors"


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
        done = stated.get("done", "")
        if (
            not isinstance(logits, Tensor)
            or (logits.shape, logits.dtype) != (shape, empty.dtype)
            or stated.get("checksum") != _sum_of(logits)
            or not done.isdecimal()
        ):
            return empty, 0, "is damaged"
        return logits, min(int(done), len(logits)), ""

    def write(self, logits: Tensor, done: int) -> None:
        """Replace the file as a whole; folders are made."""
        stated = {"key": self.key, "checksum": _sum_of(logits), "done": str(done)}
        write_weights(self.path, {"logits": logits}, stated)


def _sum_of(logits: Tensor) -> str:
    return hashlib.sha256(logits.numpy().data).hexdigest()


def find_answers(
    run: Path, config: DistillConfig, teacher: Teacher, shared: SharedClasses, listing: Listing
) -> AnswerFile:
    """Find the file of answers of a run folder.

    Its key depends on the weights and the preprocessing of the teacher, on its classes, and on path
    and size of every file.
    """
    names = [] if teacher.classes is None else [teacher.classes.names[i] for i in shared.teacher]
    parts = [teacher.checksum, to_dict(teacher.preprocessing), names, _list_files(listing)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if config.cache_dir:
        return AnswerFile(Path(config.cache_dir) / f"{key[:16]}.safetensors", key)
    return AnswerFile(part_of(run, FOLDER, NAME), key)


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


@dataclass(frozen=True, slots=True, eq=False)
class TeacherImages:
    """Training images as a teacher sees them, of which one batch is in memory at a time."""

    listing: Listing
    teacher: Teacher
    config: RunConfig

    def load(self, first: int = 0) -> EvalLoader:
        """Load the images from number `first` on."""
        data, pre = replace(self.config.data_config, cache_mib=0), self.teacher.preprocessing
        workers = Processes(workers=max(self.config.machine.workers, 0))
        store = ImageCache(self.listing, pre, data)
        return EvalLoader(store, batch_size=evaluation_batch(pre), processes=workers, first=first)


def compute_answers(
    images: TeacherImages,
    shared: SharedClasses,
    take: Callable[[Tensor, Tensor], None],
    first: int = 0,
) -> None:
    """Give the indices of each batch and its logits, float16, to `take`."""
    columns, teacher = list(shared.teacher), images.teacher
    # An engine of an exported file has no parameters, and takes images on the CPU.
    device = next((p.device for p in teacher.network.parameters()), torch.device("cpu"))
    for batch in images.load(first):
        logits = teacher.logits(batch.images.to(device).float())[:, columns]
        # Within the range of float16, where a larger logit would become infinite.
        take(batch.indices, logits.clamp(-6e4, 6e4).half().cpu())


def store_answers(
    file: AnswerFile, images: TeacherImages, shared: SharedClasses, reporter: Reporter
) -> StoredAnswer:
    """Read stored answers, and compute what is missing of them.

    What was computed is kept after Ctrl-C or an error, and the next run goes on from there.

    Raises:
        WeightError: The answers cannot be written.
    """
    count = len(images.listing)
    logits, done, fault = file.read((count, len(shared.teacher)))
    if fault:
        reporter.note(f"teacher: {file.path} {fault}; its answers are computed again")
    if done == count:
        reporter.note(f"teacher: answers to {count} images read from {file.path}")
        return StoredAnswer(logits, shared)

    def take(indices: Tensor, found: Tensor) -> None:
        nonlocal done
        logits[indices] = found
        done = int(indices[-1]) + 1
        reporter.step("teacher", done / count, {"answers": f"{done}/{count}"})

    try:
        compute_answers(images, shared, take, done)
    except BaseException:
        # Also Ctrl-C; that the disk is full must not hide what ended the work.
        with contextlib.suppress(WeightError):
            file.write(logits, done)
            kept = f"{done} of {count} answers are kept in {file.path}"
            reporter.note(f"teacher: {kept}; the same command goes on from there")
        raise
    file.write(logits, done)
    return StoredAnswer(logits, shared)
