# SPDX-License-Identifier: Apache-2.0
"""What the server and its worker say to each other: tuples of these, names, numbers and bytes."""

from __future__ import annotations

from dataclasses import dataclass

LOADED, FAILED, SAID, DONE = "loaded", "failed", "said", "done"
"""Kinds of messages of the worker: a model that is ready, one that is not, a line for the log about
one, answers of a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    """What all images of a batch have in common.

    Attributes:
        least_box: Minimum score of the boxes of the detector beside a top-down pose model; None
            keeps the one that it was loaded with.
    """

    model: str
    tta: bool = False
    tile: int | str | None = None
    least_box: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkItem:
    """One image of a batch.

    Attributes:
        name: What the result calls it.
        data: An image file, or the values of `shape`.
        shape: (H, W, 3) of uint8 values; empty for an image file.
        threshold: Minimum score of what the answer holds; 0 keeps all.
    """

    name: str
    data: bytes
    shape: tuple[int, ...] = ()
    threshold: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of an image: the JSON text of its result, or an error and who caused it.

    Attributes:
        fault: "" for a result, "image" if the image cannot be read, "request" if its options do
            not suit the model, "server" for a bug.
    """

    text: str
    fault: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchReport:
    """Answers of a batch, in order, and where its seconds went."""

    answers: tuple[Answer, ...]
    decode: float = 0.0
    network: float = 0.0
    encode: float = 0.0
