# SPDX-License-Identifier: Apache-2.0
"""Asking the package for every answer, through what it offers to users."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import muntin
from tests.golden.answers import Answer
from tests.golden.cases import (
    FAMILIES,
    OLD_FILES,
    OLD_RUNS,
    STOPPED,
    TRAININGS,
    FamilyCase,
    TrainCase,
    still,
)
from tests.golden.material import (
    HERE,
    OLD,
    Layout,
    fill,
    images,
    inside,
    layout_of,
    read_state,
    write_filled,
)

Answers = dict[str, Answer]

SHOWN = {
    "classify": "data/classify/val",
    "detect": "data/scenes/val",
    "instance": "data/scenes/val",
    "semantic": "data/maps/images/val",
    "pose": "data/frames/val",
}
"""Images that networks of a task are shown."""

BOX = (6.0, 6.0, 42.0, 42.0)
"""Where the subject is said to be, in pixels."""

CLOCK = ("images_per_s", "memory_mib", "seconds")
"""What differs from run to run in a journal."""


def ask_family(name: str) -> Answers:
    """Maps, vector, logits and gradients of a family, and its weights in other formats."""
    case = FAMILIES[name]
    model: Any = fill(muntin.create_model(case.model, num_classes=5, **case.fields))
    backbone: Any = fill(muntin.create_backbone(case.model, **case.fields))
    answers = {
        "spec": Answer("same", [list(backbone.spec.channels), list(backbone.spec.strides)]),
        "layout": Answer("same", _short(layout_of(model.state_dict()))),
    }
    for height, width in case.sizes:
        x = images(height, width).requires_grad_()
        logits = model(x)
        answers[f"{height}x{width}/logits"] = Answer("numbers", logits)
        with torch.no_grad():
            vector, maps = backbone.embed(x), backbone(x)
        answers[f"{height}x{width}/vector"] = Answer("numbers", vector)
        for number, one in enumerate(maps):
            answers[f"{height}x{width}/map{number}"] = Answer("numbers", one)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        answers[f"{height}x{width}/gradient"] = Answer("numbers", gradient)
    return answers | _dialects(model, case)


def _dialects(model: Any, case: FamilyCase) -> Answers:
    answers = {}
    for dialect in case.dialects:
        state = muntin.to_dialect(model, dialect)
        fresh: Any = muntin.create_model(case.model, num_classes=5, **case.fields)
        muntin.load_weights(fresh, state)
        same = all(
            torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items()
        )
        answers[f"dialect/{dialect}"] = Answer(
            "same", {"names": _short(sorted(state)), "back": same}
        )
    return answers


def ask_head(name: str) -> Answers:
    """Raw output of the heads whose output is promised, as `create_*` builds them."""
    task, head = HEADS[name]
    fields = {"embed_dim": 8, "depths": (1, 1, 1), "num_heads": (1, 1, 2)}
    x = images(64, 96)
    with torch.no_grad():
        if task == "semantic":
            model: Any = muntin.create_segmenter(
                "swin_nano_patch4_window4_64", head=head, num_classes=4, **fields
            )
            return {"logits": Answer("numbers", fill(model)(x))}
        if task == "pose":
            model = muntin.create_pose_estimator(
                "swin_nano_patch4_window4_64", head=head, num_keypoints=5, **fields
            )
            return {"heatmaps": Answer("numbers", fill(model)(x))}
        model = muntin.create_detector(
            "swin_nano_patch4_window4_64", head=head, num_classes=3, **fields
        )
        found = fill(model)(x)
    answers: Answers = {"count": Answer("same", len(found))}
    for number, one in enumerate(found):
        for part in ("boxes", "scores"):
            values = getattr(one, part)
            answers[f"{number}/{part}"] = Answer("bits", values)
        best = sorted(one.scores.tolist(), reverse=True)[:5]
        answers[f"{number}/best"] = Answer("numbers", best, 1e-2)
    return answers


HEADS: dict[str, tuple[str, str]] = {
    "light_small": ("semantic", "light_small"),
    "light_pose_small": ("pose", "light_pose_small"),
    "fcos_small": ("detect", "fcos_small"),
    "faster_rcnn_small": ("detect", "faster_rcnn_small"),
    "mask_rcnn_small": ("instance", "mask_rcnn_small"),
}


def train_case(
    case: TrainCase, out: Path, *, weights: str | Path = "none", epochs: int = 3, **more: Any
) -> Any:
    """Train as a case says; `more` are further arguments of `muntin.train`."""
    settings = {
        "machine.workers": 0,
        "train.warmup": 0,
        "train.learning_rate": 1e-3,
        "train.lr_batch": 0,
        "train.ema_decay": 0,
        "train.drop_path_rate": 0,
        "train.layer_decay": 1,
        **still(case),
        **case.settings,
        **more.pop("settings", {}),
    }
    with inside(HERE):
        return muntin.train(
            case.task,
            f"data/{case.data}",
            model=case.model,
            head=case.head,
            weights=weights,
            recipe="finetune",
            epochs=epochs,
            batch_size=0 if "train.batch_size" in settings else more.pop("batch_size", 8),
            img_size=case.side,
            precision="fp32",
            device="cpu",
            seed=3,
            out=out,
            settings=settings,
            quiet=True,
            **more,
        )


def ask_layout(name: str, folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the weights that a case is trained with."""
    run = train_case(TRAININGS[name], folder / f"{name}-layout", epochs=1)
    return layout_of(read_state(run.path / "weights.safetensors"))


def ask_training(name: str, layout: Layout, folder: Path, *, bits: bool = True) -> Answers:
    """Losses of three steps from known weights; with `bits` what the network then answers too."""
    case = TRAININGS[name]
    weights = write_filled(folder / f"{name}.safetensors", layout)
    run = train_case(case, folder / name, weights=weights)
    lines = read_lines(run.path)
    state = read_state(run.path / "weights.safetensors")
    # Resizing rounds to whole grey values, which may change which regions are sampled.
    tolerance = 5e-2 if case.augmented else 2e-4
    losses = [line["train_loss"] for line in lines]
    answers = {
        "layout": Answer("same", _unlike(layout, layout_of(state))),
        "losses": Answer("losses", losses, tolerance),
        "rates": Answer("losses", [line["learning_rate"] for line in lines], 1e-9),
        "journal": Answer("bits", lines),
        "metrics": Answer("bits", run.metrics),
    }
    if not bits:
        return answers
    for key in sorted(state):
        answers[f"state/{key}"] = Answer("bits", state[key])
    return answers | {f"after/{key}": one for key, one in ask_run(run.path, case, "bits").items()}


def _short(names: Any) -> list[Any]:
    """How many names, and what stands for all of them and their shapes."""
    return [len(names), hashlib.sha256(json.dumps(names).encode()).hexdigest()]


def _unlike(layout: Layout, other: Layout) -> list[str]:
    """Names of the tensors that are in one alone, or have another shape."""
    names = sorted(layout.keys() | other.keys())
    return [name for name in names if list(layout.get(name, ())) != list(other.get(name, ()))]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The journal without what the clock says."""
    text = (folder / "journal.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def shown(case: TrainCase) -> list[str]:
    """Images that a network is shown, by paths relative to this folder."""
    part = "scenes" if case.data == "scenes" else SHOWN[case.task].split("/")[1]
    folder = SHOWN[case.task] if part in SHOWN[case.task] else f"data/{part}/val"
    paths = sorted(path.relative_to(HERE).as_posix() for path in (HERE / folder).rglob("*.png"))
    return paths[:3]


def ask_run(path: Path, case: TrainCase, kind: Any = "") -> Answers:
    """Predictions and figures of a run folder, or of an exported file."""
    with inside(HERE):
        predictor = muntin.load(path, device="cpu")
        paths = shown(case)
        boxes = [[BOX]] * len(paths) if _asks_boxes(case) else None
        results = [one.to_dict() for one in predictor(paths, boxes=boxes)]
        figures = muntin.evaluate(path, f"data/{case.data}", device="cpu", pictures=False)
    return {
        "results": Answer(kind or "results", results),
        "figures": Answer(kind or "figures", figures),
    }


def _asks_boxes(case: TrainCase) -> bool:
    return case.task == "pose" and case.data == "scenes" and "rcnn" not in case.head


def ask_old(name: str) -> Answers:
    """Predictions and figures of a run folder that an earlier version wrote."""
    return ask_run(OLD / name, TRAININGS[OLD_RUNS[name][0]])


def ask_old_file(name: str, folder: Path) -> Answers:
    """Predictions and figures of a file that an earlier version exported."""
    path = folder / name
    path.write_bytes(gzip.decompress((OLD / f"{name}.gz").read_bytes()))
    return ask_run(path, TRAININGS[OLD_RUNS[OLD_FILES[name][0]][0]])


def ask_resumed(folder: Path) -> Answers:
    """Go on with a run that an earlier version wrote."""
    out = folder / STOPPED
    shutil.copytree(OLD / STOPPED, out)
    with inside(HERE):
        run = muntin.train("classify", "data/classify", out=out, resume=True, quiet=True)
    lines = read_lines(out)
    state = read_state(out / "weights.safetensors")
    return {
        "epochs": Answer("same", [line["epoch"] for line in lines]),
        "losses": Answer("losses", [line["train_loss"] for line in lines], 1e-3),
        "metrics": Answer("figures", run.metrics),
        **{f"state/{key}": Answer("bits", state[key]) for key in sorted(state)},
    }


def ask_export(name: str, format: str, folder: Path) -> Answers:
    """What an exported file answers."""
    suffix = {"torch": ".pt2", "onnx": ".onnx"}[format]
    path = folder / f"exported-{name}{suffix}"
    made = muntin.export(OLD / name, path, format=format)
    case = TRAININGS[OLD_RUNS[name][0]]
    answers = {
        "names": Answer("same", [list(made.size), list(made.inputs), list(made.outputs)]),
    }
    return answers | ask_run(path, case)


def ask_command(name: str) -> Answers:
    """What the command line answers, which knows thresholds from the run's own validation."""
    command = [sys.executable, "-m", "muntin", "predict", str(OLD / name)]
    paths = shown(TRAININGS[OLD_RUNS[name][0]])
    ended = subprocess.run(
        [*command, *paths, "--json", "--device", "cpu"],
        cwd=HERE, capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MUNTIN_NO_HOOK": "1"},
    )  # fmt: skip
    return {"results": Answer("results", json.loads(ended.stdout))}


def ask_explain(name: str, folder: Path) -> Answers:
    """The data behind every figure of a page."""
    case = TRAININGS[OLD_RUNS[name][0]]
    out = folder / f"explain-{name}"
    with inside(HERE):
        page = muntin.explain(OLD / name, shown(case)[:1], out, sections=EXPLAINED)
    answers: Answers = {}
    for path in sorted(out.rglob("*.npz")):
        with np.load(path) as arrays:
            for key in sorted(arrays):
                place = f"{path.relative_to(out).as_posix()}/{key}"
                array = np.asarray(arrays[key])
                kind = "numbers" if array.dtype.kind == "f" else "bits"
                answers[place] = Answer(kind, array, 5e-3)
    for path in sorted(out.rglob("*.json")):
        values: Mapping[str, Any] = json.loads(path.read_text())
        place = path.relative_to(out).as_posix()
        answers[f"{place}/facts"] = Answer("bits", values["facts"])
        answers[f"{place}/keys"] = Answer("same", sorted(values["facts"]))
    answers["missing"] = Answer("same", len(page.missing))  # titles are prose
    return answers


EXPLAINED = ("cut", "positions", "attention", "decision", "features")
COMMANDED_RUNS = ("detect", "instance")
EXPLAINED_RUNS = ("classify", "detect")
EXPORTED_RUNS = (("classify", "torch"), ("classify", "onnx"), ("detect", "torch"),
                 ("instance", "torch"), ("semantic", "torch"), ("pose", "torch"))  # fmt: skip
