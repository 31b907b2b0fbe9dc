# SPDX-License-Identifier: Apache-2.0
"""``muntin doctor RUN``: exit codes, JSON and files."""

from __future__ import annotations

import json
import shutil

from tests.small import train_small, write_images


def test_doctor_of_a_run_that_guesses_and_of_a_good_one(tmp_path, muntin):
    trees = write_images(tmp_path / "trees", each=8)
    run = train_small(trees, tmp_path / "run", epochs=1)
    guessed = {"epoch": 1, "figures": {"top1": 0.5, "balanced_accuracy": 1 / 3}}
    (run.path / "results.json").write_text(json.dumps(guessed))
    code, out, _ = muntin("doctor", run.path, "--data", tmp_path / "gone", "--json")
    found = json.loads(out)
    assert (code, [one["code"] for one in found["findings"]]) == (1, ["too-short"])
    assert "--data" in found["notes"][0]
    good = {"epoch": 1, "figures": {"top1": 0.9, "balanced_accuracy": 0.9}}
    (run.path / "results.json").write_text(json.dumps(good))
    shutil.copytree(trees / "ash", trees / "birch", dirs_exist_ok=True)
    code, out, _ = muntin("doctor", run.path, "--out", tmp_path / "out")
    assert (code, "conflicting-labels: train" in out) == (0, True), "warnings alone"
    assert (tmp_path / "out" / "suspects.csv").is_file()
    assert muntin("doctor", "--data", trees)[0] == 2
