# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: no requests, no console messages, and working interaction."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from muntin.explaining import explain
from muntin.explaining.figures import ExplanationFigure, MissingFigure, PointLayer, save_figure
from muntin.explaining.inputs import open_context, open_model
from muntin.explaining.page import ImageEntry, PageBuilder

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
NASTY = 'roses & <b id="injected">"thorns"</b> </script>'
GRID = (3, 4)
FIRST = "stage 2, block 2 (mask units, pooled queries), mean of 16 heads"
LONG = "<math display='block'><mrow>" + "<mi>alpha</mi><mo>+</mo>" * 40 + "</mrow></math>"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no Chromium: install the package chromium of the system")
    with api.sync_playwright() as drivers:
        opened = drivers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """An open page with its requests and console messages."""

    def __init__(self, browser, path: Path, scheme: str = "light") -> None:
        context = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": 1280, "height": 900}
        )
        self.tab = context.new_page()
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("console", lambda message: self.messages.append(message.text))
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        self.address = path.resolve().as_uri()
        self.tab.goto(self.address)
        self.wait()

    def wait(self) -> None:
        """Wait until every canvas is drawn."""
        self.tab.wait_for_function(
            "[...document.querySelectorAll('canvas')].every(c => c.dataset.drawn)"
        )

    def drawing(self) -> str:
        return self.tab.eval_on_selector("canvas:visible", "canvas => canvas.toDataURL()")

    def colour(self, row: int, column: int) -> tuple[int, ...]:
        """Colour at the centre of a token."""
        with Image.open(io.BytesIO(base64.b64decode(self.drawing().split(",")[1]))) as drawn:
            place = ((column + 0.5) / GRID[1] * drawn.width, (row + 0.5) / GRID[0] * drawn.height)
            return drawn.convert("RGB").getpixel((int(place[0]), int(place[1])))

    def click(self, row: int, column: int) -> None:
        canvas = self.tab.locator("canvas:visible").first
        box = canvas.bounding_box()
        place = {
            "x": box["width"] * (column + 0.5) / GRID[1],
            "y": box["height"] * (row + 0.5) / GRID[0],
        }
        before = canvas.get_attribute("data-drawn")
        canvas.click(position=place)
        self.tab.wait_for_function(
            "n => [...document.querySelectorAll('canvas')].some(c => Number(c.dataset.drawn) > n)",
            arg=int(before),
        )

    def check(self) -> None:
        """No external request, no console message, and every image decodes."""
        foreign = [url for url in self.requests if url != self.address and url[:5] != "data:"]
        assert foreign == []
        assert self.messages == []
        sizes = self.tab.evaluate(
            "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
        )
        assert sizes
        assert min(sizes) > 0


def mirror_layer(title: str, *, even: bool = False) -> PointLayer:
    """Every token attends to its mirror image, or uniformly to all and to a class token."""
    tokens = GRID[0] * GRID[1]
    across = np.arange(tokens, dtype=np.int32)[::-1]
    if not even:
        return PointLayer(
            title=title, grid=GRID, covered=(48.0, 64.0), keys=across[:, None].copy(),
            weights=np.full((tokens, 1), 255, np.uint8), largest=np.ones(tokens, np.float32),
        )  # fmt: skip
    keys = np.tile(np.arange(-1, tokens, dtype=np.int32), (tokens, 1))
    return PointLayer(
        title=title, grid=GRID, covered=(48.0, 64.0), keys=keys,
        weights=np.full(keys.shape, 255, np.uint8),
        largest=np.full(tokens, 1 / (tokens + 1), np.float32), elsewhere="the class token",
    )  # fmt: skip


def result(name: str, *, layers=()) -> ExplanationFigure:
    figure = Figure(figsize=(4, 2))
    figure.subplots().plot([0, 1])
    return ExplanationFigure(
        name=f"attention-{name}", title=f"{name} {NASTY}", text="What is seen.",
        figure=figure, layers=layers, formula=LONG, source="A paper",
        arrays={"x": np.arange(3)}, facts={"nan": float("nan"), "many": np.arange(2)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page with two images, each with a clickable figure, and a missing figure."""
    folder = tmp_path_factory.mktemp("page")
    model = open_model("swin_nano", img_size=(48, 64))
    builder = PageBuilder(folder=folder, name=NASTY, facts={"Model": NASTY}, notes=("fresh",))
    for number in range(2):
        pixels = np.full((48, 64, 3), 200 - 100 * number, np.uint8)
        context = open_context(model, pixels)
        name = f"image{number}"
        entry = ImageEntry(name=name, title=NASTY, size=context.shown_size, at=(2.0, 2.0))
        builder.add_image(entry, context.shown, None)
        layers = (mirror_layer(FIRST), mirror_layer("second", even=True))
        for one in (result("points", layers=layers), result("plain")):
            builder.add(one, save_figure(one, folder / name), entry, always=False)
        missing = MissingFigure(section="cost", title="Cost", reason=f"Not counted: {NASTY}")
        builder.add(missing, None, entry, always=number == 0)
    (folder / "page.html").write_text(builder.render(), encoding="utf-8")
    return folder


class Links(HTMLParser):
    """Links, ids and tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.hrefs += [values["href"]] if "href" in values else []


def test_links_resolve_and_names_are_escaped(folder):
    text = (folder / "page.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert len(links.ids) == len(set(links.ids))
    assert "injected" not in links.ids
    files = [href for href in links.hrefs if not href.startswith(("#", "data:"))]
    assert len(files) == 2 * 2 * 4, "two images, two results, four files"
    for href in files:
        assert (folder / unquote(href)).stat().st_size > 0
    for href in links.hrefs:
        assert not href.startswith("#") or href[1:] in links.ids
    assert not re.search(r"(src|href)=.https?:", text)


def test_page_is_offline_and_every_image_loads(browser, folder):
    visit = Visit(browser, folder / "page.html")
    visit.check()
    assert "roses" in visit.tab.title()
    assert visit.tab.locator("h1").inner_text() == f"{NASTY} explained"
    assert visit.tab.locator(".missing:visible").count() == 1


def test_click_shows_attention_of_token(browser, folder):
    visit = Visit(browser, folder / "page.html")
    bright = visit.colour(2, 3)
    assert bright[0] > 200 > 100 > bright[2], "the first token attends to the last: yellow"
    dimmed = visit.colour(1, 1)
    assert max(dimmed) < 120, "the rest of the image is dimmed"
    before = visit.drawing()
    visit.click(0, 3)
    assert visit.drawing() != before
    assert visit.colour(2, 0) == bright
    assert max(visit.colour(2, 3)) < 120
    caption = visit.tab.locator("output:visible").inner_text()
    assert [int(number) for number in re.findall(r"\d+", caption)][:2] == [1, 4]
    assert "100 %" in caption
    visit.check()


def test_keyboard_selects_layers_and_tokens(browser, folder):
    visit = Visit(browser, folder / "page.html")
    before = visit.drawing()
    select = visit.tab.locator("select:visible")
    assert select.locator("option").all_inner_texts() == [FIRST, "second"]
    select.focus()
    visit.tab.keyboard.press("ArrowDown")
    visit.tab.wait_for_function(
        "before => document.querySelector('canvas').toDataURL() !== before", arg=before
    )
    caption = visit.tab.locator("output:visible").inner_text()
    assert "12" in caption
    assert "7.7 %" in caption
    canvas = visit.tab.locator("canvas:visible")
    canvas.focus()
    for key, token in (("ArrowRight", "0,1"), ("ArrowDown", "1,1"), ("ArrowUp", "0,1")):
        visit.tab.keyboard.press(key)
        visit.tab.wait_for_selector(f'canvas[data-token="{token}"]')
    for _ in range(3):
        visit.tab.keyboard.press("ArrowUp")
    assert canvas.get_attribute("data-token") == "0,1", "it stays inside"
    visit.check()


def test_one_image_is_visible_at_a_time(browser, folder):
    visit = Visit(browser, folder / "page.html")
    assert visit.tab.locator("article:visible").count() == 2
    first = visit.drawing()
    visit.tab.locator(".picker button").nth(1).click()
    assert visit.tab.locator("article:visible").count() == 2
    assert visit.tab.locator("#image0-attention-points").is_hidden()
    assert visit.tab.locator("nav li a:visible").count() == 4
    assert visit.drawing() != first
    visit.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser, folder, scheme):
    visit = Visit(browser, folder / "page.html", scheme)

    def brightness():
        code = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)"
        return sum(map(int, visit.tab.evaluate(code))) / 3

    before = brightness()
    assert (before > 200) == (scheme == "light")
    visit.tab.locator("#theme").click()
    assert (brightness() > 200) != (scheme == "light")
    visit.tab.locator("#theme").click()
    assert brightness() == before
    visit.check()


def test_narrow_screen_has_no_overflow(browser, folder):
    visit = Visit(browser, folder / "page.html")
    for width in (400, 340):
        visit.tab.set_viewport_size({"width": width, "height": 800})
        wide = visit.tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, "nothing sticks out"
        box = visit.tab.locator("select:visible").bounding_box()
        assert box["x"] + box["width"] <= width
    code = (
        "box => [box.clientWidth, box.scrollWidth, "
        "box.querySelector('mrow').getBoundingClientRect().width]"
    )
    inside, scrolled, whole = visit.tab.locator(".formula:visible").first.evaluate(code)
    assert inside < 340
    assert scrolled >= whole > 340, "a long formula is scrolled to its end"


def test_figure_files_are_reproducible(tmp_path):
    torch.manual_seed(0)
    first = save_figure(result("a"), tmp_path / "one")
    again = save_figure(result("a"), tmp_path / "two")
    assert [path.suffix for path in first.files] == [".png", ".svg", ".npz", ".json"]
    for left, right in zip(first.files, again.files, strict=True):
        assert left.suffix == ".npz" or left.read_bytes() == right.read_bytes()
    assert '"nan": null' in first.files[-1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "size"),
    [("swin_nano", (36, 50)), pytest.param("vit_tiny", (40, 64), marks=pytest.mark.slow)],
)
def test_a_whole_page(browser, name, size, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    sections = ("cut", "positions", "attention")
    page = explain(name, pixels, tmp_path, img_size=size, sections=sections)
    visit = Visit(browser, page.path)
    visit.check()
    shown = visit.tab.locator("section").evaluate_all("all => all.map(one => one.id)")
    assert shown == list(sections)
    before = visit.drawing()
    canvas = visit.tab.locator("canvas").first
    box = canvas.bounding_box()
    token = canvas.get_attribute("data-token")
    canvas.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.1})
    visit.tab.wait_for_function(
        "old => document.querySelector('canvas').dataset.token !== old", arg=token
    )
    assert visit.drawing() != before
    layers = visit.tab.locator("select").first.locator("option").count()
    for _ in range(layers - 1):
        drawn = canvas.get_attribute("data-drawn")
        visit.tab.locator("[data-step='1']").first.click()
        visit.tab.wait_for_function(
            "old => document.querySelector('canvas').dataset.drawn !== old", arg=drawn
        )
    visit.check()
