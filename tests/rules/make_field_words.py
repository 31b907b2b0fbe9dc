# SPDX-License-Identifier: Apache-2.0
"""List the words that two or more libraries of this field name modules, classes and functions by.

    python tests/rules/make_field_words.py      # writes field_words.txt from what is installed

A word counts when at least two of the libraries below use it in a public name.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import defaultdict
from pathlib import Path

LIBRARIES = (
    "PIL", "captum", "huggingface_hub", "lightning_fabric", "matplotlib", "nncf", "onnx",
    "onnxruntime", "openvino", "pycocotools", "safetensors", "sklearn", "timm", "torch",
    "torchvision", "transformers",
)  # fmt: skip
LIST = Path(__file__).with_name("field_words.txt")


def split_name(name: str) -> list[str]:
    """Words of a name in either spelling, in lower case, without digits."""
    found = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)
    return [word.lower() for word in found]


def names_in(path: Path) -> set[str]:
    """The module's name, and those of its public classes and functions."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
    except (SyntaxError, ValueError):
        return set()
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {path.stem} | {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def collect() -> list[str]:
    users: dict[str, set[str]] = defaultdict(set)
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        assert spec is not None, f"{library} is not installed"
        for folder in spec.submodule_search_locations or ():
            for path in Path(folder).rglob("*.py"):
                for name in names_in(path):
                    if not name.startswith("_"):
                        for word in split_name(name):
                            users[word].add(library)
    return sorted(word for word, libraries in users.items() if len(libraries) >= 2)


if __name__ == "__main__":
    LIST.write_text("\n".join(collect()) + "\n", encoding="utf-8")
