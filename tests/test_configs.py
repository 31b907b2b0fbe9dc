# SPDX-License-Identifier: Apache-2.0
"""One strict reader: types, tuples, literals, nested configs, text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from muntin.configs import check_range, from_dict, kind_of, replace, to_dict, with_texts
from muntin.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    count: int
    name: str = ""
    flag: bool = False
    kind: Literal["plain", "fancy"] = "plain"
    size: tuple[int, int] = (1, 2)
    window: int | tuple[int, ...] = 7
    drop: float | Literal["model"] = "model"
    inner: Inner = field(default_factory=Inner)


def test_round_trip():
    config = Outer(count=3, window=(1, 2), drop=0.1, inner=Inner(names=("x", "y")))
    values = to_dict(config)
    assert values["inner"] == {"rate": 0.5, "names": ["x", "y"]}
    assert from_dict(Outer, values) == config


TEXTS = {
    "count": ("5", 5),
    "name": ("5", "5"),
    "flag": ("True", True),
    "kind": ("fancy", "fancy"),
    "size": ("3,4", (3, 4)),
    "window": ("(2, 3)", (2, 3)),
    "drop": ("1e-1", 0.1),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text(name):
    text, value = TEXTS[name]
    assert getattr(with_texts(Outer(count=1), [(name, text)]), name) == value


def test_text_of_a_nested_config():
    config = with_texts(Outer(count=1), [("inner.rate", "2"), ("inner.names", "p,q")])
    assert config.inner == Inner(rate=2.0, names=("p", "q"))
    assert with_texts(config, [("size", "3")]).size == (3, 3)
    assert with_texts(config, [("inner.names", "z")]).inner.names == ("z",)
    assert with_texts(config, []) is config


WRONG = {
    "an int is no text": ({"count": "x"}, "count in set .*'x'"),
    "nor a fraction": ({"count": 1.5}, "count in set .*1.5"),
    "nor a truth": ({"count": True}, "count in set .*True"),
    "a truth is no number": ({"flag": 1}, "flag in set .* 1"),
    "a word of a few": ({"kind": "fanci"}, "kind in set.*'fanci'.*'fancy'"),
    "too many": ({"size": [1, 2, 3]}, r"size in set .*\[1, 2, 3\]"),
    "none of two": ({"window": "a"}, "window in set .*'a'"),
    "inside": ({"inner": {"rates": 1}}, r"'rates'. Did you mean 'rate'"),
    "no config": ({"inner": 3}, "inner in set .* 3"),
    "unknown": ({"cuont": 3}, r"Unknown option in set 'cuont'. Did you mean 'count'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values(case):
    values, text = WRONG[case]
    with pytest.raises(ConfigError, match=text):
        replace(Outer(count=1), values, where="set")


def test_missing_and_unknown():
    with pytest.raises(ConfigError, match=r"Outer .*count.* the file"):
        from_dict(Outer, {}, where="the file")
    with pytest.raises(ConfigError, match=r"Unknown option in --set 'nmae'. Did you mean 'name'"):
        with_texts(Outer(count=1), [("nmae", "x")])
    with pytest.raises(ConfigError, match=r"'count\.x'"):
        with_texts(Outer(count=1), [("count.x", "1")])


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "\u00b2"])
def test_text_that_is_no_count(text):
    with pytest.raises(ConfigError, match="count in --set must"):
        with_texts(Outer(count=1), [("count", text)])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_range(value):
    check_range("share", 0.0, 0, 1)
    with pytest.raises(ConfigError, match=r"share must .* 0 to 1, got"):
        check_range("share", value, 0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Circle:
    kind: ClassVar[str] = "circle"

    width: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Square:
    kind: ClassVar[str] = "square"

    width: float = 1.0
    tilt: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    shape: Circle | Square
    frame: Inner | None = None


def test_union_of_configs_round_trip():
    # Circle, the first of the two, could hold these fields as well.
    drawing = Drawing(shape=Square(width=2.0))
    values = to_dict(drawing)
    assert values == {"shape": {"kind": "square", "width": 2.0, "tilt": 0.0}, "frame": None}
    assert from_dict(Drawing, values) == drawing
    values["shape"].pop("tilt")
    assert from_dict(Drawing, values) == drawing
    assert from_dict(Square, values["shape"]) == drawing.shape
    assert with_texts(drawing, [("shape.width", "2")]) == drawing


WRONG_KINDS = {
    "misspelt inside": ({"kind": "square", "tillt": 1}, "'tillt'", "'tilt'"),
    "of the other": ({"kind": "circle", "tilt": 1}, "'tilt'", "width"),
    "no kind": ({"tilt": 1}, "kind", "circle, square"),
    "misspelt kind": ({"kind": "sqare"}, "'sqare'", "'square'"),
    "no text": ({"kind": ["square"]}, "kind", "['square']"),
}


@pytest.mark.parametrize("case", WRONG_KINDS)
def test_wrong_kinds(case):
    values, *parts = WRONG_KINDS[case]
    with pytest.raises(ConfigError) as caught:
        from_dict(Drawing, {"shape": values}, where="x.json")
    assert all(part in str(caught.value) for part in ("shape in x.json", *parts))


def test_kind_cannot_be_set():
    with pytest.raises(ConfigError, match=r"shape\.kind"):
        with_texts(Drawing(shape=Circle()), [("shape.kind", "square")])
    with pytest.raises(ConfigError, match="'square'"):
        from_dict(Circle, {"kind": "square"})
    assert kind_of(Square()) == kind_of(Square) == "square"
    assert kind_of(Outer) is kind_of(Outer(count=1)) is None  # a field of this name


def test_error_in_an_optional_config():
    with pytest.raises(ConfigError, match=r"'rats'. Did you mean 'rate'"):
        from_dict(Drawing, {"shape": {"kind": "circle"}, "frame": {"rats": 1}})
