# SPDX-License-Identifier: Apache-2.0
"""Models in this process, without a queue: for servers of replicas, which have one of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import Request

from muntin.errors import unknown_name
from muntin.serving.batch_steps import answer_batch
from muntin.serving.messages import Answer, BatchOptions, WorkItem
from muntin.serving.serve_settings import LoadOptions, ModelSource, ServeLimits
from muntin.serving.service import texts_of, to_batch
from muntin.serving.uploads import PredictRequest, check_length, read_request, refuse
from muntin.serving.worker import load_model, refuse_unused_detector
from muntin.staging import list_json

Job = tuple[BatchOptions, WorkItem]
"""An image of a request, and what it shares with others that may be in its batch."""


class Replica:
    """Models that answer the requests of `POST /predict` of `muntin serve`.

    Args:
        files: Exported files or run folders by name; the first is the default.
        limits: What requests are refused for; queues and deadlines are the server's.
        load: How models are loaded.

    Attributes:
        models: Descriptions of the models, as `GET /models` gives them.

    Raises:
        RunError, ConfigError: A model cannot be loaded.
    """

    def __init__(
        self,
        files: Mapping[str, Path | str],
        limits: ServeLimits | None = None,
        load: LoadOptions | None = None,
    ) -> None:
        self.limits = limits or ServeLimits()
        self._predictors: dict[str, Any] = {}
        self.models: list[dict[str, Any]] = []
        sources = [ModelSource(name=name, path=str(path)) for name, path in files.items()]
        options = load or LoadOptions()
        refuse_unused_detector(sources, options)
        for source in sources:
            self._predictors[source.name], description = load_model(source, options)
            self.models.append(description)

    def limit(self, **changes: float) -> None:
        """Change fields of the limits; out of range they are a `ConfigError`."""
        self.limits = replace(self.limits, **changes)  # type: ignore[arg-type]

    def find_model(self, name: str) -> dict[str, Any]:
        """Describe a model, the first for "".

        Raises:
            RefusedError: There is none of this name.
        """
        known = [model["name"] for model in self.models]
        if name and name not in known:
            raise refuse(404, unknown_name("model", name[:100], known), "model")
        return self.models[known.index(name) if name else 0]

    async def read(self, request: Request) -> list[Job]:
        """Read a request.

        Raises:
            RefusedError: It is too large, not understood, or asks for what is not there.
        """
        check_length(request, self.limits)
        asked = await read_request(request, self.limits, self.find_model)
        if not isinstance(asked, PredictRequest):
            raise refuse(422, "tasks of Label Studio must go to muntin serve, got them here.")
        options, items = to_batch(self.find_model(asked.model), asked)
        return [(options, item) for item in items]

    def answer(self, jobs: Sequence[Job]) -> list[Answer]:
        """Answer images in order; those of the same model and options go through it together."""
        groups: dict[BatchOptions, list[int]] = {}
        for place, (options, _) in enumerate(jobs):
            groups.setdefault(options, []).append(place)
        answers: dict[int, Answer] = {}
        for options, places in groups.items():
            items = tuple(jobs[place][1] for place in places)
            found = answer_batch(self._predictors[options.model], options, items)
            answers.update(zip(places, found, strict=True))
        return [answers[place] for place in range(len(jobs))]

    def join(self, answers: Sequence[Answer]) -> str:
        """Write the answers of a request as JSON.

        Raises:
            RefusedError: There is none for one of the images.
        """
        return "".join(list_json(texts_of(answers)))
