# SPDX-License-Identifier: Apache-2.0
"""Write golden answers, or their exact bits, or compare the bits of two versions.

    python tests/golden/make_golden.py --exact before.json     # bits of this version, this machine
    python tests/golden/make_golden.py --exact after.json
    python tests/golden/make_golden.py --compare before.json after.json
    python tests/golden/make_golden.py --only fcos --exact one.json

    python tests/golden/make_golden.py --write [--only NAME]   # replaces stored answers
    python tests/golden/make_golden.py --write-old             # replaces the stored runs and files

Stored answers and runs are what this package answered once: they are replaced only where its
arithmetic was changed on purpose, and the reason is written down.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if __name__ == "__main__":  # not this folder, whose names are common
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

import muntin
from tests.golden.answers import Answer, digest, summary
from tests.golden.asking import (
    COMMANDED_RUNS,
    EXPLAINED_RUNS,
    EXPORTED_RUNS,
    HEADS,
    Answers,
    ask_command,
    ask_explain,
    ask_export,
    ask_family,
    ask_head,
    ask_layout,
    ask_old,
    ask_old_file,
    ask_resumed,
    ask_training,
    train_case,
)
from tests.golden.cases import FAMILIES, OLD_FILES, OLD_RUNS, STOPPED, TRAININGS
from tests.golden.material import DATA, HERE, OLD, join_parts, same_parts, write_data

ANSWERS = HERE / "answers.json"
FAST_EXPORTS = ("classify-torch",)
LAYOUTS = HERE / "layouts.json"
KEPT = ("config.json", "classes.json", "preprocessing.json", "split.json", "journal.jsonl",
        "weights.safetensors")  # fmt: skip


def questions(folder: Path, *, bits: bool = True) -> Iterator[tuple[str, Callable[[], Answers]]]:
    """Name of every question, and how it is asked.

    Args:
        folder: For what is written on the way.
        bits: Whether answers are wanted of which only bits can be compared.
    """
    for name in FAMILIES:
        yield f"family/{name}", lambda name=name: ask_family(name)
    for name in HEADS:
        yield f"head/{name}", lambda name=name: ask_head(name)
    for name in OLD_RUNS:
        yield f"old/{name}", lambda name=name: ask_old(name)
    for name in OLD_FILES:
        yield f"old/{name}", lambda name=name: ask_old_file(name, folder)
    yield f"old/{STOPPED}", lambda: ask_resumed(folder)
    layouts = json.loads(LAYOUTS.read_text()) if LAYOUTS.is_file() else {}
    for name in TRAININGS:
        yield (
            f"train/{name}",
            lambda name=name: ask_training(name, join_parts(layouts, name), folder, bits=bits),
        )
    for name, kind in EXPORTED_RUNS:
        yield f"export/{name}-{kind}", lambda name=name, kind=kind: ask_export(name, kind, folder)
    for name in COMMANDED_RUNS:
        yield f"command/{name}", lambda name=name: ask_command(name)
    for name in EXPLAINED_RUNS:
        yield f"explain/{name}", lambda name=name: ask_explain(name, folder)


def question_of(key: str) -> str:
    """The question that an answer belongs to."""
    return "/".join(key.split("/")[:2])


def say(line: str) -> None:
    """Write a line on the terminal."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def is_slow(name: str) -> bool:
    """Whether a question is left out of the tests unless slow ones are asked for."""
    group, _, rest = name.partition("/")
    slow = {"train": rest in TRAININGS and TRAININGS[rest].slow, "export": rest not in FAST_EXPORTS}
    return slow.get(group, group in ("explain", "command"))


def ask_all(only: str = "", *, strict: bool = True) -> dict[str, Answer]:
    """Every answer by the name of its question and its own, with one thread.

    Args:
        only: What the name of a question must hold.
        strict: Whether an error ends all; else it is the answer.
    """
    torch.set_num_threads(1)
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, ask in questions(Path(folder)):
            if only in name:
                torch.manual_seed(0)
                try:
                    found = ask()
                except Exception as error:
                    if strict:
                        raise
                    found = {"error": Answer("same", f"{type(error).__name__}: {error}")}
                answers.update({f"{name}/{key}": one for key, one in found.items()})
                say(f"{name} {next(iter(found))}" if "error" in found else name)
    return answers


def write_layouts() -> None:
    """Ask how the weights of every case are called."""
    with tempfile.TemporaryDirectory() as folder:
        layouts = {name: ask_layout(name, Path(folder)) for name in TRAININGS}
    write(LAYOUTS, same_parts(layouts))


def write(path: Path, values: dict[str, Any]) -> None:
    """Write JSON of one line an entry, so that changes can be read."""
    rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(values.items())]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def write_old() -> None:
    """Train the run folders that are kept, and export the files."""
    shutil.rmtree(OLD, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (case, epochs) in OLD_RUNS.items():
            more = {"train.learning_rate": 5e-3, "train.clip_grad": 1}
            if name == "semantic":
                more |= {"train.class_weights": "true"}
            run = train_case(TRAININGS[case], Path(folder) / name, epochs=epochs, settings=more)
            say(f"{name} {run.metrics}")
            _keep(run.path, OLD / name)
        # 12 images in batches of 4: two epochs of three steps, and one step of the third.
        run = train_case(
            TRAININGS["classify-swin"], Path(folder) / STOPPED, epochs=4, batch_size=2,
            stop_after=7, settings={"model.embed_dim": 4, "train.ema_decay": 0.9},
        )  # fmt: skip
        _keep(run.path, OLD / STOPPED)
        shutil.copytree(run.path / "last.ckpt", OLD / STOPPED / "last.ckpt")
        for name, (source, kind) in OLD_FILES.items():
            path = Path(folder) / name
            muntin.export(OLD / source, path, format=kind)
            _without_paths(path)
            (OLD / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def _keep(run: Path, place: Path) -> None:
    place.mkdir(parents=True)
    for name in KEPT:
        shutil.copy(run / name, place / name)
    # The best epochs, from which thresholds are taken, and the last ones are enough of a journal.
    rows = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    lines = [json.loads(row) for row in rows]
    goal = next(key for key in ("val_top1", "val_map", "val_box_ap", "val_mask_ap", "val_miou",
                                "val_oks_ap") if key in lines[0])  # fmt: skip
    best = max(line[goal] for line in lines)
    kept = [i for i, line in enumerate(lines) if line[goal] == best][:1] + list(range(len(rows)))[
        -3:
    ]
    (place / "journal.jsonl").write_text("".join(rows[i] for i in sorted(set(kept))))


def _without_paths(file: Path) -> None:
    """Take out where the package lay: exported graphs hold the source line of every operator."""
    places = [str(Path(module.__file__ or "").parents[1]) + "/" for module in (muntin, torch)]

    def clean(text: str) -> str:
        return functools.reduce(lambda text, place: text.replace(place, ""), places, text)

    if file.suffix == ".onnx":
        import onnx

        model = onnx.load(file)
        for node in model.graph.node:
            for row in node.metadata_props:
                row.value = clean(row.value)
        onnx.save(model, file)
        return
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            text = name.endswith("model.json")
            data = clean(content.decode()).encode() if text else content
            archive.writestr(zipfile.ZipInfo(name), data)


def compare(before: Path, after: Path) -> int:
    """Print which answers have other bits; give how many."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    count = 0
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            say(f"{name}: only {'after' if name in new else 'before'}")
        elif old[name]["sha256"] != new[name]["sha256"]:
            say(f"{name}: {_far(old[name]['answer'], new[name]['answer'])}")
        else:
            continue
        count += 1
    say(f"{count} of {len(old.keys() | new.keys())} answers differ")
    return count


def _far(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict) and "scale" in old and "scale" in new:
        pairs = zip(old["values"], new["values"], strict=False)
        far = max((abs(a - b) for a, b in pairs), default=0.0) / (old["scale"] or 1)
        return f"shape {old['shape']}, {new['shape']}; by {far:.1e} of the largest value"
    texts = [json.dumps(value)[:200] for value in (old, new)]
    return "other bits" if texts[0] == texts[1] else f"{texts[0]} -> {texts[1]}"


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--exact", type=Path, metavar="OUT.json")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE.json", "AFTER.json"))
    parser.add_argument("--only", default="", help="questions whose name holds this")
    parser.add_argument("--write", action="store_true", help="replace the stored answers")
    parser.add_argument("--write-old", action="store_true", help="replace the stored runs")
    asked = parser.parse_args()
    if asked.compare:
        return min(compare(*asked.compare), 1)
    if asked.write_old:
        if not DATA.exists():
            write_data()
        write_old()
        write_layouts()
    if asked.write:
        stored = json.loads(ANSWERS.read_text()) if asked.only else {}
        kept = {key: one for key, one in stored.items() if asked.only not in question_of(key)}
        fresh = {key: one for key, one in ask_all(asked.only).items() if one.kind != "bits"}
        write(ANSWERS, {**kept, **{key: summary(one) for key, one in fresh.items()}})
    if asked.exact:
        answers = ask_all(asked.only, strict=False)
        rows = {name: _exact(one) for name, one in answers.items()}
        write(asked.exact, rows)
        say(f"{len(rows)} answers of muntin at {Path(muntin.__file__).parent}")
    return 0


def _exact(answer: Answer) -> dict[str, Any]:
    shown = answer if answer.kind != "bits" else Answer(_shown_as(answer.value), answer.value)
    return {"sha256": digest(answer), "answer": summary(shown)}


def _shown_as(value: Any) -> Any:
    return "same" if isinstance(value, dict | list | str | int | float) else "numbers"


if __name__ == "__main__":
    sys.exit(main())
