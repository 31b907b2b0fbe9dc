# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One strict reader and one writer for every config.

A config is a frozen dataclass whose fields are numbers, strings, booleans, tuples of them,
`Literal`s or other configs. `to_dict` gives what JSON can hold; `from_dict` takes it back, refuses
keys that do not exist and values of another type, and names the nearest key; `with_texts` sets
fields from the text of a command line.

Where a field may hold one of several configs, each of their classes names its kind
(``kind: ClassVar[str] = "detection"``). It is written beside the fields, and the reader takes the
class that it names: a mistake in a field is then a mistake in that class, never another class.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from muntin.errors import ConfigError, unknown_name

__all__ = ["check_range", "from_dict", "kind_of", "pick_kind", "replace", "to_dict", "with_texts"]

C = TypeVar("C")

KIND = "kind"
"""The key that says which of several configs a dictionary holds."""


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high].

    Raises:
        ConfigError: The value is outside, or not a number.
    """
    if not low <= value <= high:  # false for nan too
        message = f"{name} must be from {low} to {high}, got {value}."
        raise ConfigError(message)


def kind_of(config: object) -> str | None:
    """Name the kind of a config or of its class; None for those that are the only one of theirs."""
    kind = getattr(config if isinstance(config, type) else type(config), KIND, None)
    # A field of this name has a default here, or the descriptor of a slot, and is no kind.
    is_field = any(field.name == KIND for field in dataclasses.fields(config))  # type: ignore[arg-type]
    return kind if isinstance(kind, str) and not is_field else None


def pick_kind(
    values: Mapping[str, Any], kinds: Mapping[str, type[C]], *, key: str = KIND, where: str = ""
) -> C:
    """Build the one of several configs that a dictionary names.

    Args:
        values: Its fields, and the name of its kind.
        kinds: Name to dataclass.
        key: Under which the name is.
        where: Where the dictionary came from, for messages.

    Raises:
        ConfigError: The name is missing or unknown, or `from_dict` refuses the fields.
    """
    name = values.get(key)
    if name is None:
        message = f"{where or 'the values'} must name a {key} ({', '.join(kinds)}), got none."
        raise ConfigError(message)
    if not isinstance(name, str) or name not in kinds:
        place = f" in {where}" if where else ""
        raise ConfigError(unknown_name(f"{key}{place}", name, kinds))
    rest = {field: value for field, value in values.items() if field != key}
    return from_dict(kinds[name], rest, where=where)


def to_dict(config: object) -> dict[str, Any]:
    """Give a config as a dictionary that JSON can hold; tuples become lists."""
    kind = kind_of(config)
    values: dict[str, Any] = {} if kind is None else {KIND: kind}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def from_dict(kind: type[C], values: Mapping[str, Any], *, where: str = "") -> C:
    """Build a config from a dictionary.

    Args:
        kind: The dataclass.
        values: Its fields; those with a default may be missing. It may name the kind of the
            dataclass.
        where: Where the dictionary came from, for messages.

    Returns:
        The config, validated.

    Raises:
        ConfigError: A key is unknown, a field is missing, or a value is of another type.
    """
    # Files of earlier versions have other names: classes whose names changed read them too.
    upgrade = getattr(kind, "upgrade", None)
    if upgrade is not None:
        values = upgrade(values)
    place = f" in {where}" if where else ""
    types_of = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    own = kind_of(kind)
    if own is not None and KIND in values:
        return pick_kind(values, {own: kind}, where=where)
    for key in values:
        if key not in fields:
            raise ConfigError(unknown_name(f"option{place}", key, fields))
    arguments = {
        key: _coerce(types_of[key], value, f"{key}{place}") for key, value in values.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        message = (
            f"{kind.__name__} needs {', '.join(missing)}, which {where or 'the values'} lacks."
        )
        raise ConfigError(message)
    return kind(**arguments)


def replace(config: C, values: Mapping[str, Any], *, where: str = "") -> C:
    """Give a copy with some fields changed; keys and types are checked as in `from_dict`."""
    return from_dict(type(config), {**_shallow(config), **values}, where=where)


def with_texts(config: C, texts: Iterable[tuple[str, str]], *, where: str = "--set") -> C:
    """Give a copy with fields set from text, all at once: some only go together.

    Args:
        config: The config.
        texts: Name of a field (``outer.inner`` reaches into a config that is a field), and its
            value as typed: a number, ``true``, a word, or numbers joined by commas. The last one
            of a name counts.
        where: Where they came from, for messages.

    Returns:
        The changed copy.

    Raises:
        ConfigError: There is no such field, a text does not fit its type, or the fields do not
            go together.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Box:
        ...     sides: tuple[int, ...] = (1, 2)
        >>> with_texts(Box(), [("sides", "3,4")])
        Box(sides=(3, 4))
    """
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    inner: dict[str, list[tuple[str, str]]] = {}
    for path, text in texts:
        first, _, rest = path.partition(".")
        if first not in names:
            raise ConfigError(unknown_name(f"option in {where}", first, names))
        if not rest:
            values[first] = _read(text)
        elif dataclasses.is_dataclass(getattr(config, first)):
            inner.setdefault(first, []).append((rest, text))
        else:
            message = (
                f"{first} is a single value, so {path!r} does not exist. Set {first!r} itself."
            )
            raise ConfigError(message)
    for first, rows in inner.items():
        values[first] = with_texts(getattr(config, first), rows, where=where)
    return replace(config, values, where=where) if values else config


def _shallow(config: object) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]


def _read(text: str) -> Any:  # noqa: ANN401 (whatever the text says)
    if "," in text:
        return [_read(part) for part in text.strip("()[] ").split(",") if part.strip()]
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text.strip()


def _coerce(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 (types are values here)
    """Give the value as the annotation wants it, or say what was expected."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _coerce_union(options, value, where)
    if origin is Literal:
        if value not in options:
            raise ConfigError(unknown_name(f"value of {where}:", str(value), map(str, options)))
        return value
    if origin is tuple:
        return _coerce_tuple(options, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(kind, value, where=where)  # type: ignore[arg-type]
    return _coerce_plain(kind, value, where)


def _coerce_plain(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)
    if kind is str and is_number:
        return str(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    return _refuse(where, _name(kind), value)


def _coerce_union(options: tuple[Any, ...], value: Any, where: str) -> Any:  # noqa: ANN401
    configs: list[Any] = [option for option in options if dataclasses.is_dataclass(option)]
    if configs and isinstance(value, Mapping):
        if len(configs) == 1:
            return _coerce(configs[0], value, where)
        return pick_kind(value, {str(kind_of(option)): option for option in configs}, where=where)
    for option in options:
        try:
            return _coerce(option, value, where)
        except ConfigError:
            continue
    return _refuse(where, " or ".join(_name(option) for option in options), value)


def _coerce_tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:  # noqa: ANN401
    many = len(options) == 2 and options[1] is Ellipsis
    if not isinstance(value, (list, tuple)):
        # One number stands for a square, or for a tuple of one.
        value = (value,) if many else (value,) * len(options)
    if not many and len(value) != len(options):
        _refuse(where, f"{len(options)} values", value)
    kinds = [options[0]] * len(value) if many else options
    return tuple(_coerce(kind, item, where) for kind, item in zip(kinds, value, strict=True))


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _name(kind: Any) -> str:  # noqa: ANN401
    """What a user would call a type."""
    origin, options = get_origin(kind), get_args(kind)
    if origin is tuple and options[-1] is Ellipsis:
        return f"a list ({_name(options[0])} each)"
    if origin is tuple:
        return f"{len(options)} values ({_name(options[0])} each)"
    if origin is Literal:
        return " or ".join(repr(option) for option in options)
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))


def _refuse(where: str, expected: str, value: object) -> typing.NoReturn:
    message = f"{where} must be {expected}, got {value!r}."
    raise ConfigError(message)
