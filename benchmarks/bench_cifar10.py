# SPDX-License-Identifier: Apache-2.0
"""From scratch on 50,000 small images in a quarter of an hour, as a user would do it.

Unpacks the images, runs ``muntin train classify train --max-time 15m`` with nothing else named,
then ``muntin eval`` once on the test images and ``muntin predict`` on files from disk.
The wall time of the training command is everything: start-up, reading, training, choosing the
best epoch on a part of the training images.
"""

from __future__ import annotations

import json
import tempfile
import time
import zipfile
from pathlib import Path

import record


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, data=f"{record.DATA}/cifar10_jpeg", max_time="15m", out="")
    zips = [Path(options.data) / f"{part}.zip" for part in ("train", "test")]
    if not all(path.is_file() for path in zips):
        message = f"{options.data} must hold train.zip and test.zip; pass --data."
        raise SystemExit(message)
    with tempfile.TemporaryDirectory() as folder:
        for path in zips:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        run = Path(options.out).resolve() if options.out else Path(folder) / "run"
        begun = time.monotonic()
        words = ("train", "classify", "train", "--max-time", options.max_time, "--out", run)
        record.muntin(*words, folder=folder)
        seconds = time.monotonic() - begun
        figures = json.loads(record.muntin("eval", run, "test", "--json", keep=True, folder=folder))
        image = next(Path(folder, "test").rglob("*.jpg"))
        output = record.muntin("predict", run, image, "--json", keep=True, folder=folder)
        predictions = json.loads(output)
        journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
        config = json.loads((run / "config.json").read_text())
    content = {
        "what": "CIFAR-10 as JPEG: 50,000 training images, tested once on 10,000",
        "muntin_command": f"muntin train classify train --max-time {options.max_time}",
        "wall_seconds": round(seconds, 1),
        "test": {name: figures[name] for name in ("top1", "top5", "macro_f1", "num_images")},
        "validation_top1": max(line.get("val_top1", 0.0) for line in journal),
        "epochs": len(journal),
        "images_per_s": [line["images_per_s"] for line in journal],
        "predicts_from_disk": bool(predictions[0]["classes"]),
        "config": {**config, "data": "train"},
    }
    record.save("cifar10", content)


if __name__ == "__main__":
    main()
