# SPDX-License-Identifier: Apache-2.0
"""Run folders and exported files whose parts are hostile, swapped, or links out of the folder."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.golden.material import DATA, OLD
from tests.hostile import mutations
from tests.hostile.harness import CANARY, Case, Place, run_command
from tests.hostile.weight_cases import PICKLES, STATES

# Data that the run of a task is used with, and an image of it.
USED = {
    "classify": ("classify", "classify/val/disc/00000.png"),
    "detect": ("scenes", "scenes/val/00000.png"), "instance": ("scenes", "scenes/val/00000.png"),
    "semantic": ("maps", "maps/images/val/00000.png"), "pose": ("frames", "frames/val/00000.png"),
}  # fmt: skip
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


class Made:
    """A run and exported files of it, each made when it is first asked for."""

    def __init__(self, work: Path) -> None:
        self._folder = work / "made"

    def run(self) -> Path:
        """A run of this version: one epoch of a tiny classifier."""
        path = self._folder / "run"
        if not path.is_dir():
            self._call("train", "classify", str(DATA / "classify"), *TINY, "--out", str(path))
        return path

    def file(self, kind: str) -> Path:
        """An exported file of this version."""
        path = self._folder / f"network{FORMATS[kind]}"
        if not path.is_file():
            self._call("export", str(self.run()), str(path), "--format", kind)
        return path

    def _call(self, *arguments: str) -> None:
        self._folder.mkdir(exist_ok=True)
        outcome = run_command(arguments, self._folder)
        if outcome.code:
            raise RuntimeError(outcome.err)


TINY = (
    "--model=swin_nano_patch4_window4_64", "--set=model.embed_dim=8", "--set=model.depths=1,1",
    "--set=model.num_heads=1,2", "--set=model.out_indices=0,1", "--set=machine.workers=0",
    "--img-size=32", "--epochs=1", "--batch-size=4", "--weights=none", "--device=cpu",
    "--precision=fp32", "--seed=0",
)  # fmt: skip


def run_cases(made: Made) -> Iterator[Case]:
    """Runs of an earlier version and of this one."""
    for task in USED:
        yield _case(task, "plain", None, "accept")
        yield from _json_cases(task)
    for turn, (label, make) in enumerate(_journals()):
        yield _case("classify", f"journal.jsonl/{label}", _write("journal.jsonl", make), turn=turn)
    state = OLD / "stopped" / "last.ckpt" / "state.json"
    yield _stopped("plain", None, "accept")
    found = [*mutations.document_mutations("state.json", state.read_bytes())]
    found += [*mutations.json_mutations(json.loads(state.read_text()), 3)]
    for label, make in found:
        yield _stopped(f"state.json/{label}", _write("last.ckpt/state.json", make))
    for name in ("weights.safetensors", "last.ckpt/state.safetensors"):
        load = (OLD / "stopped" / name).read_bytes
        for label, make in mutations.byte_mutations(name, load):
            yield _stopped(f"{name}/{label}", _write(name, make))
    for name in ("config.json", "classes.json", "preprocessing.json", "weights.safetensors"):
        yield _case("classify", f"{name}/removed", partial(_remove, name), "refuse")
        for kind in ("folder", "pipe", "device", "nothing"):
            yield _case("classify", f"{name}/{kind}", partial(_place, name, kind), "refuse")
    for label, arguments in _uses(made).items():
        yield Case(name=f"run/{label}", kind="run of now", build=arguments, slow=True)


def _json_cases(task: str) -> Iterator[Case]:
    for name in ("config.json", "classes.json", "preprocessing.json", "split.json"):
        data = (OLD / task / name).read_bytes()
        count = {"classify": 6, "detect": 2}.get(task, 1) if name == "config.json" else 4
        found = [*mutations.json_mutations(json.loads(data), count)]
        if task == "classify":
            found += [*mutations.document_mutations(name, data)]
        for turn, (label, make) in enumerate(found):
            yield _case(task, f"{name}/{label}", _write(name, make), turn=turn)


def _journals() -> Iterator[mutations.Mutation]:
    lines = (OLD / "classify" / "journal.jsonl").read_text().splitlines()
    yield from mutations.document_mutations("journal.jsonl", "\n".join(lines).encode())
    for label, make in mutations.json_mutations(json.loads(lines[0]), 1):
        yield label, lambda make=make: b"\n".join([make(), *map(str.encode, lines[1:])])


Change = Callable[[Path, Place], None]


def _write(name: str, make: mutations.Make) -> Change:
    def change(run: Path, place: Place) -> None:
        (run / name).write_bytes(mutations.settle(make(), str(place.outside)))

    return change


def _remove(name: str, run: Path, place: Place) -> None:
    (run / name).unlink()


def _place(name: str, kind: str, run: Path, place: Place) -> None:
    (run / name).unlink()
    if kind == "folder":
        (run / name).mkdir()
    else:
        target = {"pipe": str(place.outside / "pipe"), "device": "/dev/zero"}.get(kind, "nothing")
        (run / name).symlink_to(target)


def _case(
    task: str, label: str, change: Change | None, expect: str = "either", turn: int = 0
) -> Case:
    def build(place: Place) -> list[str]:
        run = place.out / "run"
        shutil.copytree(OLD / task, run)
        if change is not None:
            change(run, place)
        data, image = (DATA / one for one in USED[task])
        if turn % 4 == 3:
            return ["eval", str(run), str(data), "--json"]
        return ["predict", str(run), str(image), "--json"]

    return Case(name=f"run/{task}/{label}", kind=f"run: {task}", build=build, expect=expect)


def _stopped(label: str, change: Change | None, expect: str = "either") -> Case:
    def build(place: Place) -> list[str]:
        run = place.out / "run"
        shutil.copytree(OLD / "stopped", run)
        (place.out / "data").symlink_to(DATA)
        if change is not None:
            change(run, place)
        return ["train", "classify", "data/classify", "--resume", "--out", str(run)]

    slow = expect == "accept"
    return Case(
        name=f"run/stopped/{label}", kind="run: stopped", build=build, expect=expect, slow=slow
    )


def _uses(made: Made) -> dict[str, Callable[[Place], list[str]]]:
    """Runs of now with swapped parts, and links at the names that are written."""
    found: dict[str, Callable[[Place], list[str]]] = {}
    # Not the folder itself: a user may name a link to one.
    for name in ("weights.safetensors", "classes.json", "preprocessing.json", "config.json"):
        found[f"swapped/{name}"] = partial(_swapped, made, name)
    written = ("run/config.json", "run/pictures", "run/events", "run/journal.jsonl",
               "run/journal.jsonl.partial", "run/weights.safetensors", "run/last.ckpt",
               "run/weights.safetensors.partial", "run/config.json.partial")  # fmt: skip
    for name in written:
        found[f"link-of-train/{name}"] = partial(_linked, name, None)
    for name in ("drawn/00000.png", "drawn/results.json", "drawn/00000.png.partial"):
        found[f"link-of-predict/{name}"] = partial(_linked, name, made)
    return found


def _swapped(made: Made, name: str, place: Place) -> list[str]:
    run = place.out / "run"
    shutil.copytree(made.run(), run)
    shutil.copyfile(OLD / "several" / name, run / name)
    return ["predict", str(run), str(DATA / USED["classify"][1]), "--json"]


def _linked(name: str, made: Made | None, place: Place) -> list[str]:
    """A link to a file, or a folder, that nothing may touch, where a result would be written."""
    link = place.out / name
    link.parent.mkdir(exist_ok=True)
    target = place.outside / "victim"
    if "." in link.name and link.name != "last.ckpt":
        target.write_bytes(b"precious")
    else:
        target.mkdir()
        (target / "precious.txt").write_bytes(b"precious")
    link.symlink_to(target)
    if made is not None:
        image = str(DATA / USED["classify"][1])
        return ["predict", str(made.run()), image, "--out", str(place.out / "drawn")]
    out = str(place.out / "run")
    return ["train", "classify", str(DATA / "classify"), *TINY, "--out", out]


def export_cases(made: Made) -> Iterator[Case]:
    """Exported files of now and of earlier versions: bytes, XML and members made hostile."""
    for kind in FORMATS:
        load = partial(_read, made, kind)
        yield _exported(made, kind, "plain", load, "accept")
        for label, make in mutations.byte_mutations(kind, load, flips=30):
            wrong = label.startswith(("cut", "no-", "one-", "zeros", "ones", "noise"))
            yield _exported(made, kind, label, make, "refuse" if wrong else "either")
    for label, make in mutations.random_xml(partial(_read, made, "openvino"), 60):
        yield _exported(made, "openvino", label, make)
    for label in ("laughs", "entity-outside", "deep"):
        yield _exported(made, "openvino", label, partial(_documents, made, label))
    for member, label, data in _members():
        yield _exported(made, "torch", f"{member}/{label}", partial(_repack, made, member, data))
    for name in ("classify.onnx", "detect.pt2"):
        yield _old_file(name, "plain", partial(_unpack, name), "accept")
        for label, make in mutations.byte_mutations(name, partial(_unpack, name), flips=6):
            yield _old_file(name, label, make, "either")


def _read(made: Made, kind: str) -> bytes:
    return made.file(kind).read_bytes()


def _unpack(name: str) -> bytes:
    return gzip.decompress((OLD / f"{name}.gz").read_bytes())


def _documents(made: Made, label: str) -> bytes:
    text = _read(made, "openvino")
    return dict(mutations.document_mutations("a.xml", text))[label]()


def _members() -> Iterator[tuple[str, str, bytes]]:
    """Ending of a member of an archive of torch.export, and what it is replaced by."""
    evil = {**PICKLES, **STATES}
    for ending in ("weights/weight_0", "sample_inputs/model.pt", "constants/tensor_0", "data.pkl"):
        for label in ("system", "nested-system", "deep-lists", "state-flags", "itself"):
            yield ending, label, evil[label]
    texts = {
        "model.json": [*mutations.RAW], "model_weights_config.json": [*mutations.RAW],
        "version": ["deep-lists", "digits-5000"],
    }  # fmt: skip
    for ending, labels in texts.items():
        for label in labels:
            yield ending, label, mutations.RAW[label].encode()
        yield ending, "code", f"__import__('os').system('touch {_CANARY}')".encode()


_CANARY = f"{mutations.OUTSIDE}/{CANARY}"


def _repack(made: Made, ending: str, data: bytes) -> bytes:
    """Replace the members that end so; where there is none, add one."""
    import io

    with zipfile.ZipFile(made.file("torch")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).split("/")[0]
    hit = [name for name in members if name.endswith(ending)] or [f"{root}/data/{ending}"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {**members, **dict.fromkeys(hit, data)}.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _exported(
    made: Made, kind: str, label: str, make: mutations.Make, expect: str = "either"
) -> Case:
    def build(place: Place) -> list[str]:
        path = place.source / f"network{FORMATS[kind]}"
        if kind == "openvino":
            shutil.copyfile(made.file(kind).with_suffix(".bin"), path.with_suffix(".bin"))
        path.write_bytes(mutations.settle(make(), str(place.outside)))
        return ["predict", str(path), str(DATA / USED["classify"][1]), "--json"]

    return Case(name=f"exported/{kind}/{label}", kind=kind, build=build, expect=expect, slow=True)


def _old_file(name: str, label: str, make: mutations.Make, expect: str) -> Case:
    task, suffix = name.split(".")

    def build(place: Place) -> list[str]:
        path = place.source / name
        path.write_bytes(make())
        return ["predict", str(path), str(DATA / USED[task][1]), "--json"]

    kind = {"onnx": "onnx", "pt2": "torch"}[suffix]
    # A graph of torch.export takes seconds to open.
    slow = kind == "torch" and label in ("plain", "tail", "magic-zip")
    return Case(
        name=f"exported/old-{name}/{label}", kind=kind, build=build, expect=expect, slow=slow
    )
