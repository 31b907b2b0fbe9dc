# SPDX-License-Identifier: Apache-2.0
"""A predictor whose images are read, and whose network runs, on the machines of a cluster."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from muntin.clusters.ray_cluster import check_address
from muntin.clusters.ray_stages import Failed, Stage, run_stages
from muntin.errors import ConfigError, MuntinWarning, plural
from muntin.prediction.batch import ImageLike, PreparedBatch, expand_places
from muntin.prediction.predictor import Predictor, check_options
from muntin.prediction.video import VIDEO_SUFFIXES
from muntin.runs import Run

Load = Callable[..., Predictor]
"""Loads the predictor in a process of the cluster, by the function that was asked for it here."""


class ClusterPredictor(Predictor):
    """Predicts paths of images on a cluster: reading with preparing, and the network, are stages.

    Results are those of a `Predictor` on one machine, in the same order. Nothing is loaded here.

    Args:
        on: ``ray``, or ``ray://HOST:PORT``.
        run: What the predictor is of.
        load: Loads it, for a `device`.
        batch_size: Images at a time.
        device: Of the network: "auto" is a GPU where the cluster has some.
        detector: Path of the run that detects instances, if there is one; it runs beside the
            network, not where images are read.
    """

    def __init__(
        self, on: str, run: Run, load: Load, batch_size: int, device: str, detector: str
    ) -> None:
        self.on = check_address(on)
        facts = (run.task, run.classes, run.preprocessing)
        super().__init__(nn.Identity(), *facts, device="cpu", batch_size=batch_size)
        self._run, self._load, self._to, self._detector = run, load, device, detector

    def stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        tta: bool = False,
        tile: int | Literal["auto"] | None = None,
        scales: Sequence[Any] = (1.0,),
        boxes: Iterable[Any] | None = None,
        strict: bool = True,
    ) -> Iterator[Any]:
        """Predict as `Predictor.stream` does; images are paths, folders or patterns alone.

        Raises:
            ConfigError: Other inputs, boxes, or what `ray_cluster.connected` refuses.
            ClusterError: The cluster stopped working.
        """
        check_options(self.task, tta, tile, scales, boxes is not None)
        places = [images] if isinstance(images, str | Path) else [*images]  # type: ignore[misc]
        kind = next((type(one) for one in places if not isinstance(one, str | Path)), None)
        videos = [one for one in places if Path(str(one)).suffix.lower() in VIDEO_SUFFIXES]
        if kind or videos or boxes is not None:
            got = "boxes" if boxes is not None else str(videos[0]) if videos else f"a {kind}"
            message = (
                f"on a cluster images must be paths that its nodes can read, without boxes, got "
                f"{got}. Predict this without on (--on)."
            )
            raise ConfigError(message)
        paths = [path for path, _ in expand_places(places, strict)]
        passes = {"tta": tta, "tile": tile, "scales": scales, "strict": strict}
        return self._receive(paths, passes)

    def _receive(self, paths: list[str], passes: dict[str, Any]) -> Iterator[Any]:
        # All tiles of a batch are in memory: of a large image there are many.
        size = 1 if passes["tile"] is not None else self.batch_size
        groups = [paths[start : start + size] for start in range(0, len(paths), size)]
        network = Stage(
            partial(_Answers, self._load, self._to, self.threshold, passes), True, self._to
        )
        stages = [network]
        if not self._detector:
            stages.insert(0, Stage(partial(_Prepare, self._reader(passes), passes)))
        seen = [str(self._run.path), *paths[:1], *([self._detector] if self._detector else ())]
        needed = [path for path in seen if Path(path).exists()]
        found = run_stages(self.on, groups, stages, paths=needed)
        for group, results in zip(groups, found, strict=True):
            if isinstance(results, Failed):
                text = (
                    f"skipped: {plural(len(group), 'image')} from {group[0]} on: each process that "
                    f"had them died. Predict them without --on"
                )
                warnings.warn(text, MuntinWarning, stacklevel=2)
            else:
                yield from results

    def _reader(self, passes: dict[str, Any]) -> Callable[[], Predictor]:
        """Give what makes the predictor that prepares: with a network only where that is asked."""
        if self.task.detects and (passes["tta"] or passes["tile"] is not None):
            return partial(self._load, device="cpu")
        facts = (self.task, self.classes, self.preprocessing)
        return partial(Predictor, nn.Identity(), *facts, device="cpu", batch_size=self.batch_size)

    def _refuse(self, *images: Any, **options: Any) -> Any:  # noqa: ANN401
        """Refuse: what these do happens on the cluster, in `stream`."""
        message = "a predictor of a cluster has no parts here. Call it, or leave on (--on) out."
        raise ConfigError(message)

    prepare = run = decode = _refuse


class _Prepare:
    """The stage that reads files: paths to a prepared batch."""

    def __init__(self, make: Callable[[], Predictor], passes: dict[str, Any]) -> None:
        self._predictor, self._passes = make(), passes

    def __call__(self, paths: list[str]) -> PreparedBatch:
        return self._predictor.prepare(paths, **self._passes)


class _Answers:
    """The stage that runs the network: a prepared batch, or paths, to results."""

    def __init__(self, load: Load, device: str, threshold: float, passes: dict[str, Any]) -> None:
        self._predictor, self._passes = load(device=device), passes
        self._predictor.threshold = threshold

    def __call__(self, batch: PreparedBatch | list[str]) -> list[Any]:
        if isinstance(batch, list):
            return [*self._predictor.stream(batch, **self._passes)]
        return self._predictor.decode(self._predictor.run(batch))
