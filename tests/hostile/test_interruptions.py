# SPDX-License-Identifier: Apache-2.0
"""However a training ends, it goes on with the same bits, and never beside another one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.hostile.test_hostile import ROOT, environment_of_package


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("part", "least"), [("kill", 30), ("signals", 8), ("full", 6), ("two", 6), ("clock", 4)]
)
def test_same_bits(part, least):
    command = [sys.executable, "-m", "tests.hostile.interruptions", part]
    done = subprocess.run(
        command, cwd=ROOT, env=environment_of_package(), capture_output=True, text=True, check=True
    )
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) >= least
    assert not [trial for trial in trials if trial[1]]
