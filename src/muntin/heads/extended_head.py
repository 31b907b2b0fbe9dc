# SPDX-License-Identifier: Apache-2.0
"""Heads with classes that were added later: one part for each time, beside each other.

A part is a whole head for its own classes. All but the last are frozen, and stay in evaluation
mode, so that over a frozen backbone the raw scores of their classes keep every bit: they are
computed by the same operations on tensors of the same shapes. The last part learns from images in
which objects of earlier classes have no labels. It is never taught that something is of an earlier
class or is not, only that it is of none of its own: in a softmax, the earlier classes together are
one class, "any of these" (Cermelli et al. 2020, arXiv 2002.00718, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.features import Features
from muntin.heads.classification_head import class_losses
from muntin.heads.detector import Candidates, Detector, Instances
from muntin.heads.network import Head
from muntin.heads.semantic_head import SemanticHead
from muntin.ops.boxes import suppress
from muntin.shapes import Float, Int
from muntin.targets import BoxTargets

Part = TypeVar("Part", bound=Head)


class _Parts(Head):
    """What is common to all: the parts, and which of them learn."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        # Not only left out of the optimizer: no gradient is computed for them.
        for part in self.parts[:-1]:
            part.requires_grad_(False)
        counts = [int(cast(Any, part).num_classes) for part in parts]
        self.num_classes, self.num_old = sum(counts), sum(counts[:-1])
        self.firsts = [sum(counts[:number]) for number in range(len(counts))]

    def train(self, mode: bool = True) -> _Parts:
        """Set the mode of the last part; the others stay in evaluation mode."""
        super().train(mode)
        # Batch norms would go on measuring, although their parameters are frozen.
        for part in self.parts[:-1]:
            part.eval()
        return self

    def _rest_first(self, logits: Float[Tensor, "B K ..."]) -> Float[Tensor, "B new_and_1 ..."]:
        """Logits of "any of the earlier classes", then those of the new ones."""
        # log of the sum of their probabilities, up to the constant that a softmax drops
        rest = logits[:, : self.num_old].float().logsumexp(dim=1, keepdim=True)
        return torch.cat([rest, logits[:, self.num_old :].float()], dim=1)

    def _numbered(self, labels: Tensor) -> Tensor:
        """Labels for these logits; negative ones, which are ignored, stay as they are."""
        return torch.where(labels < 0, labels, (labels - self.num_old + 1).clamp(min=0))


class ExtendedClassifier(_Parts):
    """Logits of all classes from the vector of an image."""

    reads = "vector"

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        """Give the logits, those of added classes last."""
        # Layers of their own: one with more rows would round the earlier ones differently.
        return torch.cat([part(features) for part in self.parts], dim=1)

    def losses(
        self,
        features: Features,
        labels: Tensor,
        *,
        class_weights: Float[Tensor, " K"] | None = None,
        label_smoothing: float = 0.0,
        multi_label: bool = False,
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compare the logits with labels; arguments as in `class_losses`."""
        assert class_weights is None, "refused when the run is requested"
        if multi_label:  # what is known of earlier classes teaches nothing
            new, wanted = self(features)[:, self.num_old :], labels[:, self.num_old :]
            return {"classes": class_losses(new, wanted, multi_label=True)}
        if labels.ndim == 1:
            shares = self._numbered(labels)
        else:  # mixed images
            rest = labels[:, : self.num_old].sum(dim=1, keepdim=True)
            shares = torch.cat([rest, labels[:, self.num_old :]], dim=1)
        logits = self._rest_first(self(features))
        return {"classes": class_losses(logits, shares, label_smoothing=label_smoothing)}


class ExtendedSemantic(_Parts):
    """Logits of all classes for every cell of the finest map."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__(parts)
        last = cast(SemanticHead, parts[-1])
        self.config, self.stride = last.config, last.stride

    def forward(self, features: Features) -> Float[Tensor, "B K h w"]:
        """Give the logits, those of added classes last."""
        return torch.cat([part(features) for part in self.parts], dim=1)

    def losses(
        self,
        features: Features,
        labels: Int[Tensor, "B H W"],
        *,
        class_weights: Float[Tensor, " K"] | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Float[Tensor, " B"]]:
        """Give the losses of each image, by name, as `SemanticHead.losses`."""
        assert class_weights is None, "refused when the run is requested"
        rows = [cast(SemanticHead, part).all_logits(features) for part in self.parts]
        # Of the classifiers, then of the auxiliary ones; at the cells, before they are enlarged.
        columns = zip(*(logits for logits, _ in rows), strict=True)
        logits = [self._rest_first(torch.cat(column, dim=1)) for column in columns]
        last = cast(SemanticHead, self.parts[-1])
        return last.compare(
            logits, rows[-1][1], self._numbered(labels), label_smoothing=label_smoothing
        )


class _Found(Candidates):
    """Candidates of all parts: a row of one part has score 0 for the classes of the others."""

    def __init__(self, head: ExtendedDetector, parts: list[Candidates]) -> None:
        total = head.num_classes
        wide = any(part.boxes.shape[2] > 1 for part in parts)
        boxes, scores = [], []
        for first, part in zip(head.firsts, parts, strict=True):
            own = part.scores.shape[2]
            after = total - first - own
            scores.append(F.pad(part.scores, (first, after)))
            slots = part.boxes
            # A box for each class in one part, and one for all in another: the same for all then.
            if wide:
                slots = F.pad(slots.expand(-1, -1, own, -1), (0, 0, first, after))
            boxes.append(slots)
        self.parts = parts
        levels = [level for part in parts for level in part.levels]
        super().__init__(levels, torch.cat(boxes, 1), torch.cat(scores, 1), head.decode)


class ExtendedDetector(_Parts, Detector):
    """Boxes, and perhaps masks, of all classes; each part decodes its own."""

    @property
    def config(self) -> Any:  # noqa: ANN401 (any detector's)
        """Config of the parts, which have the same one."""
        return cast(Any, self.parts[-1]).config

    @config.setter
    def config(self, config: Any) -> None:  # noqa: ANN401
        for part in self.parts:
            cast(Any, part).config = config

    def forward(self, features: Features) -> Candidates:
        """Compute the candidates of every part."""
        return _Found(self, [part(features) for part in self.parts])

    def losses(
        self, features: Features, targets: list[BoxTargets]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compute the losses of the last part; objects of earlier classes are none of its own."""
        # As background: regions of earlier classes are examples of what is none of the added.
        last = cast(Detector, self.parts[-1])
        return last.losses(features, [select_objects(one, self.num_old) for one in targets])

    def decode(self, raw: Candidates) -> list[Instances]:
        """Select the instances of each image in every part, and keep the best of all."""
        assert isinstance(raw, _Found), "what this head computed"
        rows = [
            cast(Detector, part).decode(found)
            for part, found in zip(self.parts, raw.parts, strict=True)
        ]
        return [self._join(image) for image in zip(*rows, strict=True)]

    def _join(self, found: Sequence[Instances]) -> Instances:
        boxes = torch.cat([one.boxes for one in found])
        scores = torch.cat([one.scores for one in found])
        numbered = zip(self.firsts, found, strict=True)
        class_ids = torch.cat([one.class_ids + first for first, one in numbered])
        select = self.select
        # Within a part this is done; across parts only classes that suppress each other need it.
        order, scores = suppress(
            boxes,
            scores,
            torch.zeros_like(class_ids),
            iou=select.iou,
            kind=select.suppression if select.class_agnostic else "none",
            limit=select.max_detections,
            min_score=select.score_threshold,
        )
        # Parts are of one kind: all have masks, or none has.
        masks = None
        if found[0].masks is not None:
            masks = torch.cat([cast(Tensor, one.masks) for one in found])[order]
        return Instances(boxes[order], scores, class_ids[order], masks)

    def decode_fixed(self, raw: Candidates) -> tuple[Tensor, ...]:
        """Like `decode`, with a fixed number of instances per image."""
        assert isinstance(raw, _Found), "what this head computed"
        rows = []
        for part, first, found in zip(self.parts, self.firsts, raw.parts, strict=True):
            boxes, scores, class_ids, *masks = cast(Detector, part).decode_fixed(found)
            rows.append((boxes, scores, class_ids + first, *masks))
        boxes, scores, class_ids, *masks = (torch.cat(part, 1) for part in zip(*rows, strict=True))
        count = min(self.select.max_detections, scores.shape[1])
        # Padding of each part has score 0, so it comes last here too.
        best, places = scores.topk(count, dim=1)
        rest = [part.gather(1, _as(places, part)) for part in (boxes, class_ids, *masks)]
        return (rest[0], best, *rest[1:])

    def score_of(
        self, features: Features, box: Float[Tensor, "4"], class_id: int
    ) -> Callable[[Features], Float[Tensor, " B"]]:
        """Give what the part with this class gives."""
        number = max(i for i, first in enumerate(self.firsts) if first <= class_id)
        part = cast(Detector, self.parts[number])
        return part.score_of(features, box, class_id - self.firsts[number])


def _as(places: Tensor, values: Tensor) -> Tensor:
    """Indices along the second side, for all values behind it."""
    rest = values.shape[2:]
    return places.view(*places.shape, *[1] * len(rest)).expand(*places.shape, *rest)


def select_objects(targets: BoxTargets, first: int) -> BoxTargets:
    """Keep the objects of class `first` and later ones, which are numbered from 0 then."""
    kept = targets.keep(targets.class_ids >= first)
    return kept._replace(class_ids=kept.class_ids - first)


def extend_head(parts: Sequence[nn.Module]) -> _Parts:
    """Put heads of one kind, each for some of the classes, beside each other."""
    if isinstance(parts[0], Detector):
        return ExtendedDetector(parts)
    return (ExtendedSemantic if isinstance(parts[0], SemanticHead) else ExtendedClassifier)(parts)


def copy_part(part: nn.Module, into: nn.Module, class_layers: Sequence[str]) -> None:
    """Begin with the values of another part, except in layers with a row per class."""
    ends = tuple(f".{name}." for name in class_layers)
    state = {
        name: value
        for name, value in part.state_dict().items()
        if not any(end in f".{name}" for end in ends)
    }
    into.load_state_dict(state, strict=False)  # which keeps the layers that are left out
