# SPDX-License-Identifier: Apache-2.0
"""The verdict on a pretraining: what few labels gain by it, measured against a fresh network."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from muntin.data.cache import ImageCache
from muntin.data.listing import list_classify
from muntin.data.loading import EvalLoader, TrainLoader
from muntin.data.splitting import hold_out
from muntin.errors import DataError, plural, shorten
from muntin.nn.mimetic_init import init_mimetic
from muntin.ops.similarity import classify_by_neighbours
from muntin.recipes import find_recipe
from muntin.run_files import RESULTS, read_json, write_json
from muntin.runs import Run
from muntin.samples import DataSets, Listing
from muntin.tasks.classification_task import CLASSIFY
from muntin.training.defaults import default_recipe
from muntin.training.initial_weights import initialize
from muntin.training.machine import build_fabric
from muntin.training.optimization import lr_factor
from muntin.training.progress import Reporter
from muntin.training.reconstruction_images import embed
from muntin.training.request import PreparedRun, Request
from muntin.training.run_objective import build_objective
from muntin.training.setup import prepare
from muntin.training.trainer import Trainer
from muntin.zoo.model_building import find_model

SHARE = 0.1
"""Part of the pretraining's time that the verdict may take, but for the least below."""

FRACTIONS = (0.01, 0.1)
"""Parts of the labels that are learnt from, at least one image a class."""

_STEPS = (20, 1000)  # least and most steps of each fine-tuning
_MAX_HASHED = 2000
_IMAGES = (400, 10_000)  # least and most images whose features are compared


def list_probe(probe: str) -> DataSets:
    """List the images of ``--probe``; a `DataError` if they cannot judge a backbone.

    They must have classes to tell apart, and a part to hold out.
    """
    try:
        data = list_classify(probe)
    except DataError as error:
        reason = str(error).replace("DATA must", "It must", 1)
        message = f"--probe must be images with classes, as for train classify. {reason}"
        raise DataError(message) from error
    # One that lacks train, or is at fault, would be refused only after the training.
    listing = data.train
    if listing is None or data.fault:
        found = data.fault or f"found only {shorten(data.parts)}"
        message = f"--probe must have images to train with, got {probe}: {found}. Give others."
        raise DataError(message)
    if listing.multi_label:
        message = (
            f"--probe must be images of one class each, got some with several or none in {probe}. "
            f"Leave it out, or give others."
        )
        raise DataError(message)
    # Every class keeps an image to learn from: without a second one nothing can be held out.
    if data.val is None and data.test is None and not any(n > 1 for n in listing.class_counts):
        message = (
            f"--probe must have a folder val, or a class with at least two images, one of which is "
            f"held out, got {plural(len(listing), 'image')} of as many classes in {probe}. Add "
            f"images, or give others."
        )
        raise DataError(message)
    return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Parts of the held-out images that are classified right, with pretraining and without.

    `name` is its key in ``results.json``, `what` says what was learnt from, `labels` counts that.
    `noise` is twice the standard error of the difference: of images that only one of both gets
    right, each falls to either side by chance. One such image is added: few agree by chance too.
    """

    name: str
    what: str
    labels: int
    pretrained: float
    fresh: float
    noise: float

    @classmethod
    def of(cls, name: str, what: str, labels: int, right: Sequence[Tensor]) -> Comparison:
        """Compare what is right (N), bool, of the same images, with pretraining and without."""
        pretrained, fresh = right
        return cls(
            name=name,
            what=what,
            labels=labels,
            pretrained=float(pretrained.float().mean()),
            fresh=float(fresh.float().mean()),
            noise=2 * float(1 + (pretrained != fresh).sum()) ** 0.5 / len(fresh),
        )

    @property
    def gain(self) -> float:
        """What pretraining adds."""
        return self.pretrained - self.fresh

    def __str__(self) -> str:
        pretrained, fresh = 100 * self.pretrained, 100 * self.fresh
        return f"{self.what}: {pretrained:.1f} % instead of {fresh:.1f} %"


def judge(run: Run, probe: str, seconds: float, reporter: Reporter) -> dict[str, Any]:
    """Compare a pretrained run with a fresh network on labelled images, and write the figures.

    Frozen features classify by the 20 nearest neighbours; then both are fine-tuned with few labels,
    in equally many steps, each by the recipe of `muntin train` for its weights. `seconds` is the
    time of the pretraining, a tenth of which this may take.
    """
    config = run.config
    # Copies are looked for only where that takes seconds.
    data = list_probe(probe)
    reporter.note(f"probe: {data.note}")
    groups = "auto" if sum(map(len, data.parts.values())) <= _MAX_HASHED else "none"
    request = Request(
        task=CLASSIFY.name, data=probe, out=str(run.path), weights=str(run.path),
        seed=config.train.seed, machine=config.machine, settings=(("data.groups", groups),),
    )  # fmt: skip
    prepared = prepare(request)
    fabric = build_fabric(prepared.run.config.machine, devices=1)
    trial = _FewLabels(fabric, prepared, _begin_anew(prepared, run), SHARE * seconds)
    rows = [trial.compare_neighbours()]
    reporter.note(
        f"verdict on {plural(_count(trial.val), 'held-out image')} of {probe}: fine-tuning from "
        f"pretrained and from fresh weights, {trial.steps} steps each"
    )
    rows += trial.compare_fine_tuning()
    verdict = describe(rows)
    reporter.note(verdict)
    figures: dict[str, Any] = {
        "num_images": _count(trial.val),
        "steps": trial.steps,
        **{row.name: {n: getattr(row, n) for n in _FIELDS} for row in rows},
        "verdict": verdict,
    }
    results = read_json(run.path / RESULTS)
    results["figures"] = {**results.get("figures", {}), "probe": figures}
    write_json(run.path / RESULTS, results)
    return figures


_FIELDS = ("labels", "pretrained", "fresh", "noise")


def describe(rows: Sequence[Comparison]) -> str:
    """One sentence on what pretraining gained; the last row decides."""
    last = rows[-1]
    if last.gain > last.noise:
        verdict = "worth it"
    elif last.gain < -last.noise:
        verdict = "did not help"
    else:
        points = 100 * last.noise
        verdict = f"no clear gain (chance alone makes {points:.1f} points in the first comparison)"
    return f"{verdict}: {'; '.join(str(row) for row in reversed(rows))}"


def _begin_anew(prepared: PreparedRun, pretraining: Run) -> PreparedRun:
    """The same classifier as before the pretraining, with the recipe for its weights."""
    run, weights = prepared.run, pretraining.config.weights
    if not weights:
        old, kind = run.config.train, run.task.recipe_kind
        recipe = find_recipe(default_recipe(len(prepared.train), pretrained=False)[0], kind)
        train = replace(recipe.train, seed=old.seed, batch_size=old.batch_size)
        config = replace(run.config, train=train, augment=recipe.augment)
        run = replace(run, config=config)
    torch.manual_seed(run.config.train.seed)
    network = run.build_network()
    if weights:
        initialize(network, run, weights, find_model(run.config.model_name))
    elif run.config.train.init == "mimetic":
        init_mimetic(network.backbone, run.config.train.seed)
    return replace(prepared, run=run, network=network)


class _FewLabels:
    """Both networks, the images that they are compared on, and how much of each is affordable."""

    def __init__(
        self, fabric: Fabric, pretrained: PreparedRun, fresh: PreparedRun, budget_s: float
    ) -> None:
        self.fabric, self.both = fabric, (pretrained, fresh)
        self.seed = pretrained.run.config.train.seed
        self.train = pretrained.train
        for each in self.both:
            each.network.to(fabric.device).eval()
        few = self._store(hold_out(self.train, count=16, seed=self.seed)[1])
        start = time.perf_counter()
        embed(pretrained.network, few, fabric.device)
        each_s = (time.perf_counter() - start) / len(few)
        # A bank of images and as many others pass through both networks, the others thrice.
        self.limit = _between(_IMAGES, 0.3 * budget_s / (8 * each_s))
        self.val = self._store(hold_out(pretrained.val, count=self.limit, seed=self.seed)[1])
        start = time.perf_counter()
        # The first steps choose kernels and take longer: the estimate is on the safe side.
        self._fit(pretrained, self._store(self._take(FRACTIONS[-1]), training=True), 2)
        step_s = (time.perf_counter() - start) / 2
        self.steps = _between(_STEPS, 0.7 * budget_s / (2 * len(FRACTIONS) * step_s))

    def compare_neighbours(self) -> Comparison:
        """Classify by the nearest neighbours among the training images."""
        bank = self._store(hold_out(self.train, count=self.limit, seed=self.seed)[1])
        count, right = self.train.num_classes, []
        labels, truth = (
            CLASSIFY.ground_truth(store.listing, self.both[0].run.classes)
            for store in (bank, self.val)
        )
        for each in self.both:
            seen, places = embed(each.network, bank, self.fabric.device)
            found, queries = embed(each.network, self.val, self.fabric.device)
            nearest = classify_by_neighbours(found, seen, labels[places], count)
            right.append(nearest == truth[queries])
        what = f"by the nearest of {_count(bank)} frozen features"
        return Comparison.of("neighbours", what, _count(bank), right)

    def compare_fine_tuning(self) -> Iterator[Comparison]:
        """Fine-tune both with few labels; sets that are no larger than the one before are left."""
        before = 0
        for fraction in FRACTIONS:
            listing = self._take(fraction)
            if len(listing) == before:  # one image a class is the least
                continue
            # Stored once for both: what cannot be read is known after the first pass.
            before, few = len(listing), self._store(listing, training=True)
            right = [self._score(self._fit(each, few, self.steps)) for each in self.both]
            what = f"{100 * fraction:g} % of the labels ({plural(_count(few), 'image')})"
            yield Comparison.of(f"labels_{100 * fraction:g}", what, _count(few), right)

    def _take(self, fraction: float) -> Listing:
        """A part of the images of each class, at least one."""
        members: dict[int, list[int]] = defaultdict(list)
        for index, entry in enumerate(self.train.entries):
            members[entry.class_ids[0]].append(index)
        kept: list[int] = []
        for places in members.values():
            count = max(1, round(fraction * len(places)))
            chosen = {
                e.path
                for e in hold_out(self.train.select(places), count=count, seed=self.seed)[1].entries
            }
            kept += [place for place in places if self.train.entries[place].path in chosen]
        return self.train.select(sorted(kept))

    def _store(self, listing: Listing, *, training: bool = False) -> ImageCache:
        run = self.both[0].run
        return ImageCache(listing, run.preprocessing, run.config.data_config, training=training)

    def _fit(self, prepared: PreparedRun, store: ImageCache, steps: int) -> Trainer:
        """Train a copy of a network for some steps."""
        run, network = prepared.run, copy.deepcopy(prepared.network).train()
        config = replace(run.config.train, accumulate=1)
        objective = build_objective(run, store.listing, self.fabric.device, network)
        trainer = Trainer(self.fabric, config, network, objective)
        loader = TrainLoader(
            store,
            run.config.augment,
            batch_size=min(config.batch_size, len(store)),
            seed=config.seed,
        )
        size, done = run.preprocessing.img_size, 0
        while done < steps:
            epoch = done // len(loader)
            with closing(loader.batches(epoch, 0, size)) as batches:
                for step, batch in enumerate(batches):
                    trainer.accumulate_gradients((batch,), epoch, step, share=1.0, last=True)
                    trainer.update_weights(lr_factor(config, done / steps))
                    done += 1
                    if done == steps:  # the loader of an epoch is closed behind it
                        break
        return trainer

    def _score(self, trainer: Trainer) -> Tensor:
        loader = EvalLoader(self.val, batch_size=trainer.config.validation_batch)
        autocast = self.fabric.strategy.precision.forward_context
        outputs = trainer.objective.evaluate(
            trainer.best_network, loader, self.fabric.device, autocast
        )
        right: Tensor = outputs.answers.argmax(dim=1) == outputs.truth
        return right


def _between(limits: tuple[int, int], value: float) -> int:
    return int(min(max(value, limits[0]), limits[1]))


def _count(store: ImageCache) -> int:
    """Images that were found readable."""
    return len(store) - len(store.unreadable)
