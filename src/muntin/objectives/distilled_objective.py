# SPDX-License-Identifier: Apache-2.0
"""Learning from labels and from a teacher: its classes for classifiers, its maps for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from muntin.data.batches import Batch
from muntin.data.loading import EvalLoader
from muntin.devices import Autocast
from muntin.features import FeatureSpec
from muntin.heads.classification_head import class_losses
from muntin.heads.network import Network
from muntin.objectives.objective import Objective
from muntin.objectives.supervised_objective import Supervised
from muntin.objectives.teacher_answer import Answer, TeacherAnswer
from muntin.ops.distillation_losses import feature_losses, find_inside, hard_losses, soft_losses
from muntin.samples import Listing
from muntin.scoring.evaluator import Outputs, Scored
from muntin.shapes import Float
from muntin.tasks.task import TrainBatch


class DistilledBatch(NamedTuple):
    """Inputs of a supervised step, and the teacher's logits (B, K) or maps, finest first."""

    inputs: dict[str, TrainBatch]
    answers: tuple[Tensor, ...]


class Distilled(Objective[DistilledBatch]):
    """A supervised objective with a teacher, which validation does without."""

    def __init__(self, supervised: Supervised, answer: Answer) -> None:
        self.supervised, self.answer = supervised, answer
        self.auxiliary = supervised.auxiliary

    def prepare(self, views: Sequence[Batch], device: torch.device) -> DistilledBatch:
        """Prepare the inputs of the student, and ask the teacher about the same images."""
        inputs = self.supervised.prepare(views, device)
        return DistilledBatch(inputs, self.answer(views[0], next(iter(inputs.values()))))

    def evaluate(
        self, network: Network, loader: EvalLoader, device: torch.device, autocast: Autocast
    ) -> Outputs:
        """Predict the validation images with the student alone."""
        return self.supervised.evaluate(network, loader, device, autocast)

    def score(self, parts: Sequence[Outputs], listing: Listing) -> Scored:
        """Compute the figures of the supervised task."""
        return self.supervised.score(parts, listing)

    def goal(self, figures: Mapping[str, Any]) -> tuple[str, float]:
        """Name and value of the main figure of the supervised task."""
        return self.supervised.goal(figures)


class DistilledClasses(Distilled):
    """Learn classes from labels and from a teacher (Touvron et al. 2021, arXiv 2012.12877).

    Where the student has a distillation token, its classifier learns from the teacher only, and
    that of the class token from labels only; prediction averages both. Logits are compared among
    the classes that both know, so that a teacher says nothing of others: the share of a label of
    those is learnt from the label alone.
    """

    def __init__(
        self,
        supervised: Supervised,
        answer: Answer,
        *,
        kind: Literal["hard", "soft"],
        alpha: float,
        temperature: float,
    ) -> None:
        super().__init__(supervised, answer)
        self.kind, self.alpha, self.temperature = kind, alpha, temperature
        assert answer.shared is not None, "classes are compared by number"
        columns, count = answer.shared.student, len(supervised.first.classes.names)
        self.columns = None if columns == (*range(count),) else torch.tensor(columns)

    def losses(self, network: Network, inputs: DistilledBatch) -> dict[str, Float[Tensor, " B"]]:
        """Compute the share of the labels (`classes`) and that of the `teacher`."""
        (batch,) = inputs.inputs.values()
        assert batch.labels is not None, "classification needs labels"
        multi_label = self.supervised.first.classes.multi_label
        head: Any = network.head
        features = self.supervised.features(network, batch)
        own, taught = head.branches(features)
        from_labels = class_losses(
            own,
            batch.labels,
            class_weights=batch.class_weights,
            label_smoothing=batch.label_smoothing,
            multi_label=multi_label,
        )
        share: Tensor | float = self.alpha
        if self.columns is not None:
            columns = self.columns.to(taught.device)
            taught = taught[:, columns]
            if not multi_label:
                share = self.alpha * _known_share(batch.labels, columns, own.shape[1])
        (logits,) = inputs.answers
        if self.kind == "hard":
            from_teacher = hard_losses(taught, logits, multi_label=multi_label)
        else:
            from_teacher = soft_losses(taught, logits, self.temperature, multi_label=multi_label)
        losses = {"classes": (1 - share) * from_labels, "teacher": share * from_teacher}
        return {**losses, **self.supervised.location_losses(features)}


def _known_share(labels: Tensor, columns: Tensor, num_classes: int) -> Float[Tensor, " B"]:
    """Share of the label of each image, a class number or shares, that is of known classes."""
    known = torch.zeros(num_classes, device=labels.device)
    known[columns] = 1.0
    return known[labels] if labels.ndim == 1 else (labels * known).sum(dim=1)


class Pair(NamedTuple):
    """Numbers of a map of the student and of the map of the teacher that it is compared with."""

    student: int
    teacher: int


def pair_maps(student: FeatureSpec, teacher: FeatureSpec) -> list[Pair]:
    """Pair each map of a teacher with the map of the student of the nearest stride.

    Of several maps for one of the student, the one of the nearest stride stays, and of equally
    near ones the coarser.

    Examples:
        >>> student = FeatureSpec((8, 16, 32, 64), (4, 8, 16, 32))
        >>> pair_maps(student, FeatureSpec((192,), (14,)))
        [Pair(student=2, teacher=0)]
    """

    def gap(pair: Pair) -> float:
        ratio = student.strides[pair.student] / teacher.strides[pair.teacher]
        return max(ratio, 1 / ratio)

    best: dict[int, Pair] = {}
    for number in range(len(teacher.strides)):
        pairs = [Pair(ours, number) for ours in reversed(range(len(student.strides)))]
        pair = min(pairs, key=gap)
        if pair.student not in best or gap(pair) <= gap(best[pair.student]):
            best[pair.student] = pair
    return [best[number] for number in sorted(best)]


class DistilledFeatures(Distilled):
    """Learn a task from its labels, and maps from a teacher of any task (arXiv 2205.14141).

    Each map of the student goes through a 1x1 projection, which is trained with it and dropped
    afterwards.
    """

    def __init__(
        self,
        supervised: Supervised,
        answer: TeacherAnswer,
        *,
        student: FeatureSpec,
        alpha: float,
    ) -> None:
        super().__init__(supervised, answer)
        teacher = answer.teacher.backbone.spec
        self.alpha, self.pairs = alpha, pair_maps(student, teacher)
        self.projections = nn.ModuleList(
            nn.Conv2d(student.channels[ours], teacher.channels[theirs], 1)
            for ours, theirs in self.pairs
        )
        if supervised.auxiliary is None:
            self.auxiliary = self.projections
        else:
            self.auxiliary = nn.ModuleList((self.projections, supervised.auxiliary))

    def losses(self, network: Network, inputs: DistilledBatch) -> dict[str, Float[Tensor, " B"]]:
        """Compute the losses of the task, and the mean over maps as `features`."""
        batch = next(iter(inputs.inputs.values()))
        features = network.features(batch.images, batch.sizes, maps=True)
        losses = self.supervised.compare(network, features, inputs.inputs)
        found = []
        for (ours, theirs), projection in zip(self.pairs, self.projections, strict=True):
            maps = projection(features.maps[ours])
            cells = (maps.shape[2], maps.shape[3])
            inside = find_inside(batch.sizes, features.image_size, cells)
            found.append(feature_losses(maps, inputs.answers[theirs], inside))
        return {**losses, "features": self.alpha * torch.stack(found).mean(dim=0)}
