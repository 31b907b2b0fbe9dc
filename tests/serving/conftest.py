# SPDX-License-Identifier: Apache-2.0
"""Servers of small runs, in processes of their own."""

from __future__ import annotations

import pytest

from tests.serving.live import DATA, RUNS, Live, start

KINDS = ("classify", "detect", "instance", "semantic", "keypoint_rcnn")


@pytest.fixture(scope="session")
def served() -> Live:
    """One server with a small run of each kind, shared by tests that leave it as it is."""
    with start(*(RUNS / kind for kind in KINDS), "--files", DATA) as live:
        yield live
