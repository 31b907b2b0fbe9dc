# SPDX-License-Identifier: Apache-2.0
"""What a teacher says of a batch: of the classes that its student knows too, or its maps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from muntin.data.batches import Batch
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, plural, shorten
from muntin.objectives.teacher import Teacher
from muntin.samples import Classes
from muntin.shapes import Float
from muntin.tasks.task import TrainBatch


class SharedClasses(NamedTuple):
    """Class numbers of the classes that both know, in one order."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]


def match_classes(teacher: Teacher, classes: Classes) -> SharedClasses:
    """Match classes by name, whatever their case, with spaces and underscores as one.

    A name that several classes have is left out.

    Raises:
        ConfigError: The teacher has another task, or too few classes in common.
    """
    theirs = teacher.classes
    kind = None if teacher.task is None else teacher.task.kind
    if theirs is None or teacher.task is None or kind != "classification":
        name = "none" if teacher.task is None else teacher.task.name
        message = (
            f"distill.kind=hard and soft need a teacher of the task classify, got {name} in "
            f"{teacher.source}. Set distill.kind=features."
        )
        raise ConfigError(message)
    if theirs.multi_label != classes.multi_label:
        kinds = ("exactly one class", "any number of classes")
        message = (
            f"the teacher must give an image {kinds[classes.multi_label]}, as the labels do, got "
            f"{kinds[theirs.multi_label]} in {teacher.source}. Set distill.kind=features."
        )
        raise ConfigError(message)
    known, wanted = _places(theirs.names), _places(classes.names)
    common = [name for name in wanted if name in known]
    least = 1 if classes.multi_label else 2
    if len(common) < least:
        message = (
            f"distill.kind=hard and soft need at least {plural(least, 'class', 'classes')} that "
            f"teacher and data share by name, got {len(common)}: the teacher {teacher.source} has "
            f"{shorten(theirs.names, limit=3)}, the data have {shorten(classes.names, limit=3)}. "
            f"Set distill.kind=features."
        )
        raise ConfigError(message)
    return SharedClasses(
        teacher=tuple(known[name] for name in common),
        student=tuple(wanted[name] for name in common),
    )


def _places(names: tuple[str, ...]) -> dict[str, int]:
    keys = [" ".join(name.casefold().replace("_", " ").split()) for name in names]
    counts = Counter(keys)
    return {key: number for number, key in enumerate(keys) if counts[key] == 1}


@dataclass(frozen=True, slots=True, eq=False)
class TeacherAnswer:
    """Asks a teacher about every augmented image: for logits of these classes, None = for maps."""

    teacher: Teacher
    seen_by: Preprocessing
    shared: SharedClasses | None

    def __call__(self, batch: Batch, inputs: TrainBatch) -> tuple[Tensor, ...]:
        """Show the input of the student to the teacher."""
        pixels, sizes = self.teacher.show(inputs.images, self.seen_by, inputs.sizes)
        if self.shared is None:
            return tuple(self.teacher.maps(pixels, sizes))
        return (self.teacher.logits(pixels)[:, list(self.shared.teacher)],)


@dataclass(frozen=True, slots=True, eq=False)
class StoredAnswer:
    """Looks up logits of these classes, float16, one row an image of the training listing."""

    logits: Float[Tensor, "N K"]
    shared: SharedClasses

    def __call__(self, batch: Batch, inputs: TrainBatch) -> tuple[Tensor, ...]:
        """Find the rows of a batch."""
        return (self.logits[batch.indices].to(inputs.images.device).float(),)


Answer = TeacherAnswer | StoredAnswer
