# SPDX-License-Identifier: Apache-2.0
"""The table of layouts in docs/reference/weights.md: a test that loads a layout adds its row.

    from tests.layout_table import record_layout

    record_layout(
        container="torch.save of {'teacher': ...}",  # what surrounds the tensors
        prefix="backbone.",                          # what their names begin with
        report=load_weights(model, state),           # says dialect; or its name
        model=model,                                 # says family
        peer="timm",                                 # what wrote it: a library, or "twin"
        difference=(ours - theirs).abs().max(),      # must be below `bound`
    )

The call fails if the difference is too large, and if the page lacks the row. To write the page:

    python -m tests.layout_table        # runs the tests that have rows, and replaces the table
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from torch import Tensor, nn

from muntin.weights.dialects import backbone_of, family_name
from muntin.weights.weight_loading import LoadReport

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "weights.md"
HEADER = (
    "| family | dialect | container | prefix | compared with | difference | test |",
    "|---|---|---|---|---|---|---|",
)
_WRITE = "MUNTIN_WRITE_LAYOUTS"
BOUND = 1e-5


def record_layout(
    *,
    container: str,
    prefix: str,
    report: LoadReport | str,
    model: nn.Module,
    peer: str,
    difference: Tensor | float,
    bound: float = BOUND,
) -> None:
    """Check a difference, and that the page has a row of this layout."""
    assert float(difference) < bound, f"{container}, {prefix or 'no prefix'}: {float(difference)}"
    test = os.environ["PYTEST_CURRENT_TEST"].partition("[")[0].partition(" ")[0]
    family = family_name(type(backbone_of(model).config))
    names = f"`{prefix}`" if prefix else "none"
    dialect = report if isinstance(report, str) else report.dialect
    cells = (family, dialect, container, names, peer, f"< {bound:.0e}", test)
    row = f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
    if row not in rows():
        assert os.environ.get(_WRITE), f"{PAGE.name} lacks this row: {row}\n{__doc__}"
        write([*rows(), row])


def rows() -> list[str]:
    """Rows of the table as the page has them."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(HEADER[0]) + len(HEADER)
    end = next((n for n in range(start, len(lines)) if not lines[n].startswith("|")), len(lines))
    return lines[start:end]


def write(new: list[str]) -> None:
    """Replace the rows of the page, in sorted order."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(HEADER[0]) + len(HEADER)
    lines[start : start + len(rows())] = sorted(set(new))
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def files_with_rows() -> list[str]:
    """Files of tests that call `record_layout`."""
    here = Path(__file__)
    return [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path != here
        and re.search(r"\brecord_(layout|plain)\(", path.read_text(encoding="utf-8"))
    ]


def main() -> int:
    """Write the table anew from the tests."""
    write([])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *files_with_rows()]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, _WRITE: "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
