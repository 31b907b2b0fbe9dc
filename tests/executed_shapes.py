# SPDX-License-Identifier: Apache-2.0
"""Executes the signatures of the package: every call checks arguments, shapes and what it returns.

jaxtyping's own decorator makes two checkers at every definition, closures at every call of their
function too, and binds every call to its signature; that was half the time of the tests. Here a
function gets its checkers at its first call, closures share them, and beartype's compiled code
binds. Letters of shapes get a context only where a signature has shapes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

# As for mypy, an int will do where a float is wanted. A TypeError is what Python itself raises.
CONF = BeartypeConf(is_pep484_tower=True, violation_type=TypeError)
# Letters mean one size within one call; the context has no state of its own.
LETTERS = jaxtyping.jaxtyped("context")


class Checkers(NamedTuple):
    """What is checked of the calls of one function."""

    arguments: Callable[..., None]
    answer: Callable[[Any], None] | None
    has_shapes: bool


# By name too: the code of generated constructors is equal where their fields are.
CHECKERS: dict[tuple[CodeType, str], Checkers] = {}


def install() -> None:
    """Check what is imported of the package from now on."""
    # The hook writes `jaxtyping.jaxtyped(typechecker=...)` above functions and classes.
    jaxtyping.jaxtyped = lambda *, typechecker: execute
    jaxtyping.install_import_hook("muntin", None)


def execute(item: Any) -> Any:
    """Check calls of a function, or of the constructor of a dataclass."""
    if not inspect.isclass(item):
        return _check_calls(item)
    made = vars(item).get("__init__")
    if hasattr(item, "__dataclass_fields__") and made and not hasattr(made, "__wrapped__"):
        item.__init__ = _check_calls(made)
    return item


def _check_calls(function: FunctionType) -> Callable[..., Any]:
    checkers: Checkers | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checkers
        if torch.compiler.is_dynamo_compiling():  # the compiler cannot trace the checks
            return function(*args, **kwargs)
        if checkers is None:
            checkers = CHECKERS.get(_key(function)) or _make_checkers(function)
        if not checkers.has_shapes:
            return _run(function, checkers, args, kwargs)
        with LETTERS:
            return _run(function, checkers, args, kwargs)

    return call


def _run(
    function: FunctionType, checkers: Checkers, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    checkers.arguments(*args, **kwargs)
    answer = function(*args, **kwargs)
    if checkers.answer:
        checkers.answer(answer)
    return answer


def _make_checkers(function: FunctionType) -> Checkers:
    hints = _read_hints(function)
    has_shapes = any(map(_has_shape, hints.values()))
    returned = hints.pop("return", Any)
    # A generator is one; what it yields is not looked at. What never returns gives no answer.
    skipped = returned in (Any, NoReturn) or inspect.isgeneratorfunction(function)
    answer = None if skipped else _compile(lambda answer: None, {"answer": returned}, function)
    made = Checkers(_compile(_empty(function), hints, function), answer, has_shapes)
    CHECKERS[_key(function)] = made
    return made


def _key(function: FunctionType) -> tuple[CodeType, str]:
    return function.__code__, f"{function.__module__}.{function.__qualname__}"


def _compile(stub: Any, hints: Mapping[str, Any], function: FunctionType) -> Callable[..., None]:
    stub.__module__, stub.__name__ = function.__module__, function.__name__
    stub.__qualname__ = function.__qualname__
    stub.__annotations__ = dict(hints)
    checked: Callable[..., None] = beartype(conf=CONF)(stub)
    return checked


def _empty(function: FunctionType) -> FunctionType:
    """A function of the same parameters that does nothing."""
    code = function.__code__
    variable = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    count = code.co_argcount + code.co_kwonlyargcount + variable.bit_count()
    nothing = (lambda: None).__code__
    stub = FunctionType(
        nothing.replace(
            co_argcount=code.co_argcount,
            co_posonlyargcount=code.co_posonlyargcount,
            co_kwonlyargcount=code.co_kwonlyargcount,
            co_nlocals=count,
            co_varnames=code.co_varnames[:count],
            co_flags=nothing.co_flags | variable,
        ),
        function.__globals__,
        function.__name__,
        function.__defaults__,
    )
    stub.__kwdefaults__ = function.__kwdefaults__
    return stub


def _read_hints(function: FunctionType) -> dict[str, Any]:
    """Annotations as objects; what only type checkers import, or only a function knows, is Any."""
    hints = {}
    for name, annotation in function.__annotations__.items():
        stub = FunctionType((lambda: None).__code__, function.__globals__)
        stub.__annotations__ = {name: annotation}
        try:
            hints.update(get_type_hints(stub, include_extras=True))
        except NameError:
            hints[name] = Any
    return hints


def _has_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
