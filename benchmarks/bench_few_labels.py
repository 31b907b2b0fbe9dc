# SPDX-License-Identifier: Apache-2.0
"""What pretraining on unlabelled images is worth, against the same time spent on labels alone.

CIFAR-10 as JPEG. For each objective, all training images without labels are learnt for
``--budget``; then 1, 10 and 100 % of the labels for ``--finetune``. Training from scratch
with the same labels gets both times. Every run is tested once; choices are made on a part
of its labels.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import record

SHARES = (0.01, 0.1, 1.0)


def main() -> None:
    """Measure and write the result."""
    options = record.options(
        __doc__, data=f"{record.DATA}/cifar10_jpeg", budget="2h", finetune="10m", seed=0,
        objectives=("simmim", "views"),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("train", "test"):
            with zipfile.ZipFile(Path(options.data) / f"{part}.zip") as archive:
                archive.extractall(folder)
        for share in SHARES:
            take_labels(folder / "train", folder / f"labels{share:g}", share, options.seed)
        both = f"{seconds(options.budget) + seconds(options.finetune):g}s"
        rows = [score(folder, share, f"scratch{share:g}", "none", both) for share in SHARES]
        for objective in options.objectives:
            words = ("pretrain", "train", "--objective", objective, "--max-time", options.budget)
            record.muntin(*words, "--out", objective, folder=name)
            rows += [
                score(folder, share, f"{objective}{share:g}", objective, options.finetune)
                for share in SHARES
            ]
    content = {
        "what": "CIFAR-10 as JPEG, few labels, with and without pretraining, equal total time",
        "budget": options.budget,
        "finetune": options.finetune,
        "rows": rows,
    }
    record.save("few_labels", content)


def take_labels(source: Path, target: Path, share: float, seed: int) -> None:
    """Copy a share of the images of each class, drawn from a seed."""
    for folder in sorted(filter(Path.is_dir, source.iterdir())):
        images = sorted(folder.iterdir())
        random.Random(seed).shuffle(images)
        (target / folder.name).mkdir(parents=True)
        for image in images[: max(1, round(share * len(images)))]:
            shutil.copy(image, target / folder.name)


def score(folder: Path, share: float, run: str, weights: str, limit: str) -> dict[str, Any]:
    """Train with a share of the labels, and test once."""
    words = ("train", "classify", f"labels{share:g}", "--weights", weights, "--max-time", limit)
    record.muntin(*words, "--out", run, folder=str(folder))
    figures = json.loads(
        record.muntin("eval", run, "test", "--json", keep=True, folder=str(folder))
    )
    return {"labels": share, "start": weights, "time": limit, "top1": figures["top1"]}


def seconds(text: str) -> float:
    """Seconds of a time such as 90s, 15m or 2h."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


if __name__ == "__main__":
    main()
