# SPDX-License-Identifier: Apache-2.0
"""Servers of small runs, in processes of their own."""

from __future__ import annotations

import pytest

from tests.serving.browsing import BOXES, CHROMIUM, SIZE, Visit, model_of, result_of
from tests.serving.live import DATA, RUNS, Live, start

KINDS = ("classify", "detect", "instance", "semantic", "keypoint_rcnn")


@pytest.fixture(scope="session")
def served() -> Live:
    """One server with a small run of each kind, shared by tests that leave it as it is."""
    with start(*(RUNS / kind for kind in KINDS), "--files", DATA) as live:
        yield live


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of a file: while it is open, no other event loop can run."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no Chromium: install the package chromium of the system")
    with api.sync_playwright() as drivers:
        opened = drivers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, served):
    """Open the page of the server, with made-up models and answers where they are given."""
    return lambda path="/", **options: Visit(
        browser, f"http://127.0.0.1:{served.port}", path, **options
    )


@pytest.fixture
def open_boxes(open_page):
    """Open the page with a made-up detector that finds `BOXES` in every image."""

    def visit(path="/", **options):
        answer = options.pop("answer", result_of("boxes", BOXES, SIZE))
        return open_page(path, models=[model_of("detection")], answer=answer, **options)

    return visit
