# SPDX-License-Identifier: Apache-2.0
"""Count parameters and MACs of every model, and write the zoo's facts.json."""

from __future__ import annotations

import json

from muntin.zoo.costs import FACTS, count_facts
from muntin.zoo.model_zoo import MODELS

if __name__ == "__main__":
    counted = {name: count_facts(name) for name in sorted(MODELS)}
    FACTS.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
