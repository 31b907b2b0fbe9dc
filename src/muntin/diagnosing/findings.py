# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis can find: the faults of ``faults.toml`` by code, each with its next step."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@cache
def faults() -> Mapping[str, Mapping[str, str]]:
    """Give `what` a fault is, what to do `next` and its `severity`, by code."""
    text = files("muntin.diagnosing").joinpath("faults.toml").read_text("utf-8")
    return {code: {"severity": "warning", **row} for code, row in tomllib.loads(text).items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A fault that was found; `where` is a part of the data or of the run, `detail` has numbers."""

    code: str
    where: str
    detail: str = ""

    @property
    def is_error(self) -> bool:
        """Whether a training on it is wasted."""
        return faults()[self.code]["severity"] == "error"

    def __str__(self) -> str:
        """One line: the code, where and what it is, and the next step."""
        fault, detail = faults()[self.code], f" ({self.detail})" if self.detail else ""
        return f"{self.code}: {self.where}: {fault['what']}{detail}. {fault['next']}."

    def to_dict(self) -> dict[str, str]:
        """Give plain values for JSON."""
        where = {"code": self.code, "where": self.where, "detail": self.detail}
        return {**where, **faults()[self.code]}
