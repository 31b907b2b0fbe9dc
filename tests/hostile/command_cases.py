# SPDX-License-Identifier: Apache-2.0
"""Every argument and option of every verb with texts that nobody means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer

from muntin.commands import app
from tests.golden.material import DATA, OLD
from tests.hostile.harness import Case, Place
from tests.hostile.run_cases import TINY, USED
from tests.hostile.weight_cases import CONTAINERS, MODEL, SETTINGS

TEXTS = {
    "empty": "", "space": " ", "minus": "-5", "zero": "0", "nan": "nan", "infinite": "inf",
    "1e400": "1e400", "half": "1.5", "digits-400": "9" * 400, "digits-5000": "9" * 5000,
    "superscript": "\u00b2", "word": "klingon", "long": "x" * 5000, "escape": "\x1b[31mred",
    "lines": "a\nb", "half-a-pair": "\udcff\udcfe", "path-out": "../../../../nothing",
    "device": "/dev/zero", "system": "/proc/self", "address": "http://127.0.0.1:9/x",
    "braces": '{"a": [1, {"b": null}]}', "dashes": "--", "option": "--klingon=1", "glob": "**/[",
}  # fmt: skip
SETTINGS_OF_TRAIN = (
    "train.epochs", "train.learning_rate", "train.betas", "train.steps", "train.seed",
    "train.clip_grad", "train.ema_decay", "train.memory_gib", "train.freeze", "train.init",
    "model.embed_dim", "model.depths", "model.window_size", "model.img_size", "model.attention",
    "augment.mixup", "augment.crop_scale", "data.val_fraction", "data.colors", "data.ignored",
    "data.sampler", "machine.workers", "machine.devices", "klingon.x", "train.__class__", "",
)  # fmt: skip


def _classify() -> str:
    return str(DATA / "classify")


def _weights(place: Place) -> str:
    path = place.source / "weights.safetensors"
    path.write_bytes(CONTAINERS["safetensors"][1]())
    return str(path)


# What each verb is called with, so that one hostile text is all that is wrong.
CALLS: dict[str, Callable[[Place], list[str]]] = {
    "train": lambda place: ["classify", _classify(), *TINY, "--out", f"{place.out}/run"],
    "eval": lambda place: [str(OLD / "classify"), _classify()],
    "predict": lambda place: [
        str(OLD / "detect"), str(DATA / USED["detect"][1]), "--out", f"{place.out}/drawn"],
    "models": lambda place: ["swin_nano*"],
    "check": lambda place: ["classify", _classify()],
    "plan": lambda place: ["classify", _classify(), *TINY[:1], "--img-size=32", "--weights=none"],
    "convert": lambda place: [
        _weights(place), f"{place.out}/out.safetensors", "--to", "timm", "--model", MODEL,
        *SETTINGS],
    "export": lambda place: [str(OLD / "classify"), f"{place.out}/out.onnx"],
    "explain": lambda place: [
        str(OLD / "classify"), str(DATA / USED["classify"][1]), "--out", f"{place.out}/page",
        "--sections", "cut"],
    "doctor": lambda place: [],
    "bench": lambda place: [
        "inference", "--model", "swin_nano", "--peers", "none", "--rounds", "1", "--img-size",
        "32", "--batch-size", "1"],
}  # fmt: skip
# Measuring takes most of a minute: only what is no value for any option.
_WRONG = ("word", "nan", "digits-5000", "escape", "half-a-pair", "braces")


def command_cases() -> Iterator[Case]:
    """Each text for each argument and option; settings of training; words that are no verb."""
    verbs: dict[str, Any] = getattr(typer.main.get_command(app), "commands")  # noqa: B009
    for verb, call in CALLS.items():
        texts = {label: TEXTS[label] for label in _WRONG} if verb == "bench" else TEXTS
        if verb != "bench":
            yield _case(verb, "plain", call, (), "accept")
        for option in verbs[verb].params:
            for turn, (label, text) in enumerate(texts.items()):
                name = f"{option.name}={label}"
                if option.param_type_name == "argument":
                    yield _argument(verb, name, call, option.name, verbs[verb].params, text)
                elif not option.is_flag and not option.is_eager:
                    words = (f"{option.opts[0]}={text}",) if turn % 2 else (option.opts[0], text)
                    yield _case(verb, name, call, words)
    for setting in SETTINGS_OF_TRAIN:
        for label, text in list(TEXTS.items())[:14]:
            words = ("--set", f"{setting}={text}")
            yield _case("train", f"set/{setting}={label}", CALLS["train"], words)
    for label, text in TEXTS.items():
        yield _case(text, f"verb={label}", lambda place: [], (), "refuse" if text else "either")


def _case(
    verb: str, label: str, call: Callable[[Place], list[str]], words: Sequence[str],
    expect: str = "either",
) -> Case:  # fmt: skip
    def build(place: Place) -> list[str]:
        return [verb, *call(place), *words]

    kind = verb if verb in CALLS else "verbs"
    return Case(name=f"command/{kind}/{label}", kind=f"muntin {kind}", build=build, expect=expect)


def _argument(
    verb: str, label: str, call: Callable[[Place], list[str]], name: str, params: list[Any],
    text: str,
) -> Case:  # fmt: skip
    arguments = [one.name for one in params if one.param_type_name == "argument"]
    position = arguments.index(name)

    def build(place: Place) -> list[str]:
        words = call(place)
        if position < len(words):
            words[position] = text
        else:
            words.append(text)
        return [verb, *words]

    return Case(name=f"command/{verb}/{label}", kind=f"muntin {verb}", build=build)
