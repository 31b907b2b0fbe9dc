# SPDX-License-Identifier: Apache-2.0
"""Real, clean data sets have no fault."""

from __future__ import annotations

import pytest

from tests.diagnosing.test_data_faults import diagnose

SETS = [
    ("detect", "bccd"), ("detect", "nuclei"), ("instance", "nuclei"), ("semantic", "nuclei"),
    ("semantic", "dubai_aerial"), ("pose", "mirror_mouse_pose"), ("pose", "coco_mini"),
    ("detect", "coco_mini"), ("instance", "coco_mini"), ("classify", "cifar10_jpeg/train.zip"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), SETS)
def test_no_false_alarm(task, name, data_root):
    assert diagnose(task, data_root / name) == []
