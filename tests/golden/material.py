# SPDX-License-Identifier: Apache-2.0
"""Weights and images that are the same on every machine.

Nothing here draws from torch: its normal numbers differ in the last bit between CPUs, and fresh
weights hang on the order in which layers are built. Raw bits of PCG64, seeded by a name, do not.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
OLD = HERE / "old"

Layout = Mapping[str, Sequence[int]]
"""Name of each tensor of a state dict, to its shape."""


def uniform(name: str, shape: Sequence[int]) -> Tensor:
    """Numbers in [-1, 1), float32, that hang on the name and the shape alone."""
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(max(count, 1))[:count]
    whole = (raw >> np.uint64(40)).astype(np.float32)  # 24 bits: exact in float32
    return torch.from_numpy(whole / np.float32(2**23) - np.float32(1)).reshape(tuple(shape))


def fill_one(name: str, shape: Sequence[int]) -> Tensor:
    """The value of one tensor of a state dict: of the size that layers usually have."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    values = uniform(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.5 * values
    if len(shape) <= 1:
        return 0.1 * values + (1.0 if name.endswith(("weight", "gamma")) else 0.0)
    fan_in = int(np.prod(shape[1:], dtype=np.int64))
    return values * float(np.float32(np.sqrt(3 / fan_in)))


def fill_layout(layout: Layout) -> dict[str, Tensor]:
    """A state dict of these names and shapes."""
    return {name: fill_one(name, layout[name]) for name in sorted(layout)}


def layout_of(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Names and shapes of a state dict, sorted."""
    return {name: list(state[name].shape) for name in sorted(state)}


def fill(model: nn.Module) -> nn.Module:
    """Give a network weights that do not hang on how it was built; in evaluation mode."""
    state = model.state_dict()
    floats = {name: one for name, one in state.items() if one.is_floating_point()}
    model.load_state_dict({**state, **fill_layout(layout_of(floats))})
    return model.eval()


def write_filled(path: Path, layout: Layout) -> Path:
    """Write a file of weights as the package itself writes them."""
    safetensors.torch.save_file(fill_layout(layout), path, {"dialect": "muntin"})
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights."""
    return safetensors.torch.load_file(path)


def same_parts(layouts: Mapping[str, Layout]) -> dict[str, Any]:
    """Layouts in two parts, backbone and head; a part that came before is named by its case."""
    rows: dict[str, Any] = {}
    for case, layout in layouts.items():
        for part in ("backbone", "head"):
            own = {name: shape for name, shape in layout.items() if name.startswith(part)}
            rows[f"{case}/{part}"] = next((key for key, one in rows.items() if one == own), own)
    return rows


def join_parts(rows: Mapping[str, Any], case: str) -> dict[str, list[int]]:
    """The layout of a case, from what `same_parts` gave."""
    found = [rows[f"{case}/{part}"] for part in ("backbone", "head")]
    return {k: v for one in found for k, v in (rows[one] if isinstance(one, str) else one).items()}


def images(height: int, width: int, count: int = 2) -> Tensor:
    """Normalised images (B, 3, H, W) as networks take them."""
    return uniform(f"images {height} {width}", (count, 3, height, width)) * 1.5


def write_data(folder: Path = DATA) -> None:
    """Write the tiny data sets on which everything is trained and scored; PNG throughout.

    Their validation images are the first of their training images, so that tiny networks, which
    learn by heart, have figures above zero.
    """
    # The only internal names here; nothing but the writing of the stored images needs them.
    from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps

    classify = folder / "classify"
    write_classify(
        classify, num_train_per_class=1, num_val_per_class=0, size=(32, 32), usual_colours=1.0
    )
    shutil.copytree(classify / "train", classify / "val")
    for write, name in ((write_coco, "scenes"), (write_maps, "maps"), (write_frames, "frames")):
        more: dict[str, Any] = {"size": (48, 48), "usual_colours": 1.0, "max_angle": 0.3}
        more |= {} if name == "frames" else {"max_objects": 2}
        with tempfile.TemporaryDirectory() as other:
            write(folder / name, num_train=4, num_val=1, **more)
            few = write(Path(other), num_train=2, num_val=1, **more)
            for part in [one for one in (folder / name).rglob("val") if one.is_dir()]:
                shutil.rmtree(part)
                shutil.copytree(few / part.relative_to(folder / name).parent / "train", part)
            if name == "scenes":
                notes = few / "annotations" / "instances_train.json"
                shutil.copy(notes, folder / name / "annotations" / "instances_val.json")
    _only_png(folder)
    with (classify / "several.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "class", "split"])
        for path in sorted(classify.rglob("*.png")):
            name, part_name = path.parent.name, path.parent.parent.name
            also = ";round" if name in ("disc", "ring") else ""
            rows.writerow([path.relative_to(classify).as_posix(), name + also, part_name])


def _only_png(folder: Path) -> None:
    """Decoders of JPEG may differ in a bit; PNG is exact everywhere, and of few colours small."""
    for path in [one for one in sorted(folder.rglob("*.[jp][pn]g")) if "masks" not in one.parts]:
        few_colours = Image.fromarray(np.asarray(Image.open(path)) & 0xC0 | 0x20)
        path.unlink()
        few_colours.save(path.with_suffix(".png"), optimize=True)
    for path in [*folder.rglob("*.json"), *folder.rglob("CollectedData.csv")]:
        path.write_text(path.read_text().replace(".jpg", ".png"))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, so that what is recorded names its data by relative paths."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
