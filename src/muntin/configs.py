# SPDX-License-Identifier: Apache-2.0
"""One strict reader and one writer for every config.

A config is a frozen dataclass whose fields are numbers, strings, booleans, tuples of them,
`Literal`s or other configs. If a field is a union of configs, each class has a tag (``kind:
ClassVar[str] = "detection"``), which is written with the fields and selects the class on reading: a
misspelt field is reported for that class, and never makes the reader try another class.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from muntin.errors import ConfigError, unknown_name

C = TypeVar("C")

KIND = "kind"
"""Key of the tag that selects a class of a union."""


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Check that a number is in [low, high], and not NaN."""
    if not low <= value <= high:  # false for nan too
        message = f"{name} must be from {low} to {high}, got {value}."
        raise ConfigError(message)


class Range(NamedTuple):
    """The range of a number, of a field as ``Annotated[float, Range(0, 1)]``; both ends count."""

    low: float
    high: float


@functools.cache
def _ranges_of(kind: type) -> dict[str, Range]:
    hints = typing.get_type_hints(kind, include_extras=True).items()
    return {name: one for name, hint in hints for one in get_args(hint) if isinstance(one, Range)}


def check_ranges(group: str, config: object) -> None:
    """Check the fields of a config that have a `Range`: numbers, or each number of a tuple."""
    for name, limits in _ranges_of(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        for each in value if isinstance(value, tuple) else (value,):
            check_range(f"{group}.{name}", each, *limits)


def kind_of(config: object) -> str | None:
    """Return the tag of a config or config class; None if it has none."""
    kind = getattr(config if isinstance(config, type) else type(config), KIND, None)
    # A dataclass field named "kind" has a default or a slot descriptor here, and is not a tag.
    is_field = any(field.name == KIND for field in dataclasses.fields(config))  # type: ignore[arg-type]
    return kind if isinstance(kind, str) and not is_field else None


def pick_kind(
    values: Mapping[str, Any], kinds: Mapping[str, type[C]], *, key: str = KIND, where: str = ""
) -> C:
    """Build a config of a union from a dictionary whose `key` is its tag.

    `where` is the origin of the dictionary, for messages.
    """
    name = values.get(key)
    if name is None:
        message = f"{where or 'the values'} must have a {key} ({', '.join(kinds)}), got none."
        raise ConfigError(message)
    if not isinstance(name, str) or name not in kinds:
        place = f" in {where}" if where else ""
        raise ConfigError(unknown_name(f"{key}{place}", name, kinds))
    rest = {field: value for field, value in values.items() if field != key}
    return from_dict(kinds[name], rest, where=where)


def to_dict(config: object) -> dict[str, Any]:
    """Convert a config to a dictionary that JSON can hold; tuples become lists."""
    kind = kind_of(config)
    values: dict[str, Any] = {} if kind is None else {KIND: kind}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def from_dict(kind: type[C], values: Mapping[str, Any], *, where: str = "") -> C:
    """Build a config from a dictionary; fields with a default, and the tag, may be missing.

    Unknown keys, missing fields and wrong types are a `ConfigError`; `where` is the origin of the
    dictionary, for messages.
    """
    # Classes whose fields were renamed translate the files of earlier versions.
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
            f"{kind.__name__} requires {', '.join(missing)}, missing in {where or 'the values'}."
        )
        raise ConfigError(message)
    return kind(**arguments)


def read_field(kind: type, name: str, value: Any, *, where: str) -> Any:  # noqa: ANN401 (any field)
    """Check and convert one field's value as `from_dict` does; `where` names it in messages."""
    return _coerce(typing.get_type_hints(kind)[name], value, where)


def replace(config: C, values: Mapping[str, Any], *, where: str = "") -> C:
    """Return a copy with some fields changed; keys and types are checked as in `from_dict`.

    A class may add values of fields that follow others, by its method ``follow``.
    """
    follow = getattr(config, "follow", None)
    values = values if follow is None else follow(values)
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    return from_dict(type(config), {**own, **values}, where=where)


def with_texts(
    config: C, texts: Iterable[tuple[str, str]], *, where: str = "--set", group: str = ""
) -> C:
    """Return a copy with fields set from text, all at once since some depend on each other.

    Names are ``outer.inner`` for a nested config; a text is a number, ``true``, a word, or
    comma-separated numbers. The last value of a name wins. In messages, `where` is the origin of
    the texts and `group` what the user writes before the names ("train").

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Box:
        ...     sides: tuple[int, ...] = (1, 2)
        >>> with_texts(Box(), [("sides", "3,4")])
        Box(sides=(3, 4))
    """
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    before = f"{group}." if group else ""
    values: dict[str, Any] = {}
    inner: dict[str, list[tuple[str, str]]] = {}
    for path, text in texts:
        first, _, rest = path.partition(".")
        if first not in names:
            known = [before + name for name in names]
            raise ConfigError(unknown_name(f"option in {where}", before + first, known))
        if not rest:
            values[first] = _read(text)
        elif dataclasses.is_dataclass(getattr(config, first)):
            inner.setdefault(first, []).append((rest, text))
        else:
            message = f"{first} has no fields, got {path!r} in {where}. Set {first!r} itself."
            raise ConfigError(message)
    for first, rows in inner.items():
        values[first] = with_texts(getattr(config, first), rows, where=where, group=before + first)
    return replace(config, values, where=where) if values else config


def _read(text: str) -> Any:  # noqa: ANN401 (any JSON value)
    if "," in text:
        return [_read(part) for part in text.strip("()[] ").split(",") if part.strip()]
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):  # a word, or what no field takes
        return text.strip()


def _coerce(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 (types are values here)
    """Convert a value to the annotated type, or raise an error that names the expected type."""
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
    if is_number and (value != value or (isinstance(value, int) and abs(value) >= 2**63)):  # nan
        return _refuse(where, f"{_name(kind)} between -2**63 and 2**63", value)
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
        # A scalar is repeated to a fixed length, or becomes a tuple of length one.
        value = (value,) if many else (value,) * len(options)
    if not many and len(value) != len(options):
        _refuse(where, f"{len(options)} values", value)
    kinds = [options[0]] * len(value) if many else options
    return tuple(_coerce(kind, item, where) for kind, item in zip(kinds, value, strict=True))


_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def _name(kind: Any) -> str:  # noqa: ANN401
    """Name a type in the user's terms."""
    origin, options = get_origin(kind), get_args(kind)
    if origin is tuple and options[-1] is Ellipsis:
        return f"a list ({_name(options[0])} each)"
    if origin is tuple:
        return f"{len(options)} values ({_name(options[0])} each)"
    if origin is Literal:
        return " or ".join(repr(option) for option in options)
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))


def _refuse(where: str, expected: str, value: object) -> typing.NoReturn:
    text = repr(value)
    came = text if len(text) <= 200 else f"{text[:200]}..."
    message = f"{where} must be {expected}, got {came}."
    raise ConfigError(message)
