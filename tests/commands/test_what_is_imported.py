# SPDX-License-Identifier: Apache-2.0
"""What takes seconds to import is imported by commands that need it, and by no other."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.exporting.runs import write_run
from tests.small import write_images

SCRIPT = """
import json, sys
from muntin.commands import main
slow = {"torchvision", "torch._dynamo", "sympy", "matplotlib", "lightning_fabric", "onnx", "timm"}
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, arguments
    loaded = slow & set(sys.modules) - ({"matplotlib"} if arguments[0] == "eval" else set())
    assert not loaded, (arguments, loaded)
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
    text = json.dumps(calls, default=str)
    subprocess.run([sys.executable, "-c", SCRIPT, text], check=True, timeout=600, cwd=tmp_path)
