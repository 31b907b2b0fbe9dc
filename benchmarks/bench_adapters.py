# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters against full fine-tuning: peak memory of steps, and score on two data sets.

Memory is the peak of a process of its own above what it holds before the first step, for
published sizes, with optimizer and averaged weights as the recipe `finetune` has them. For the
score, a run on one part of a set is fine-tuned on another part: CIFAR-10 (five classes, then the
other five) and aerial images (three tiles, then three others); ``--minutes 0`` measures memory
alone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import record
import torch
from bench_semantic import COLORS
from torch.optim.swa_utils import AveragedModel

WAYS = {
    "full": (),
    "lora": ("--adapt", "lora"),
    "lora, first stages frozen": ("--adapt", "lora", "--freeze", "2"),
}


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, data=str(record.DATA), batch=4, minutes=3.0)
    memory = [
        {"model": model, "way": way, "mib": peak(model, way, options.batch)}
        for model in ("swin_tiny", "vit_base_patch16_224")
        for way in WAYS
    ]
    scores: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        if options.minutes:
            data, limit = Path(options.data), f"{60 * options.minutes:g}s"
            scores += cifar(data, subfolder(name, "cifar"), limit)
            scores += dubai(data, subfolder(name, "dubai"), limit)
    content = {
        "what": "memory of training steps at batch "
        f"{options.batch}, 224 pixels; score after {options.minutes:g} minutes",
        "memory": memory,
        "scores": scores,
    }
    record.save("adapters", content, libraries=())


def subfolder(folder: str, name: str) -> Path:
    """A new folder for one data set."""
    (place := Path(folder) / name).mkdir()
    return place


def peak(model: str, way: str, batch: int) -> float:
    """Peak of a process in MiB above the network before training."""
    return record.alone(_peak, model, way, batch)


def _peak(model: str, way: str, batch: int) -> float:
    import resource

    import muntin
    from muntin.recipes import FINETUNE
    from muntin.training.low_rank import adapt_layers, suit_adapters
    from muntin.training.optimization import build_optimizers, freeze_stages

    network = muntin.create_model(model, num_classes=10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    freeze_stages(network, 2 if "frozen" in way else 0)
    config = FINETUNE.train if way == "full" else suit_adapters(FINETUNE.train)
    if way != "full":
        adapt_layers(network, config.lora_rank, config.lora_alpha)
    optimizers = build_optimizers(network, config)
    averaged = AveragedModel(network) if config.ema_decay else None
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(10, (batch,))
    for _ in range(3):
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if averaged is not None:
            averaged.update_parameters(network)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def cifar(data: Path, folder: Path, limit: str) -> list[dict[str, Any]]:
    """A run on the first five classes, fine-tuned on the other five; test images of those."""
    for part in ("train", "test"):
        with zipfile.ZipFile(data / "cifar10_jpeg" / f"{part}.zip") as archive:
            archive.extractall(folder)
        for number, place in enumerate(sorted(filter(Path.is_dir, (folder / part).iterdir()))):
            shutil.move(place, folder / f"{part}{number // 5}" / place.name)
    return compare("classify", ("train0", "train1", "test1"), "top1", folder, limit)


def dubai(data: Path, folder: Path, limit: str) -> list[dict[str, Any]]:
    """A run on tiles 1 to 3, fine-tuned on tiles 4 to 6; tested on 7 and 8."""
    parts = {"early": (1, 2, 3), "late": (4, 5, 6), "test": (7, 8)}
    for part, tiles in parts.items():
        (folder / part).mkdir()
        (folder / part / "classes.json").write_text(json.dumps(COLORS), encoding="utf-8")
        for tile in tiles:
            source = (data / "dubai_aerial" / f"Tile {tile}").resolve()
            (folder / part / source.name).symlink_to(source, target_is_directory=True)
    return compare("semantic", tuple(parts), "miou", folder, limit)


def compare(
    task: str, parts: tuple[str, str, str], goal: str, folder: Path, limit: str
) -> list[dict[str, Any]]:
    """Train on the first part from scratch, then on the second in each way; test on the third."""
    first, second, test = parts
    common = ("--max-time", limit)
    record.muntin("train", task, first, "--weights", "none", *common, "--out", f"{task}-start",
                  folder=str(folder))  # fmt: skip
    rows = []
    for number, (way, words) in enumerate(WAYS.items()):
        run = f"{task}-{number}"
        record.muntin("train", task, second, "--weights", f"{task}-start", *common, *words,
                      "--out", run, folder=str(folder))  # fmt: skip
        output = record.muntin("eval", run, test, "--json", keep=True, folder=str(folder))
        rows.append({"task": task, "way": way, "time": limit, goal: json.loads(output)[goal]})
    return rows


if __name__ == "__main__":
    main()
