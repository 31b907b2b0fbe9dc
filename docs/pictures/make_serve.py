# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of the page of `muntin serve`, from generated scenes.

``PYTHONPATH=. python docs/pictures/make_serve.py demo-instance`` after ``muntin demo instance``, in
the root of the repository; it needs playwright and Chromium.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.serving.browsing import CHROMIUM, Visit
from tests.serving.live import start

HERE = Path(__file__).resolve().parent
VIEWS = {
    "serve_page": {"viewport": {"width": 1280, "height": 800}},
    "serve_phone": {"viewport": {"width": 400, "height": 860}, "color_scheme": "dark"},
}
NUM_IMAGES = 6


def main(demo: Path) -> None:
    """Open the page with the run of a demo, give it images, and write what is seen."""
    images = sorted((demo / "data" / "val").glob("*.png"))[:NUM_IMAGES]
    files = [
        {"name": path.name, "mimeType": "image/png", "buffer": path.read_bytes()}
        for path in images
    ]  # fmt: skip
    with start(f"shapes={demo / 'run'}") as live, sync_playwright() as drivers:
        browser = drivers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, view in VIEWS.items():
            with Visit(browser, f"http://127.0.0.1:{live.port}", **view) as visit:
                visit.give(*files)
                written = io.BytesIO(visit.tab.screenshot())
                with Image.open(written) as seen:
                    small = seen.convert("RGB").quantize(200, method=Image.Quantize.MAXCOVERAGE)
                    small.save(HERE / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
