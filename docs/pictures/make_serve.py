# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of the page of `muntin serve`, from generated scenes.

``PYTHONPATH=. python docs/pictures/make_serve.py`` in the root of the repository; it needs
playwright and Chromium. The answers are the annotations of the scenes, with scores made up: the
pictures show the page, not how well a model does.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright

from muntin.run_lengths import encode_mask
from muntin.synthetic.scenes import CLASS_NAMES, Scene, make_scene
from tests.serving.browsing import CHROMIUM, Visit, model_of
from tests.serving.live import RUNS, start

HERE = Path(__file__).resolve().parent
SIZE = (480, 640)
VIEWS: dict[str, dict[str, Any]] = {
    "serve_page": {"viewport": {"width": 1280, "height": 800}},
    "serve_phone": {"viewport": {"width": 400, "height": 860}, "color_scheme": "dark"},
}


def describe(name: str, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """Write the objects of a scene as a server answers, the best first."""
    scores = np.sort(rng.uniform(0.55, 0.99, len(scene.objects)))[::-1].tolist()
    boxes = [
        {
            "xyxy": [*map(float, one.box_xyxy)],
            "name": CLASS_NAMES[one.class_id],
            "id": one.class_id,
            "score": score,
            "mask": encode_mask(one.mask),
        }
        for one, score in zip(reversed(scene.objects), scores, strict=True)
    ]
    return {"path": name, "size": [*SIZE], "boxes": boxes}


def write_png(pixels: np.ndarray) -> bytes:
    """Encode an image, without its noise, which would make pictures large."""
    written = io.BytesIO()
    Image.fromarray(pixels).filter(ImageFilter.MedianFilter(7)).save(written, "PNG")
    return written.getvalue()


def main() -> None:
    """Open the page, give it scenes, and write what is seen."""
    rng = np.random.default_rng(0)
    scenes = {
        f"scene-{number}.png": make_scene(7, number, size=SIZE, max_objects=8)
        for number in (2, 1, 4, 5, 3, 0)
    }  # fmt: skip
    answers = {name: describe(name, scene, rng) for name, scene in scenes.items()}
    files = [
        {"name": name, "mimeType": "image/png", "buffer": write_png(scene.image)}
        for name, scene in scenes.items()
    ]
    model = model_of("detection", task="instance", name="shapes", model="swin_tiny")
    model["class_names"] = [*CLASS_NAMES]

    def answer(request: Any) -> tuple[int, Any, dict[str, str]]:  # noqa: ANN401 (of Playwright)
        name = parse_qs(urlparse(request.url).query)["name"][0]
        return 200, [answers[name]], {}

    with start(RUNS / "instance") as live, sync_playwright() as drivers:
        browser = drivers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        base = f"http://127.0.0.1:{live.port}"
        for name, view in VIEWS.items():
            with Visit(browser, base, models=[model], answer=answer, **view) as visit:
                visit.give(*files)
                with Image.open(io.BytesIO(visit.tab.screenshot())) as seen:
                    small = seen.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT)
                    small.save(HERE / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
