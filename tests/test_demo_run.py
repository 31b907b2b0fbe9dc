# SPDX-License-Identifier: Apache-2.0
"""Every demo goes to its end and names an image to go on with; on less data, for seconds."""

from __future__ import annotations

import pytest

from muntin.demo_run import demo
from muntin.errors import RunError
from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps
from muntin.tasks.task_table import TASKS


def _few_classes(folder):
    return write_classify(folder, num_train_per_class=3, num_val_per_class=2, size=(32, 32))


def _few_scenes(folder):
    return write_coco(folder, num_train=4, num_val=2, size=(64, 64))


def _few_maps(folder):
    return write_maps(folder, num_train=4, num_val=2, size=(64, 64))


def _few_frames(folder):
    return write_frames(folder, num_train=4, num_val=2, size=(64, 64))


SMALL = {
    "classify": _few_classes,
    "detect": _few_scenes,
    "instance": _few_scenes,
    "semantic": _few_maps,
    "pose": _few_frames,
}


FIGURES = {
    "classify": ("top1", "macro_f1"),
    "detect": ("box_ap",),
    "instance": ("box_ap", "mask_ap"),
    "semantic": ("miou",),
    "pose": ("pck",),
}


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(
            # That of one task stands for all: what differs is what `train` and `predict` show.
            task,
            marks=() if task == "classify" else pytest.mark.slow,
        )
        for task in TASKS
    ],
)
def test_demo(tmp_path, capsys, task):
    out = tmp_path / "demo"
    run = demo(task, out=out, write_data=SMALL[task], max_time_s=0.1)
    stdout = capsys.readouterr().out
    for name in FIGURES[task]:
        assert name in stdout
    image = stdout.partition(f"muntin predict {out / 'run'} ")[2].split()[0]
    assert "val" in image
    assert (tmp_path / image).is_file()
    assert (run.path / "pictures" / "predictions.png").is_file()
    with pytest.raises(RunError, match="demo"):
        demo(task, out=out)
