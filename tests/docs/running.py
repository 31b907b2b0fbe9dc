# SPDX-License-Identifier: Apache-2.0
"""Run the code of a page from top to bottom, as a reader would, on tiny data and tiny models.

A command ``muntin ...`` is called in this process, which saves the start of Python; everything else
goes to bash. Trainings are made short: ``SHORT`` is added to their commands, and ``shorten`` adds
the same to calls in Python.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muntin.commands import main
from muntin.zoo import list_models
from tests.detectors import BODY, BODY_SETTINGS
from tests.docs.pages import ROOT, Block, place

SHORT = (
    *("--epochs", "1", "--batch-size", "4", "--img-size", "64", "--device", "cpu"),
    *("--precision", "fp32", "--set=machine.workers=0", "--set=train.warmup=0"),
)
TINY = ("--model", BODY, *(f"--set={name}={value}" for name, value in BODY_SETTINGS.items()))
TINY_VIT = ("--model", "vit_tiny_patch16_224", *(f"--set={row}" for row in (
    "model.embed_dim=16", "model.depth=2", "model.num_heads=2", "model.patch_size=8",
    "head.dim=16", "head.depth=1", "head.num_heads=2",
)))  # fmt: skip
OWN_MODEL = ("--weights", "--extend", "--resume", "--config", "--set=model.", "--set model.")
"""With one of these in a command, what is trained follows from another run, or from the page."""

OWN_RUN = ("--weights", "--extend", "--resume", "--config", "--teacher", "--folds", "--val")
"""With one of these, what is trained follows from more than the data."""

_STARTED = re.compile(r"^muntin( |$)")
_INSTALLED = re.compile(r"^(?:python3? -m )?pip install ")
_EXTRA = re.compile(r"muntin\[([\w,-]+)\]")


class PageError(AssertionError):
    """What a reader would have met; says the page and the line."""


@dataclass
class Reader:
    """Someone who types what a page says, in the folder in which they are.

    Attributes:
        page: The page.
        kept: A folder for runs, so that a training that several pages name is done once; None: no.
        names: The names that its Python code has so far.
    """

    page: Path
    kept: Path | None = None
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def read(self, blocks: tuple[Block, ...]) -> None:
        """Run every block that is to run."""
        for block in blocks:
            if block.runs:
                self.run_python(block) if block.kind == "python" else self.run_shell(block)

    def run_python(self, block: Block) -> None:
        source = "\n" * (block.line - 1) + block.text
        name = place(self.page, block.line).rpartition(":")[0]
        try:
            code = compile(shorten(ast.parse(source, name)), name, "exec")
            with _quietly():
                exec(code, self.names)
        except BaseException as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                     if frame.filename == name]  # fmt: skip
            where = place(self.page, (lines or [block.line])[-1] or block.line)
            message = f"{where}: {type(error).__name__}: {error}"
            raise PageError(message) from error

    def run_shell(self, block: Block) -> None:
        commands = split_commands(block.text)
        for number, (offset, command) in enumerate(commands, 1):
            wanted = block.exit_code if number == len(commands) else 0
            code, said = run_command(command, self.kept)
            if code != wanted:
                where = place(self.page, block.line + offset)
                message = f"{where}: {command!r} exits with {code}, not {wanted}\n{said}"
                raise PageError(message)


def split_commands(text: str) -> list[tuple[int, str]]:
    """(line, command) of a block: each of muntin's alone, what is between for bash as a whole."""
    commands: list[tuple[int, str]] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        first = number
        while lines[number].endswith("\\") and number + 1 < len(lines):
            number += 1
        line = "\n".join(lines[first : number + 1])
        number += 1
        if not line.strip() or line.startswith("#"):
            continue
        ours = bool(_STARTED.match(line) or _INSTALLED.match(line))
        if not ours and commands and not _is_ours(commands[-1][1]):
            commands[-1] = (commands[-1][0], f"{commands[-1][1]}\n{line}")
        else:
            commands.append((first, line))
    return commands


def _is_ours(command: str) -> bool:
    return bool(_STARTED.match(command) or _INSTALLED.match(command))


def run_command(command: str, kept: Path | None = None) -> tuple[int, str]:
    """Exit code, and what was printed."""
    if _INSTALLED.match(command):
        return _check_extras(command)
    if not _STARTED.match(command):
        return _bash(command)
    ours, rest = split_pipe(command)
    words = _expand(ours)[1:]
    again = kept and _out_of(words)
    if again and (run := kept / _name_of(words)).exists() and not Path(again).exists():
        shutil.copytree(run, again)
        return _bash(f"cat {rest}" if rest else "true")
    code, printed, said = call_muntin(words)
    if again and code == 0:
        shutil.copytree(again, kept / _name_of(words))
    if code == 0 and rest:
        code, printed = _bash(f"cat {rest}", printed)
    return code, printed + said


def _out_of(words: list[str]) -> str:
    """The folder of a training that nothing but its data decides; "" for other commands."""
    plain = words[:1] == ["train"] and not any(one in " ".join(words) for one in OWN_RUN)
    return words[words.index("--out") + 1] if plain and "--out" in words[:-1] else ""


def _name_of(words: list[str]) -> str:
    """A name for a training: its command but for ``--out``, and the files that it learns from."""
    at = words.index("--out")
    files = sorted((str(one), one.stat().st_size) for one in Path(words[2]).rglob("*"))
    return hashlib.sha256(repr((words[:at], words[at + 2 :], files)).encode()).hexdigest()


def split_pipe(command: str) -> tuple[str, str]:
    """The command up to a pipe or redirection that no quotes hold, and the rest."""
    quoted = re.sub(r"'[^']*'|\"[^\"]*\"|\\.|(?<!\S)#.*", lambda one: "." * len(one[0]), command)
    cut = re.search(r"(?<![\w&])[|>]", quoted)
    return (command[: cut.start()], command[cut.start() :]) if cut else (command, "")


def _expand(command: str) -> list[str]:
    """The words of a command, as bash finds them: quotes, patterns and comments."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split("\0")[:-1]


def _bash(script: str, given: str = "") -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-e", "-c", script], input=given, capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _check_extras(command: str) -> tuple[int, str]:
    """Nothing is installed, but the extras that a page names are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name for one in _EXTRA.findall(command) for name in one.split(",")}
    unknown = sorted(named - project["optional-dependencies"].keys())
    return (1, f"no such extra: {', '.join(unknown)}") if unknown else (0, "")


def call_muntin(words: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``muntin WORDS``, in this process."""
    words = shorten_command(words)
    shown, said = io.StringIO(), io.StringIO()
    try:
        with _quietly(), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
            main(words)
    except SystemExit as end:
        return int(end.code or 0), shown.getvalue(), said.getvalue()
    return 0, shown.getvalue(), said.getvalue()


def shorten_command(words: list[str]) -> list[str]:
    """Add to what trains, or predicts how training would go, what makes it short; later ones win.

    A model that the page names must be there, since a tiny one takes its place.
    """
    verb = words[0] if words else ""
    if verb not in ("train", "pretrain", "plan") or {"--help", "-h"} & set(words):
        return words
    text = " ".join(words)
    if "--model" in words:
        name = words[words.index("--model") + 1]
        assert ":" in name or name in list_models(), f"no model {name}"
    short = ["--img-size", "64", "--device", "cpu"] if "--resume" not in words else []
    if verb != "plan" and "--resume" not in words:
        short = list(SHORT)
    if not any(one in text for one in OWN_MODEL) or "--weights none" in text:
        masks = verb == "pretrain" and "simmim" not in text and "views" not in text
        short += TINY_VIT if masks else TINY
    return [*words, *short]


class _Shortener(ast.NodeTransformer):
    """Gives calls of ``muntin.train`` and ``muntin.pretrain`` what `SHORT` gives commands."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        verb = ast.unparse(node.func)
        if verb not in ("muntin.train", "muntin.pretrain"):
            return node
        given = {one.arg: one.value for one in node.keywords}
        short: dict[str, Any] = {"epochs": 1, "batch_size": 4, "img_size": 64, "device": "cpu"}
        short["pictures"] = False  # which no page opens; commands draw them
        own = given.keys() & {"weights", "extend", "config", "settings"}
        if not own and verb != "muntin.pretrain":
            short |= {"model": BODY, "settings": BODY_SETTINGS}
        elif not own:
            pairs = (row.removeprefix("--set=").split("=") for row in TINY_VIT[2:])
            short |= {"model": TINY_VIT[1], "settings": dict(pairs)}
        values = {name: ast.Constant(value) for name, value in short.items()}
        if "settings" in values:
            values["settings"] = ast.parse(repr(short["settings"]), mode="eval").body
        node.keywords = [ast.keyword(name, value) for name, value in (given | values).items()]
        return node


def shorten(tree: ast.Module) -> ast.Module:
    """The same code, with short trainings."""
    return ast.fix_missing_locations(_Shortener().visit(tree))


@contextlib.contextmanager
def _quietly() -> Any:
    """Warnings are printed, as they are for a reader, and afterwards everything is as it was."""
    shown = warnings.showwarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            yield
    finally:
        warnings.showwarning = shown
