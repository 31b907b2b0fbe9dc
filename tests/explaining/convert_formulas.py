# SPDX-License-Identifier: Apache-2.0
"""Convert the formulas of all languages to MathML, which browsers draw: run it after a change.

    python tests/explaining/convert_formulas.py

latex2mathml is not needed to make a page: what it gives is stored in texts/mathml.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import muntin.explaining
from muntin.explaining.figures import load_texts

TEXTS = Path(muntin.explaining.__file__).parent / "texts"


def convert_formulas() -> dict[str, str]:
    from latex2mathml.converter import convert

    rows = [
        row["latex"]
        for path in sorted(TEXTS.glob("*.toml"))
        for row in load_texts(path.stem)["formulas"].values()
    ]
    return {latex: convert(latex, display="block") for latex in sorted(rows)}


if __name__ == "__main__":
    text = json.dumps(convert_formulas(), indent=1) + "\n"
    (TEXTS / "mathml.json").write_text(text, encoding="utf-8")
