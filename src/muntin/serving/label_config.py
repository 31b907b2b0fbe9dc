# SPDX-License-Identifier: Apache-2.0
"""Labelling configurations of Label Studio: which regions of which image a project asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from muntin.errors import first_line
from muntin.serving.uploads import name_kind, refuse
from muntin.untrusted import parse_xml

RECTANGLES, POLYGONS, BRUSHES = "rectanglelabels", "polygonlabels", "brushlabels"
KEYPOINTS, CHOICES = "keypointlabels", "choices"
KINDS = {
    "classification": (CHOICES,),
    "detection": (RECTANGLES, POLYGONS, BRUSHES),
    "segmentation": (BRUSHES, POLYGONS),
    "keypoints": (RECTANGLES, KEYPOINTS),
}
"""Control tags that a model can answer, by its kind; in lower case, as results name them."""

_MOST_CHARACTERS = 1_000_000
_MOST_TAGS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlTag:
    """A control tag, which asks for regions of an image.

    Attributes:
        kind: Its element, in lower case.
        name: Its own name, ``from_name`` of results.
        image: Name of the image, ``to_name`` of results.
        key: Key of the image in the data of a task.
        labels: Text of the result by what it may be called, folded by `fold`.
        multiple: Whether a result may have several choices.
        threshold: Minimum score; None for that of the model.
    """

    kind: str
    name: str
    image: str
    key: str
    labels: Mapping[str, str]
    multiple: bool = False
    threshold: float | None = None

    def label_of(self, class_name: str) -> str | None:
        """Give the label of a class; None if the project does not ask for it."""
        return self.labels.get(fold(class_name))


def fold(name: str) -> str:
    """Make names equal that differ in case, spaces and underscores alone."""
    return " ".join(name.casefold().replace("_", " ").split())


def parse_label_config(text: object) -> tuple[ControlTag, ...]:
    """Parse a configuration: the control tags of images that some model can answer.

    Raises:
        RefusedError: It is no configuration.
    """
    if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
        got = f"{len(text)} characters" if isinstance(text, str) else name_kind(text)
        message = f"label_config must be XML of at most {_MOST_CHARACTERS} characters, got {got}."
        raise refuse(422, message)
    try:
        root = parse_xml(text)
    except ValueError as error:
        message = f"label_config must be XML, such as <View>...</View>, got: {first_line(error)}"
        raise refuse(422, message) from error
    images = {
        element.get("name", ""): element.get("value", "").removeprefix("$")
        for element in root.iter()
        if element.tag.lower() == "image" and element.get("value", "").startswith("$")
    }
    known = {kind for kinds in KINDS.values() for kind in kinds}
    tags = [
        _read_tag(element, images)
        for element in root.iter()
        if element.tag.lower() in known
        and element.get("toName", "") in images
        # A choice for each region that a person draws is no answer about the image.
        and element.get("perRegion", "false").lower() != "true"
    ]
    if len(tags) > _MOST_TAGS:
        message = f"label_config must have at most {_MOST_TAGS} control tags, got {len(tags)}."
        raise refuse(422, message)
    return tuple(tags)


def _read_tag(element: Element, images: Mapping[str, str]) -> ControlTag:
    labels: dict[str, str] = {}
    for child in element.iter():
        value = child.get("value", "")
        if child.tag.lower() not in ("label", "choice") or not value:
            continue
        # A result holds the alias where there is one.
        text = child.get("alias") or value
        others = (child.get("predicted_values") or "").split(",")
        for name in (value, text, *others):
            if name.strip():
                labels.setdefault(fold(name), text)
    return ControlTag(
        kind=element.tag.lower(),
        name=element.get("name", ""),
        image=element.get("toName", ""),
        key=images[element.get("toName", "")],
        labels=labels,
        multiple=element.get("choice", "single").lower() == "multiple",
        threshold=_read_threshold(element),
    )


def _read_threshold(element: Element) -> float | None:
    text = element.get("model_score_threshold")
    if text is None:
        return None
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        message = (
            f"model_score_threshold of {element.get('name', '')[:100]!r} in label_config must be a "
            f"number from 0 to 1, got {text[:100]!r}."
        )
        raise refuse(422, message)
    return score


def describe_mismatch(tags: Iterable[ControlTag], names: Iterable[str], kind: str) -> list[str]:
    """Say which tags a model does not answer, and which labels and names have no counterpart.

    Args:
        tags: Control tags of a project.
        names: Classes of the model, or its keypoints.
        kind: Kind of the model.
    """
    lines = []
    known = {fold(name): name for name in names}
    answered = [tag for tag in tags if tag.kind in KINDS.get(kind, ())]
    if not answered:
        asked = ", ".join(KINDS.get(kind, ()))
        lines.append(f"the project asks for nothing that a model of {kind} gives: {asked}")
    for tag in answered:
        if tag.kind == RECTANGLES and kind == "keypoints":
            continue
        found = {label for key, label in tag.labels.items() if key in known}
        without = sorted(set(tag.labels.values()) - found)
        absent = [name for key, name in known.items() if key not in tag.labels]
        if without:
            lines.append(f"labels of {tag.name!r} that the model lacks: {without}")
        if absent:
            lines.append(f"classes of the model that {tag.name!r} lacks: {absent}")
    return lines
