# SPDX-License-Identifier: Apache-2.0
"""What pretraining chooses that training with labels does not: objective and recipe."""

from __future__ import annotations

from muntin.configs import replace, with_texts
from muntin.errors import plural
from muntin.heads.mae_head import MAEConfig
from muntin.heads.network import HeadConfig
from muntin.objectives.pretraining import choose_pretraining
from muntin.training.defaults import FEW_IMAGES, Choice, is_small
from muntin.weights.source_info import SourceInfo
from muntin.zoo.model_zoo import BackboneConfig


def choose_objective(
    name: str,
    base: HeadConfig | None,
    model: BackboneConfig,
    settings: list[tuple[str, str]],
    beside: SourceInfo | None = None,
) -> Choice[HeadConfig]:
    """Choose what is learnt: by name, else as in the run to go on from, else by the model.

    A masked autoencoder has the fields that files `beside` the weights state, unless `settings` do.

    Raises:
        ConfigError: The objective is unknown, or the model cannot learn by it.
    """
    notes: tuple[str, ...] = ()
    head = base
    if head is None or name not in ("", head.kind):
        chosen = choose_pretraining(name or "auto", model)
        head, notes = chosen.value.default_head(model), chosen.notes
        if beside is not None and isinstance(head, MAEConfig):
            given = {key for key, _ in settings}
            stated = {key: x for key, x in beside.pretraining.items() if key not in given}
            head = replace(head, stated, where=beside.where) if stated else head
            said = ", ".join(f"head.{key}={value}" for key, value in stated.items())
            notes += (f"{said}: as {beside.where} says",) if stated else ()
    return Choice(with_texts(head, settings, group="head"), notes)


def pretraining_recipe(count: int, model: BackboneConfig, head: HeadConfig) -> tuple[str, str]:
    """Name of the recipe for `count` images, and the reason."""
    if head.kind == "views":
        return "pretrain-views", "the objective compares views"
    if is_small(model) or count < FEW_IMAGES:
        return "pretrain-small", plural(count, "training image")
    return "pretrain", plural(count, "training image")
