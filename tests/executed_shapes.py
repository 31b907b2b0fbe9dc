# SPDX-License-Identifier: Apache-2.0
"""Executes the signatures of the package: every call checks arguments, shapes and what it returns.

jaxtyping's own decorator makes two checkers at every definition, closures at every call of their
function too, and binds every call to its signature; that was half the time of the tests. Here a
function gets one checker at its first call, made by beartype, and a context for the letters of
shapes only where the signature has shapes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable

# As for mypy, an int will do where a float is wanted. A TypeError is what Python itself raises.
CONF = BeartypeConf(is_pep484_tower=True, violation_type=TypeError)
# Letters mean one size within one call; the context has no state of its own.
LETTERS = jaxtyping.jaxtyped("context")
_HINTS_OF_CODE: dict[CodeType, dict[str, Any]] = {}


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
    call: Callable[..., Any] | None = None

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal call
        if call is None:
            call = _make_checked(function)
        return call(*args, **kwargs)

    return checked


def _make_checked(function: FunctionType) -> Callable[..., Any]:
    # beartype's code for a generator would check arguments at its first item, not at the call.
    if "<locals>" in function.__qualname__ or inspect.isgeneratorfunction(function):
        return _check_uncompiled(function)
    hints = _read_hints(function)
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    copy.__annotations__ = hints
    call: Callable[..., Any] = beartype(conf=CONF)(copy)
    if not any(map(_has_shape, hints.values())):
        return call

    def call_with_letters(*args: Any, **kwargs: Any) -> Any:
        with LETTERS:
            return call(*args, **kwargs)

    return call_with_letters


def _check_uncompiled(function: FunctionType) -> Callable[..., Any]:
    """For closures: made anew at each call of the function around them."""
    code = function.__code__
    if code not in _HINTS_OF_CODE:
        _HINTS_OF_CODE[code] = _read_hints(function)
    hints = _HINTS_OF_CODE[code]
    names = code.co_varnames[: code.co_argcount]

    def call(*args: Any, **kwargs: Any) -> Any:
        with LETTERS:
            for name, value in (*zip(names, args, strict=False), *kwargs.items()):
                die_if_unbearable(value, hints.get(name, Any), conf=CONF)
            answer = function(*args, **kwargs)
            die_if_unbearable(answer, hints.get("return", Any), conf=CONF)
            return answer

    return call


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
    if inspect.isgeneratorfunction(function):
        hints.pop("return", None)  # a generator is one; what it yields is not looked at
    return hints


def _has_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
