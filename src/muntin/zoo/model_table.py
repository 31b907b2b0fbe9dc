# SPDX-License-Identifier: Apache-2.0
"""The table that ``muntin models`` prints.

Counting takes seconds, so `facts.json` stores what ``benchmarks/count_models.py`` counted.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from muntin.configs import check_range
from muntin.errors import ConfigError, unknown_name
from muntin.zoo.costs import count_costs, count_parameters
from muntin.zoo.families import family_of
from muntin.zoo.model_building import find_model, list_models, model_config
from muntin.zoo.model_zoo import ALIASES, MODELS

FACTS = Path(__file__).with_name("facts.json")


def describe_models(pattern: str = "*", img_size: int = 0) -> list[dict[str, Any]]:
    """Describe the models whose name or alias matches a shell pattern.

    `img_size` is the side in pixels at which MACs are counted; 0 uses each model's own. `params`
    are those with 1000 classes, `macs` those of an image.
    """
    check_range("img_size", img_size, 0, 10_000)
    names = sorted({ALIASES.get(name, name) for name in list_models(pattern)})
    if not names:
        raise ConfigError(unknown_name("model", pattern, [*MODELS, *ALIASES]))
    alias_of = {name: alias for alias, name in ALIASES.items()}
    return [_describe(name, alias_of.get(name, ""), img_size) for name in names]


def _describe(name: str, alias: str, img_size: int) -> dict[str, Any]:
    entry = find_model(name)
    config = entry.config
    facts = known_facts()[name] if name in MODELS else count_facts(name)
    size, macs = config.img_size, facts["macs"]
    if img_size:
        size = (img_size, img_size)
        macs = count_costs(model_config(name, {"img_size": size})).macs
    window = getattr(config, "window_size", None)
    return {
        "name": name,
        "alias": alias,
        "family": family_of(config),
        "params": facts["params"],
        "macs": macs,
        "gmacs": round(macs / 1e9, 3),
        "img_size": list(size),
        "window": "-" if window is None else str(window).strip("()"),
        "accuracy": entry.accuracy or None,
        "source": entry.source,
        "weights": entry.weights,
        "license": entry.license,
    }


@functools.cache
def known_facts() -> dict[str, dict[str, int]]:
    """Stored parameters and MACs of every model at its own image size."""
    facts: dict[str, dict[str, int]] = json.loads(FACTS.read_text(encoding="utf-8"))
    return facts


def count_facts(name: str) -> dict[str, int]:
    """Count the parameters (1000 classes) and MACs of a model."""
    config = find_model(name).config
    return {"params": count_parameters(config, 1000), "macs": count_costs(config).macs}
