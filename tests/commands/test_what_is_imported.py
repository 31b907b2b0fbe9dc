# SPDX-License-Identifier: Apache-2.0
"""What takes seconds to import is imported by commands that need it, and by no other."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.exporting.runs import write_run
from tests.small import write_images

SLOW = {"torchvision", "torch._dynamo", "sympy", "matplotlib", "lightning_fabric", "onnx", "timm"}
SCRIPT = """
import json, sys
from muntin.commands import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        print(json.dumps([end.code, *sys.modules]), file=sys.stderr)
"""


def test_check_predict_and_eval_import_little(tmp_path):
    data = write_images(tmp_path / "trees", classes=("ash", "birch", "cedar"), each=1)
    image = next(data.rglob("*.*"))
    classifier = write_run(tmp_path / "classifier", "classify").path
    detector = write_run(tmp_path / "detector", "mask_rcnn_small").path
    calls = [
        ["check", "classify", data],
        ["predict", classifier, data],
        ["predict", detector, image],
        ["eval", classifier, data],  # draws plots
    ]
    command = [sys.executable, "-c", SCRIPT, json.dumps(calls, default=str)]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, check=True, timeout=600, cwd=tmp_path
    )
    ends = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert [code for code, *_ in ends] == [0] * len(calls), done.stderr
    loaded = [SLOW & set(modules) for _, *modules in ends]
    assert not any(loaded[:3]), loaded
    assert loaded[3] <= {"matplotlib"}, loaded
