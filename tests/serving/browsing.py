# SPDX-License-Identifier: Apache-2.0
"""Open the page of a server in a browser; answers may be made up, so that geometry is known."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
GREY = (120, 120, 120)
SIZE = (100, 200)
BOXES = (
    {"xyxy": [20, 10, 100, 60], "name": "cat", "id": 0, "score": 0.9},
    {"xyxy": [120, 30, 180, 90], "name": "dog", "id": 1, "score": 0.6},
    {"xyxy": [10, 70, 50, 95], "name": "cat", "id": 0, "score": 0.2},
)
"""Objects in an image of `SIZE`, (height, width)."""

FILL = """([files, how]) => {
  const transfer = new DataTransfer();
  for (const { name, mimeType, data } of files) {
    const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: mimeType }));
  }
  const options = { bubbles: true, cancelable: true };
  const kind = how === 'paste' ? ClipboardEvent : DragEvent;
  const field = how === 'paste' ? 'clipboardData' : 'dataTransfer';
  document.body.dispatchEvent(new kind(how, { ...options, [field]: transfer }));
}"""
"""Paste or drop files, as the browser tells a page of it."""


def image_file(
    name: str = "one.png", size: tuple[int, int] = (100, 200), kind: str = "PNG", **options: Any
) -> dict[str, Any]:
    """A grey image of `size` (height, width), as Playwright takes files."""
    written = io.BytesIO()
    Image.new("RGB", size[::-1], GREY).save(written, kind, **options)
    return {"name": name, "mimeType": f"image/{kind.lower()}", "buffer": written.getvalue()}


def model_of(kind: str, **values: Any) -> dict[str, Any]:
    """What `GET /models` says of a model."""
    return {
        "name": kind, "task": kind, "kind": kind, "model": "swin", "class_names": ["cat", "dog"],
        "multi_label": False, "encoding": None, "skeleton": None, "threshold": 0.5,
        "threshold_from": "the best F1 in validation", **values,
    }  # fmt: skip


class Visit:
    """An open page, with what it asked for and what it complained about.

    Args:
        browser: Of Playwright.
        base: Address of the server.
        path: Of the page.
        models: Made-up models; those of the server if there are none.
        answer: Makes up the answer to `POST /predict`: (status, value, headers).
        options: Of the browser context.
    """

    def __init__(
        self,
        browser: Any,
        base: str,
        path: str = "/",
        *,
        models: Sequence[Mapping[str, Any]] = (),
        answer: Callable[[Any], tuple[int, Any, dict[str, str]]] | None = None,
        expected: Sequence[str] = (),
        **options: Any,
    ) -> None:
        chosen = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", **options}
        self.context = browser.new_context(accept_downloads=True, **chosen)
        self.context.set_default_timeout(20_000)
        self.tab = self.context.new_page()
        self.base, self.expected = base, tuple(expected)
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("console", lambda message: self.messages.append(message.text))
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        if models:
            self.tab.route("**/models", lambda route: route.fulfill(json=list(models)))
        if answer:
            self.tab.route("**/predict?*", lambda route: fulfil(route, *answer(route.request)))
        self.tab.goto(base + path)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.check()
        self.context.close()

    def check(self) -> None:
        """Nothing was asked of another host, and the console is empty but for what is expected."""
        own = (self.base, "blob:", "data:", "about:")
        assert [url for url in self.requests if not url.startswith(own)] == []
        odd = [text for text in self.messages if not any(one in text for one in self.expected)]
        assert not odd, odd

    @property
    def predictions(self) -> int:
        """Number of requests for a prediction so far."""
        return sum("/predict?" in url for url in self.requests)

    def give(self, *files: Mapping[str, Any], done: int | None = None) -> None:
        """Choose files, and wait for `done` answers in all (as many as files)."""
        self.tab.set_input_files("#files", list(files))
        self.wait(len(files) if done is None else done)

    def send(self, how: str, *files: Mapping[str, Any]) -> None:
        """Paste or drop files."""
        rows = [
            {**file, "data": base64.b64encode(file["buffer"]).decode(), "buffer": None}
            for file in files
        ]
        self.tab.evaluate(FILL, [rows, how])

    def wait(self, done: int) -> None:
        """Wait until images have answers, and the picture is drawn."""
        # The policy of the page forbids what Playwright waits for functions by.
        ready = self.tab.locator("#strip li[data-state=done]")
        ready.nth(done - 1).wait_for(state="attached")
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.tab.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def pixels(self, size: tuple[int, int]) -> Callable[..., tuple[int, ...]]:
        """A function that gives the colour at (x, y) of an image of `size` (height, width).

        Of the pixels at most `reach` away, the one that is nearest to `wanted`.
        """
        self.settle()
        edges = self.tab.evaluate(
            "(() => { const a = document.querySelector('#frame').getBoundingClientRect();"
            " const b = document.querySelector('#frame img').getBoundingClientRect();"
            " return [b.left - a.left, b.top - a.top, b.width, b.height]; })()"
        )
        shot = self.tab.locator("#frame").screenshot(animations="disabled")
        with Image.open(io.BytesIO(shot)) as opened:
            values = np.asarray(opened.convert("RGB"))

        def at(
            x: float, y: float, wanted: Sequence[int] = (0, 0, 0), reach: int = 0
        ) -> tuple[int, ...]:
            column = int(edges[0] + x * edges[2] / size[1])
            row = int(edges[1] + y * edges[3] / size[0])
            around = values[
                max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
            ].reshape(-1, 3)
            best = np.abs(around.astype(int) - np.array(wanted)).max(1).argmin()
            return tuple(int(value) for value in around[best])

        return at

    def set_range(self, name: str, value: float) -> None:
        """Move a slider."""
        self.tab.locator(f"#{name}").fill(str(value))
        self.settle()

    def rows(self) -> list[str]:
        """Lines of the list beside the image."""
        return [text.replace("\n", " ") for text in self.tab.locator("#list li").all_inner_texts()]

    def text(self, part: str) -> str:
        """Visible text of a part of the page."""
        return self.tab.locator(part).inner_text()

    def saved(self, kind: str) -> bytes:
        """Press a button of the downloads, and read what is saved."""
        with self.tab.expect_download() as waiting:
            self.tab.click(f"#downloads [data-file={kind}]")
        with open(waiting.value.path(), "rb") as opened:
            return opened.read()


def fulfil(route: Any, status: int, value: Any, headers: dict[str, str]) -> None:
    """Answer a request by a value; by nothing at all for the status 0."""
    if status == 0:
        route.abort()
        return
    text = value if isinstance(value, str) else json.dumps(value)
    kind = {"Content-Type": "application/json"}
    route.fulfill(status=status, body=text, headers={**kind, **headers})


def result_of(kind: str, rows: Sequence[Any], size: tuple[int, int], **values: Any) -> Any:
    """An answer of `POST /predict` for every request."""
    document = [{"path": "one.png", "size": list(size), kind: list(rows), **values}]
    return lambda _: (200, document, {})
