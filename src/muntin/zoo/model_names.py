# SPDX-License-Identifier: Apache-2.0
"""Names of models as other libraries write them: read word by word, and matched with the table.

Read are names of timm (with a tag), torchvision, OpenMMLab, of repositories on the hub, and of the
projects' own files and functions. A name with a word that is not known matches nothing: it may be
another architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_SIZES = ("tiny", "small", "medium", "base", "large", "huge", "giant")
_FAMILIES = ("swin", "vit", "deit", "hiera", "vitpose", "t2t")
_OBJECTIVES = ("mae", "simmim", "dinov2")

# Data, recipes, machines and file types: what does not change the architecture.
_SAYS_NOTHING = re.compile(
    r"(in|imagenet)?\d+k(to1k)?|\d+xb\d+|\d+e|\d+x\d+|imagenet|coco|in|ft|pt|pre|fine|tuned|"
    r"finetuned?|pretrain(ed)?|3rdparty|converted|hf|ms|fb|amp|coslr|lc|simple|td|hm|swag"
)
_WORDS: tuple[tuple[str, str], ...] = (
    (r"patch(?P<patch>\d+)|p(?P<p>\d+)", "patch"),
    (r"(?:window|w)(?P<from>\d+)to(?P<window>\d+)", "wider"),
    (r"(?:window|w)(?P<window>\d+)", "window"),
    (r"\d+to(?P<side>\d\d+)", "side"),
    (r"(?P<side>\d+)px", "side"),
)


@dataclass(slots=True)
class ModelWords:
    """What a name says about the architecture; 0 and False if it does not say."""

    family: str = ""
    version: int = 1
    size: str = ""
    patch: int = 0
    window: int = 0
    side: int = 0
    flags: set[str] = field(default_factory=set)


_LONGEST = 40  # letters of a word; Python refuses numbers of thousands of digits


def split_tag(name: str) -> tuple[str, str]:
    """Separate timm's tag, such as "ms_in1k", and the owner on the hub from a name.

    Examples:
        >>> split_tag("timm/swin_tiny_patch4_window7_224.ms_in1k")
        ('swin_tiny_patch4_window7_224', 'ms_in1k')
    """
    name = re.sub(r"^hf[-_]hub:", "", name).partition("@")[0]
    if re.fullmatch(r"[\w.-]+/[\w.-]*[A-Za-z][\w.-]*", name):
        name = name.partition("/")[2]
    base, _, tag = name.partition(".")
    return base, tag


def read_words(name: str) -> ModelWords | None:
    """Read the words of a name without owner and tag; None if one is not known."""
    found = ModelWords()
    for word in _split(name):
        if len(word) > _LONGEST or not _take(found, word):
            return None
    return found if found.family else None


def _split(name: str) -> Iterator[str]:
    """Words of a name, in small letters; those that are written together are separated."""
    text = re.sub(r"swin_?(transformer)?[-_]?v2", "swin_v2", name.lower())
    text = re.sub(r"t2t[-_]?vit", "t2t", text)
    text = re.sub(r"deit[-_]?(iii|3)", "deit_v3", text)
    text = re.sub(r"(?<=vit)[-_]?([tsmblhg])[-_/]?(\d+)", r"_\1_p\2", text)
    text = re.sub(r"with[-_]registers|\breg\d?\b|(?<=_)reg\d?(?=_|$)", "registers", text)
    return iter(part for part in re.split(r"[-_/.+ ]+", text) if part)


def _take(found: ModelWords, word: str) -> bool:
    """Note what a word says; whether it is known."""
    sizes = {name[0]: name for name in _SIZES}
    if found.family == "t2t" and re.fullmatch(r"\d\d?|t", word):  # t2t_vit_t_14
        found.size += word
    elif word in _FAMILIES:
        found.family = word
    elif re.fullmatch(r"v[23]", word):
        found.version = int(word[1])
    elif word in _SIZES or word in sizes:
        found.size = sizes.get(word, word)
    elif word == "plus" and found.family == "hiera":
        found.size += "_plus"
    elif word in (*_OBJECTIVES, "distilled", "registers"):
        found.flags.add(word)
        found.family = found.family or {"dinov2": "vit"}.get(word, "")
    elif word.isdecimal() and (int(word) >= 64 or found.family in ("vit", "deit")):
        setattr(found, "side" if int(word) >= 64 else "patch", int(word))
    elif not _take_number(found, word):
        return _SAYS_NOTHING.fullmatch(word) is not None
    return True


def _take_number(found: ModelWords, word: str) -> bool:
    for pattern, kind in _WORDS:
        match = re.fullmatch(pattern, word)
        if match:
            parts = match.groupdict()
            number = int(parts.get(kind) or parts.get("window") or parts.get("p") or 0)
            if kind == "wider":
                found.flags.add("wider")
            setattr(found, "window" if kind == "wider" else kind, number)
            return True
    return False


def match_name(name: str, configs: Mapping[str, Any], preferred: Mapping[str, str]) -> str:
    """Name in a table of configs of a model that is called otherwise elsewhere, or empty.

    Where a name leaves a choice, that of the short name in `preferred` is made, then the first.
    """
    wanted = read_words(name)
    if wanted is None:
        return ""
    fits = [known for known, config in configs.items() if _fits(wanted, known, config)]
    return next((known for known in preferred.values() if known in fits), fits[0] if fits else "")


def _fits(wanted: ModelWords, name: str, config: Any) -> bool:  # noqa: ANN401 (any family)
    words = read_words(name)
    if words is None:
        return False
    same = ("family", "version", "size")
    flags = words.flags | ({"wider"} if any(getattr(config, "pretrained_windows", ())) else set())
    if wanted.flags != flags or any(getattr(words, k) != getattr(wanted, k) for k in same):
        return False
    numbers = (
        (wanted.patch, getattr(config, "patch_size", 0)),
        (wanted.window, getattr(config, "window_size", 0)),
        (wanted.side, config.img_size[0]),
    )
    return all(asked in (0, has) for asked, has in numbers)
