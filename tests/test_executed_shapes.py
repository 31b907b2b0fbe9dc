# SPDX-License-Identifier: Apache-2.0
"""The checker of signatures refuses what it should: otherwise every other test would guard less."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from torch import Tensor

import muntin
from muntin.shapes import Float, Size
from tests.executed_shapes import execute

if TYPE_CHECKING:
    from nowhere import Unknown


@execute
def join(a: Float[Tensor, "B C"], b: Float[Tensor, "B D"], *, sizes: Size = (1, 1)) -> Later:
    return Later(width=a.shape[1] + b.shape[1])


@execute
def widen(a: Float[Tensor, "B C"], extra: int) -> Float[Tensor, "B C"]:
    return torch.zeros(a.shape[0], a.shape[1] + extra)


@execute
def scale(factor: float, unknown: Unknown = None) -> float:
    return str(factor) if factor < 0 else factor


@execute
def count(last: int) -> Iterator[int]:
    yield from range(last)


@execute
def refuse(message: str) -> NoReturn:
    raise LookupError(message)


def make_inner() -> Callable[..., Any]:
    @execute
    def inner(a: Float[Tensor, "B C"], b: Float[Tensor, "C"]) -> Float[Tensor, "B"]:
        return a @ b if b.any() else b

    return inner


@execute
@dataclass(frozen=True, kw_only=True)
class Later:
    width: int


class Parent:
    @execute
    def with_shape(self, a: Float[Tensor, "B"] | None) -> Parent:
        return self if a is None else widen(torch.zeros(2, 3), 0)


SQUARE = torch.zeros(2, 3)

ACCEPTED = {
    "letters of two arguments": lambda: join(SQUARE, torch.zeros(2, 5)),
    "letters hold for one call": lambda: join(torch.zeros(4, 1), torch.zeros(4, 1)),
    "int where a float is wanted": lambda: scale(2),
    "a name that only type checkers know": lambda: scale(2.0, "anything"),
    "returned shape": lambda: widen(SQUARE, 0),
    "generator": lambda: list(count(2)),
    "closure": lambda: make_inner()(SQUARE, b=torch.ones(3)),
    "own class": lambda: Parent().with_shape(None),
}

WRONG = {
    "batch differs": lambda: join(SQUARE, torch.zeros(3, 5)),
    "rank": lambda: join(SQUARE, torch.zeros(2)),
    "dtype": lambda: join(SQUARE, torch.zeros(2, 5, dtype=torch.int64)),
    "keyword": lambda: join(SQUARE, SQUARE, sizes=(1, 2, 3)),
    "returned shape": lambda: widen(SQUARE, 1),
    "returned type": lambda: scale(-1.0),
    "class": lambda: scale("1"),
    "generator's argument": lambda: count("2"),
    "field": lambda: Later(width="2"),
    "closure": lambda: make_inner()(SQUARE, torch.ones(2)),
    "closure's keyword": lambda: make_inner()(SQUARE, b=torch.ones(2)),
    "closure's answer": lambda: make_inner()(SQUARE, torch.zeros(3)),
    "class defined later": lambda: Parent().with_shape(SQUARE[0]),
}


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED)
def test_what_fits_passes(call: Callable[[], object]) -> None:
    call()


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="violates"):
        call()


def test_what_never_returns_raises_its_own_error() -> None:
    with pytest.raises(LookupError, match="wrong"):
        refuse("wrong")


@pytest.mark.skipif(bool(os.environ.get("MUNTIN_NO_HOOK")), reason="asked to run without")
def test_the_package_is_checked() -> None:
    with pytest.raises(TypeError, match="violates"):
        muntin.load(3)
