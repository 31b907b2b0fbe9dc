# SPDX-License-Identifier: Apache-2.0
"""What an answer is, how it is stored, and when two of them agree.

Stored answers are compared on any CPU, so each kind has a tolerance that rounding cannot reach.
On one machine the bits themselves can be compared (`digest`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

Kind = Literal["same", "numbers", "losses", "figures", "results", "bits"]
"""How an answer is compared.

same: to the letter. numbers: to 1e-3 of the largest (a tensor by its shape, norm and some of its
values). losses: to `tolerance` of each. figures: to 0.02. results: what `to_dict` of a result
gives, loosely. bits: only by `digest`, since rounding decides it.
"""

SAMPLES = 12
"""Values of a tensor that are stored."""

SENTENCES = ("oks_area",)
"""Figures explained in words. Only the numbers in them are compared."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        kind: How it is compared.
        value: A tensor, or what JSON can hold.
        tolerance: Relative, of "numbers" and "losses".
    """

    kind: Kind
    value: Any
    tolerance: float = 1e-3


def plain(value: Any) -> Any:
    """What JSON can hold, to the last bit."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def digest(answer: Answer) -> str:
    """sha256 of the exact bits."""
    value = answer.value
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().numpy()
    if isinstance(value, np.ndarray):
        head = f"{value.dtype} {value.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def summary(answer: Answer) -> Any:
    """What is stored of an answer; None for bits."""
    value = answer.value
    if answer.kind == "bits":
        return None
    if answer.kind == "numbers":
        array = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, np.float64)
        holes = int(np.isnan(array).sum())  # places of a map that nothing is said about
        flat = np.nan_to_num(array.ravel())
        places = np.linspace(0, max(len(flat) - 1, 0), min(SAMPLES, len(flat))).astype(int)
        return {
            "shape": list(array.shape),
            **({"holes": holes} if holes else {}),
            "scale": _round(np.abs(flat).max(initial=0)),
            "mean_square": _round(np.square(flat).mean() if len(flat) else 0),
            "values": [_round(one) for one in flat[places]],
        }
    return json.loads(json.dumps(plain(value)))


def _round(value: float) -> float:
    return float(f"{float(value):.7g}")


def difference(answer: Answer, stored: Any) -> str:
    """Say how an answer differs from a stored one; empty where they agree."""
    fresh = summary(answer)
    if answer.kind == "same":
        return "" if fresh == stored else f"{fresh!r} instead of {stored!r}"
    if answer.kind == "numbers":
        return _compare_numbers(fresh, stored, answer.tolerance)
    if answer.kind == "losses":
        return _compare_values(fresh, stored, answer.tolerance, 0.0)
    if answer.kind == "figures":
        return _compare_figures(fresh, stored)
    if answer.kind == "results":
        return _compare_results(fresh, stored)
    return ""


def _compare_values(fresh: list[float], stored: list[float], rel: float, absolute: float) -> str:
    if len(fresh) != len(stored):
        return f"{len(fresh)} values instead of {len(stored)}"
    wrong = [
        f"{a:.7g} instead of {b:.7g}"
        for a, b in zip(fresh, stored, strict=True)
        if not math.isclose(a, b, rel_tol=rel, abs_tol=absolute)
    ]
    return "; ".join(wrong[:3])


def _compare_numbers(fresh: Any, stored: Any, tolerance: float) -> str:
    for name in ("shape", "holes"):
        if fresh.get(name) != stored.get(name):
            return f"{name} {fresh.get(name)} instead of {stored.get(name)}"
    room = tolerance * stored["scale"]
    problem = _compare_values(fresh["values"], stored["values"], 0.0, room)
    pair = [fresh["mean_square"]], [stored["mean_square"]]
    return problem or _compare_values(*pair, 4 * tolerance, 1e-12)


def _compare_figures(fresh: Any, stored: Any) -> str:
    if fresh.keys() != stored.keys():
        return f"figures {sorted(fresh)} instead of {sorted(stored)}"
    wrong = []
    for name in stored:
        near = _same_numbers if name in SENTENCES else _near
        if not near(fresh[name], stored[name]):
            wrong.append(name)
    return "; ".join(f"{name} {fresh[name]!r} instead of {stored[name]!r}" for name in wrong)


def _same_numbers(a: str, b: str) -> bool:
    number = r"\d+(?:\.\d+)?"
    return re.findall(number, a) == re.findall(number, b)


def _near(a: Any, b: Any) -> bool:
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(_near(a[key], b[key]) for key in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(map(_near, a, b))
    if isinstance(b, float) and isinstance(a, int | float):
        return math.isclose(a, b, rel_tol=5e-3, abs_tol=0.02)
    return bool(a == b)


def _compare_results(fresh: Any, stored: Any) -> str:
    """Compare lists of what `to_dict` of results gives; keys may have been added."""
    if len(fresh) != len(stored):
        return f"{len(fresh)} results instead of {len(stored)}"
    for one, old in zip(fresh, stored, strict=True):
        if not old.keys() <= one.keys() or (one["path"], one["size"]) != (old["path"], old["size"]):
            return f"{sorted(one)} of {one['path']} instead of {sorted(old)} of {old['path']}"
        part = next(name for name in ("classes", "boxes", "semantic", "poses") if name in old)
        if problem := _COMPARE[part](one[part], old[part]):
            return f"{old['path']}: {problem}"
    return ""


def _compare_classes(fresh: Any, stored: Any) -> str:
    scores = {row["name"]: row["score"] for row in fresh}
    wrong = [row for row in stored if abs(scores.get(row["name"], -1.0) - row["score"]) > 2e-3]
    return f"{fresh} instead of {stored}" if wrong else ""


def _compare_boxes(fresh: Any, stored: Any) -> str:
    """Every surely found object of one must have a like one in the other."""
    for a, b in ((stored, fresh), (fresh, stored)):
        for row in a[:5]:
            if not any(_alike(row, other) for other in b):
                near = {name: row[name] for name in ("xyxy", "name", "score")}
                return f"{near} is in one alone"
    return ""


def _alike(a: Any, b: Any) -> bool:
    """Whether two objects are one; masks must have the same size, their run lengths may differ."""
    if a["name"] != b["name"] or abs(a["score"] - b["score"]) > 5e-3 or a.keys() != b.keys():
        return False
    if "mask" in a and a["mask"]["size"] != b["mask"]["size"]:
        return False
    return max(abs(x - y) for x, y in zip(a["xyxy"], b["xyxy"], strict=True)) < 0.5


def _compare_semantic(fresh: Any, stored: Any) -> str:
    shares = [{row["name"]: row["share"] for row in rows} for rows in (fresh, stored)]
    for name in shares[0].keys() | shares[1].keys():
        if abs(shares[0].get(name, 0.0) - shares[1].get(name, 0.0)) > 5e-3:
            return f"{name} covers {shares[0].get(name)} instead of {shares[1].get(name)}"
    return ""


def _compare_poses(fresh: Any, stored: Any) -> str:
    for row in stored[:5]:
        if not any(_alike_poses(row, other) for other in fresh):
            return f"the pose of score {row['score']} is gone"
    return ""


def _alike_poses(a: Any, b: Any) -> bool:
    """Whether nearly all keypoints lie where they lay; the place of a flat peak is chance."""
    if a.keys() != b.keys() or abs(a["score"] - b["score"]) > 5e-3:
        return False
    pairs = list(zip(a["keypoints"], b["keypoints"], strict=True))
    near = [max(abs(p[0] - q[0]), abs(p[1] - q[1])) < 0.5 for p, q in pairs]
    return sum(near) >= 0.7 * len(near)


_COMPARE = {
    "classes": _compare_classes,
    "boxes": _compare_boxes,
    "semantic": _compare_semantic,
    "poses": _compare_poses,
}
