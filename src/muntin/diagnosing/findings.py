# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis can find: a table of faults by code, each with its next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Fault(NamedTuple):
    """A kind of fault: what it is, and what to do; "error": a training on it is wasted."""

    what: str
    remedy: str
    severity: Literal["error", "warning"] = "warning"


_UPRIGHT = "Annotate the images as a viewer shows them, or write them again without that tag"

FAULTS: Mapping[str, Fault] = {
    # Of data, by listing it.
    "unreadable": Fault("the data cannot be read", "See: muntin check", "error"),
    "units": Fault(
        "annotations are in another unit or order than their format requires",
        "Convert them as the message says",
        "error",
    ),
    "class-range": Fault(
        "labels are outside the range of the classes",
        "Count classes from 0 in YOLO and masks, and list every class by its number",
    ),
    "left-out": Fault(
        "many annotations cannot be used", "See: muntin check, and correct what it names"
    ),
    "boxes-outside": Fault(
        "boxes lie outside their images",
        "Check that boxes are in pixels of these images, not of larger copies",
    ),
    "empty-training": Fault(
        "hardly any training image has an object", "Check that label files have the images' names"
    ),
    "empty-validation": Fault(
        "nothing in the validation images can be scored",
        "Annotate validation images, or give others with --val",
    ),
    "one-class": Fault(
        "all labels are of one class", "Give images of the other classes a label of their own"
    ),
    "unseen-classes": Fault(
        "classes of the validation images have no training example",
        "Split the data again so that each class is in both parts",
    ),
    "objects-too-small": Fault(
        "objects are smaller than the network can find at its image size",
        "Raise --img-size, or cut the images into tiles",
    ),
    "keypoints-apart": Fault(
        "keypoints lie outside the boxes of their instances",
        "Check that keypoints are x, y in pixels of the image, not of the box, and not y, x",
    ),
    "keypoints-constant": Fault(
        "keypoints are at the same place in all instances", "Check which columns are read as x, y"
    ),
    "left-right": Fault(
        "left and right of a pair of keypoints are swapped", "Swap the names or the points"
    ),
    # Of data, by looking at some of the images.
    "blank-images": Fault(
        "images are even areas without content",
        "Open them in a viewer; set data.range for images of more than 8 bits",
        "error",
    ),
    "channels": Fault(
        "validation images have red and blue swapped against the training images",
        "Write all images as RGB",
        "error",
    ),
    "conflicting-labels": Fault(
        "equal images have different classes", "Keep one label for each image"
    ),
    "one-class-masks": Fault(
        "one class covers all that the masks label",
        "Check the values in the masks: muntin check, --set data.colors=name:value",
        "error",
    ),
    "ignored-masks": Fault(
        "nearly all pixels of the masks are ignored, or have a value of no class",
        "Check data.ignored, data.colors and the values in the masks",
        "error",
    ),
    "mirrored": Fault("annotations fit the mirrored images", "Mirror them back", "error"),
    "turned": Fault("annotations fit the turned images (EXIF orientation)", _UPRIGHT, "error"),
    "axes": Fault("x and y of the annotations are swapped", "Write x before y", "error"),
    "corner-as-centre": Fault(
        "boxes are half a box too far left and up: corners were written as centres",
        "Write the centre of each box (YOLO: x + w / 2, y + h / 2)",
        "error",
    ),
    "centre-as-corner": Fault(
        "boxes are half a box too far right and down: centres were written as corners",
        "Write the left upper corner of each box (COCO: x - w / 2, y - h / 2)",
        "error",
    ),
    "scaled": Fault(
        "boxes are those of images of another size",
        "Multiply them by the ratio of the sizes, or use the images that were annotated",
        "error",
    ),
    "other-images": Fault(
        "annotations fit other images as well as their own",
        "Check that each label file or row names the right image",
    ),
    # Of settings and progress.
    "frozen": Fault(
        "hardly anything is trained, and it cannot learn this",
        "Set train.freeze=0, or start from weights that suit the images (--weights)",
        "error",
    ),
    "rate-high": Fault(
        "the learning rate is too high", "Divide train.learning_rate by 10", "error"
    ),
    "rate-low": Fault(
        "the learning rate is too low", "Leave train.learning_rate to the recipe", "error"
    ),
    "no-progress": Fault(
        "the network cannot learn a few images by heart, whatever the learning rate",
        "Look at pictures of the run and at: muntin check",
        "error",
    ),
    "too-short": Fault("the training was too short", "Raise --epochs or --max-time"),
    "no-signal": Fault(
        "the training loss stayed at that of guessing: labels may not belong to their images",
        "Check some labels by eye: muntin doctor RUN --data DATA --out DIR",
    ),
    "permuted-classes": Fault(
        "what is found is right but for the names of the classes",
        "Number the classes of training and validation data in the same order",
    ),
    "validation-differs": Fault(
        "the training images are learnt, the validation images are not like them",
        "Compare some of both by eye; split the data again, or add images",
    ),
    "unexplained": Fault(
        "no cause was found", "Look at RUN/pictures, and train longer with weights (--weights)"
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A fault that was found; `where` is a part of the data or of the run, `detail` has numbers."""

    code: str
    where: str
    detail: str = ""

    @property
    def is_error(self) -> bool:
        """Whether a training on it is wasted."""
        return FAULTS[self.code].severity == "error"

    def __str__(self) -> str:
        """One line: the code, where and what it is, and the next step."""
        fault, detail = FAULTS[self.code], f" ({self.detail})" if self.detail else ""
        return f"{self.code}: {self.where}: {fault.what}{detail}. {fault.remedy}."

    def to_dict(self) -> dict[str, str]:
        """Give plain values for JSON."""
        fault = FAULTS[self.code]
        return {
            "code": self.code,
            "severity": fault.severity,
            "where": self.where,
            "what": fault.what,
            "detail": self.detail,
            "next": fault.remedy,
        }
