# SPDX-License-Identifier: Apache-2.0
"""What may stand in a file: headers, characters, paths, prints, records."""

from __future__ import annotations

import ast
import re

from tests.rules.sources import PACKAGE, ROOT, lines_of, modules, nodes_of, none, project_files

HEADER = "# SPDX-License-Identifier: Apache-2.0\n"  # whose copyright it is stands in NOTICE
# A path that exists on one machine only. What comes before it ends a word, so URLs do not match.
MACHINE_PATH = re.compile(r"(?:^|[\s\"'`=(,])/(?:home|Users|root|work|mnt|srv|opt)/\w")
# Spelled in pieces, so that this file does not hold them.
REGISTRY = re.compile("|".join(["pypi" + r"\.org", "python" + "hosted", "npm" + "js"]))
# "owner/repository#12" names a public thread; a bare number means nothing to a reader.
TICKET = re.compile(r"(?<![\w/&])#\d{1,5}\b|\b[Ii]ssue \d+|\b[Ss]essions?\b(?!\.py)")


def test_header() -> None:
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in project_files()
        if path.suffix == ".py" and not path.read_text(encoding="utf-8").startswith(HEADER)
    ]
    none(wrong, f"The first line is:\n{HEADER}")


def test_sources_are_ascii() -> None:
    wrong = [
        f"{where} {line.strip()[:60]!a}"
        for path in project_files()
        if path.suffix in (".py", ".toml") and path.parent.name != "texts"  # which are translated
        for where, line in lines_of(path)
        if not line.isascii()
    ]
    none(wrong, "Write ASCII, and other characters as escapes.")


def test_no_print_in_the_package() -> None:
    wrong = [
        f"{module.path}:{node.lineno}"
        for module in modules()
        for node in nodes_of(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "print"
    ]
    none(wrong, "Return it, raise it, or write through the console of the command line.")


# What they read is part of the package or of the system.
READERS_OF_OWN_FILES = {
    "untrusted.py", "devices.py", "diagnosing/findings.py", "engines/torch_program.py",
    "explaining/attention_cost.py",
    "explaining/figures.py", "explaining/page.py", "serving/metrics.py", "zoo/costs.py",
}  # fmt: skip


def test_foreign_files_are_opened_by_untrusted_alone() -> None:
    wrong = [
        f"{module.path}:{node.lineno}"
        for module in modules()
        for node in nodes_of(module.tree)
        if isinstance(node, ast.Call) and _opens_to_read(node)
        if module.path not in READERS_OF_OWN_FILES
    ]
    none(wrong, "Use open_regular or read_regular: a pipe in place of a file never ends.")


def _opens_to_read(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
    if name != "open":
        return name in ("read_text", "read_bytes") and isinstance(call.func, ast.Attribute)
    given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [one.value for one in given if isinstance(one, ast.Constant)]
    reads = any(mode in ("r", "rb", "rt") for mode in modes)
    return reads or (not modes and any(word.arg == "encoding" for word in call.keywords))


def test_no_machine_paths_and_no_registries() -> None:
    wrong = [
        f"{where} {line.strip()[:80]}"
        for path in project_files()
        for where, line in lines_of(path)
        if MACHINE_PATH.search(line) or REGISTRY.search(line)
    ]
    none(wrong, "Use a relative path, an argument or an environment variable.")


def test_documents_stand_on_their_own() -> None:
    wrong = [
        f"{where} {line.strip()[:80]}"
        for path in project_files()
        if path.suffix == ".md"
        for where, line in lines_of(path)
        if TICKET.search(line)
    ]
    none(wrong, "Say what it is about; a reader cannot look the number up.")


def test_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles, "CHANGELOG.md needs a section"
    assert titles[0] == "Unreleased" or re.match(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d$", titles[0])
    for kind in re.findall(r"^### (.+)$", text, re.MULTILINE):
        assert kind in ("Added", "Changed", "Removed", "Fixed"), kind


def test_decision_records() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    numbers = [path.name[:4] for path in records]
    assert numbers == [f"{number:04}" for number in range(1, len(records) + 1)]
    for path in records:
        parts = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert parts == ["Situation", "Options", "Decision", "Price"], path.name


def test_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
