# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: drawing, threshold, keyboard, errors, languages; nothing from outside."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from muntin.drawing.style import colour_of
from muntin.run_lengths import encode_mask
from tests.serving.browsing import GREY, image_file, model_of, result_of

SIZE = (100, 200)
NAMES = ["cat", "dog"]
BOXES = [
    {"xyxy": [20, 10, 100, 60], "name": "cat", "id": 0, "score": 0.9},
    {"xyxy": [120, 30, 180, 90], "name": "dog", "id": 1, "score": 0.6},
    {"xyxy": [10, 70, 50, 95], "name": "cat", "id": 0, "score": 0.2},
]
HOSTILE = '"><img src=x onerror="document.title=1">&lt;.png'


@pytest.fixture
def open_boxes(open_page):
    def visit(path="/", **options):
        answer = options.pop("answer", result_of("boxes", BOXES, SIZE))
        return open_page(path, models=[model_of("detection")], answer=answer, **options)

    return visit


def near(colour, other, tolerance=2):
    return all(abs(one - two) <= tolerance for one, two in zip(colour, other, strict=True))


def on_line(at, x, y, colour):
    """Whether a line of a colour is seen at a place, which may be between two pixels."""
    return near(at(x, y, colour, 2), colour, 3)


def mix(colour, share):
    return [round(share * part + (1 - share) * 120) for part in colour]


def test_boxes_and_threshold(open_boxes):
    with open_boxes() as visit:
        visit.give(image_file())
        at = visit.pixels(SIZE)
        assert on_line(at, 20, 35, colour_of(0))
        assert on_line(at, 100, 35, colour_of(0))
        assert on_line(at, 150, 90, colour_of(1))
        assert near(at(60, 35), GREY), "the inside is left as it is"
        assert near(at(30, 95), GREY), "below the threshold of the model"
        assert visit.rows() == ["cat 0.90", "dog 0.60"]
        visit.set_range("threshold", 0.1)
        assert on_line(visit.pixels(SIZE), 30, 95, colour_of(0))
        assert len(visit.rows()) == 3
        visit.set_range("threshold", 0.7)
        assert not on_line(visit.pixels(SIZE), 150, 90, colour_of(1))
        assert visit.rows() == ["cat 0.90"]
        assert "1" in visit.text("#summary")
        assert visit.predictions == 1, "the threshold asks nothing of the server"


def test_masks_of_instances(open_page):
    rows, columns = np.indices(SIZE)
    masks = [
        (rows - 50) ** 2 + (columns - 60) ** 2 < 30**2,
        (rows > 20) & (rows < 80) & (columns > 110) & (columns < 170),
    ]
    boxes = [
        {
            "xyxy": [30, 20, 90, 80], "name": "cat", "id": 0, "score": 0.9 - 0.1 * number,
            "mask": encode_mask(mask),
        }
        for number, mask in enumerate(masks)
    ]  # fmt: skip
    answer = result_of("boxes", boxes, SIZE)
    with open_page(models=[model_of("detection")], answer=answer) as visit:
        visit.give(image_file())
        at = visit.pixels(SIZE)
        assert near(at(60, 50), mix(colour_of(0), 0.4))
        assert near(at(140, 50), mix(colour_of(1), 0.4)), "one class, but a colour an instance"
        assert near(at(190, 10), GREY)
        assert on_line(at, 170, 60, colour_of(1)), "an outline"
        visit.set_range("opacity", 1)
        assert near(visit.pixels(SIZE)(60, 50), colour_of(0))


def test_masks_are_read_and_traced_as_they_are(open_boxes):
    draw = np.random.default_rng(0)
    masks = [draw.random((7, 9)) < share for share in (0, 0.05, 0.3, 0.5, 0.9, 1)]
    masks += [draw.random((1, 5)) < 0.5, draw.random((6, 1)) < 0.5]
    smooth = np.add.outer(np.sin(np.arange(300) / 9), np.cos(np.arange(200) / 7)) > 0.3
    code = """async (all) => {
      const { decodeMask, covers, areaOf, traceMask, shrinkMask } = await import('/page/masks.js');
      const bits = (mask) => Array.from({ length: mask.height }, (_, y) =>
        Array.from({ length: mask.width }, (_, x) => covers(mask, x, y)));
      return all.map((each) => {
        const mask = decodeMask(each);
        const lines = [];
        let start;
        const moveTo = (...place) => { start = place; };
        traceMask(mask, { moveTo, lineTo: (...end) => lines.push([...start, ...end]) });
        return { bits: bits(mask), area: areaOf(mask), lines, small: bits(shrinkMask(mask, 3)) };
      });
    }"""
    with open_boxes() as visit:
        masks.append(smooth)
        found = visit.tab.evaluate(code, [encode_mask(mask) for mask in masks])
        for mask, read in zip(masks, found, strict=True):
            assert np.array_equal(np.array(read["bits"], bool).reshape(mask.shape), mask)
            assert read["area"] == mask.sum()
            if min(mask.shape) > 2:
                assert np.array_equal(np.array(read["small"], bool), mask[1::3, 1::3])
            assert drawn_edges(read["lines"]) == edges_of(mask)


def drawn_edges(lines):
    """Unit steps of lines: (x, y) where each begins, and its direction."""
    steps = []
    for left, top, right, bottom in lines:
        steps += [(x, top, "x") for x in range(left, right)]
        steps += [(left, y, "y") for y in range(top, bottom)]
    assert len(steps) == len(set(steps)), "no edge is drawn twice"
    return set(steps)


def edges_of(mask):
    """The same of a mask, pixel by pixel."""
    padded = np.pad(mask, 1)
    upright = {(x, y, "y") for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]).tolist()}
    level = {(x, y, "x") for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]).tolist()}
    return upright | level


@pytest.mark.parametrize("coded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_semantic_map(open_page, coded):
    labels = np.zeros(SIZE, int)
    labels[:, 150:] = 1
    rows = [
        {
            "name": name,
            "id": k,
            "share": float((labels == k).mean()),
            "mask": encode_mask(labels == k),
        }
        for k, name in enumerate(NAMES)
    ]
    encoding = {"kind": "color", "values": [0x3C1098, 0xFEDD3A], "ignored": []} if coded else None
    model = model_of("segmentation", encoding=encoding, threshold=0.0)
    answer = result_of("semantic", rows, SIZE)
    with open_page(models=[model], answer=answer) as visit:
        visit.give(image_file())
        at = visit.pixels(SIZE)
        expected = [(0x3C, 0x10, 0x98), (0xFE, 0xDD, 0x3A)] if coded else map(colour_of, (0, 1))
        first, second = expected
        assert near(at(40, 50), mix(first, 0.6))
        assert near(at(149.5, 50), mix(first, 0.6))
        assert near(at(150.5, 50), mix(second, 0.6)), "the border is where it is, to the pixel"
        assert visit.rows() == ["cat 75.0 %", "dog 25.0 %"]
        assert not visit.tab.locator("#for-threshold").is_visible()


def test_keypoints(open_page):
    points = [[40, 20, 0.9], [160, 20, 0.8], [100, 80, 0.1]]
    pose = {"keypoints": points, "score": 0.8, "xyxy": [30, 10, 170, 90], "box_score": 0.7}
    skeleton = {"names": ["nose", "left", "right"], "edges": [[0, 1], [1, 2]]}
    model = model_of("keypoints", skeleton=skeleton)
    answer = result_of("poses", [pose], SIZE, keypoint_names=skeleton["names"])
    with open_page(models=[model], answer=answer) as visit:
        visit.give(image_file())
        at = visit.pixels(SIZE)
        assert near(at(40.5, 20.5), colour_of(0)), "(40, 20) is the middle of a pixel"
        assert near(at(160.5, 20.5), colour_of(1))
        assert near(at(100.5, 20.5), colour_of(1)), "a line in the colour of its end"
        assert near(at(100.5, 80.5), GREY), "an unsure keypoint is not drawn, nor its line"
        assert near(at(130.5, 50.5), GREY)
        visit.set_range("least", 0.05)
        assert near(visit.pixels(SIZE)(100.5, 80.5), colour_of(2))
        box = visit.tab.locator("#frame").bounding_box()
        visit.tab.mouse.move(
            box["x"] + box["width"] * 40.5 / 200, box["y"] + box["height"] * 20.5 / 100
        )
        assert "nose 0.90" in visit.text("#tip")


def test_classes_as_bars(open_page):
    names = [f"class {number}" for number in range(30)]
    scores = np.linspace(0.5, 0.01, 30).tolist()
    rows = [{"name": name, "id": k, "score": scores[k]} for k, name in enumerate(names)]
    model = model_of("classification", class_names=names, threshold=0.0)
    with open_page(models=[model], answer=result_of("classes", rows, SIZE)) as visit:
        visit.give(image_file())
        assert visit.rows()[0] == "class 0 0.500"
        assert len(visit.rows()) == 10
        wide = visit.tab.locator("#list s").first.evaluate("bar => bar.offsetWidth")
        whole = visit.tab.locator("#list li").first.evaluate("row => row.offsetWidth")
        assert wide / whole == pytest.approx(0.5, abs=0.01)
        visit.tab.click("#more")
        assert len(visit.rows()) == 30
        assert "class 0" in visit.text("#summary")


def test_pointing_names_an_object(open_boxes):
    with open_boxes() as visit:
        visit.give(image_file())
        box = visit.tab.locator("#frame").bounding_box()
        place = box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.5
        visit.tab.mouse.move(*place)
        assert visit.text("#tip") == "dog 0.60"
        chosen = visit.tab.locator("#list [aria-selected=true]")
        assert chosen.inner_text().startswith("dog")
        assert not on_line(visit.pixels(SIZE), 20, 35, colour_of(0)), "the others are faint"
        visit.tab.mouse.move(box["x"] + 2, box["y"] + 2)
        assert not visit.tab.locator("#tip").is_visible()
        visit.tab.locator("#list li").first.hover()
        assert not on_line(visit.pixels(SIZE), 150, 90, colour_of(1))


def test_keyboard_alone(open_boxes):
    with open_boxes() as visit:
        keys = visit.tab.keyboard
        # The browser is told at once, and not only when the key is about to be pressed.
        visit.tab.on("filechooser", lambda _: None)
        keys.press("Tab")
        assert visit.tab.evaluate("document.activeElement.className") == "skip"
        for _ in range(6):
            keys.press("Tab")
            if visit.tab.evaluate("document.activeElement.id") == "files":
                break
        assert visit.tab.evaluate("document.activeElement.id") == "files"
        with visit.tab.expect_file_chooser() as waiting:
            keys.press("Enter")
        waiting.value.set_files([image_file()])
        visit.wait(1)
        seen = []
        for _ in range(25):
            keys.press("Tab")
            seen.append(visit.tab.evaluate("document.activeElement.id"))
            if seen[-1] == "frame":
                before = scale_of(visit)
                keys.press("+")
                visit.settle()
                assert scale_of(visit) > before
                keys.press("0")
                visit.settle()
                assert scale_of(visit) == before
            if seen[-1] == "threshold":
                keys.press("Home")
                assert len(visit.rows()) == 3
            if seen[-1] == "list":
                keys.press("ArrowDown")
                row = visit.tab.locator("#list").get_attribute("aria-activedescendant")
                assert visit.tab.locator(f"#{row}").inner_text().startswith("dog")
                keys.press("Enter")
                visit.settle()
                assert scale_of(visit) > before
            if seen[-1] == "explain":
                break
        assert {"frame", "larger", "threshold", "list", "explain"} <= set(seen)


def scale_of(visit):
    return visit.tab.locator("#frame img").bounding_box()["width"]


def test_several_images_pasted_and_dropped(open_boxes):
    with open_boxes() as visit:
        visit.send("paste", image_file("pasted.png"))
        visit.wait(1)
        visit.send("drop", image_file("dropped.png"), image_file(HOSTILE))
        visit.wait(3)
        names = visit.tab.locator("#strip .small").all_inner_texts()
        assert names == ["pasted.png", "dropped.png", HOSTILE]
        assert visit.tab.title() != "1"
        visit.tab.locator("#strip .small").nth(2).click()
        assert visit.text("#name") == HOSTILE
        visit.tab.locator("#strip .remove").nth(2).click()
        assert visit.text("#name") == "dropped.png"
        visit.tab.locator("#strip .remove").nth(1).press("Enter")
        assert visit.text("#name") == "pasted.png"
        assert visit.tab.evaluate("document.activeElement.innerText") == "pasted.png"
        visit.tab.locator("#strip .remove").click()
        assert not visit.tab.locator("#viewer").is_visible()
        assert visit.predictions == 3


def test_refusals(open_boxes):
    answers = [
        (429, {"error": "64 images wait"}, {"Retry-After": "1"}),
        (422, {"error": "the image is <b>broken</b>"}, {}),
        result_of("boxes", BOXES, SIZE)(None),
    ]
    expected = ["status of 429", "status of 422"]
    with open_boxes(answer=lambda _: answers.pop(0), expected=expected) as visit:
        visit.tab.set_input_files("#files", [image_file()])
        visit.tab.wait_for_selector("#strip [data-state=waiting]")
        assert "64 images wait" in visit.text("#trouble p")
        assert not visit.tab.locator("#again").is_visible()
        visit.tab.wait_for_selector("#strip [data-state=failed]")
        assert visit.text("#trouble p") == "the image is <b>broken</b>"
        visit.tab.click("#again")
        visit.wait(1)
        assert not visit.tab.locator("#trouble").is_visible()
        assert visit.predictions == 3


def test_server_that_stops_and_comes_back(open_boxes):
    answers = [(0, None, {}), result_of("boxes", BOXES, SIZE)(None)]
    expected = ["ERR_FAILED", "503"]
    with open_boxes(answer=lambda _: answers.pop(0), expected=expected) as visit:
        visit.tab.route("**/health", lambda route: route.abort())
        visit.tab.set_input_files("#files", [image_file()])
        visit.tab.wait_for_selector("#banner:visible")
        visit.tab.wait_for_selector("#again:visible")
        visit.tab.unroute("**/health")
        starting = {"status": "STARTING"}
        visit.tab.route("**/health", lambda route: route.fulfill(status=503, json=starting))
        visit.tab.locator("#banner", has_text="loads its models").wait_for()
        visit.tab.unroute("**/health")
        visit.tab.wait_for_selector("#banner", state="hidden")
        visit.tab.click("#again")
        visit.wait(1)


def test_token_is_asked_for_and_kept(open_boxes):
    asked = []

    def answer(request):
        asked.append(request.headers.get("authorization", ""))
        if asked[-1] != "Bearer good":
            return 401, {"error": "a token must be sent"}, {}
        return result_of("boxes", BOXES, SIZE)(request)

    with open_boxes(answer=answer, expected=["status of 401"]) as visit:
        visit.tab.set_input_files("#files", [image_file(), image_file("two.png")])
        visit.tab.wait_for_selector("dialog[open]")
        assert not visit.tab.locator("#token-wrong").is_visible()
        visit.tab.fill("#token", "bad")
        visit.tab.keyboard.press("Enter")
        visit.tab.wait_for_selector("#token-wrong:visible")
        visit.tab.fill("#token", "good")
        visit.tab.click("#token-send")
        visit.wait(2)
        visit.tab.reload()
        visit.give(image_file())
        assert asked[-1] == "Bearer good", "it is kept in this tab"
        visit.check()


def test_languages_have_the_same_texts(open_boxes):
    with open_boxes(locale="zh-CN") as visit:
        table = visit.tab.evaluate("import('/page/texts.js').then(({ TEXTS }) => TEXTS)")
        assert table["zh"].keys() == table["en"].keys()
        for name, text in table["en"].items():
            assert sorted(part.split("}")[0] for part in text.split("{")[1:]) == sorted(
                part.split("}")[0] for part in table["zh"][name].split("{")[1:]
            ), name
        assert visit.tab.evaluate("document.documentElement.lang") == "zh"
        assert visit.text("#invite") == table["zh"]["drop"]
        visit.give(image_file())
        assert table["zh"]["objects"] == visit.text("#heading")
        visit.tab.click("#language")
        visit.tab.locator("#invite", has_text=table["en"]["drop"]).wait_for()


CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const found = parts(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
      const both = [light(parts(getComputedStyle(e).color)), light(ground(e))];
      return [e.outerHTML.slice(0, 80), (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_narrow_screens(open_boxes, scheme):
    with open_boxes(color_scheme=scheme) as visit:
        visit.give(image_file())
        ratios = visit.tab.evaluate(CONTRAST)
        assert len(ratios) > 15
        assert [row for row in ratios if row[1] < 4.5] == []
        for width in (400, 340):
            visit.tab.set_viewport_size({"width": width, "height": 800})
            visit.settle()
            assert visit.tab.evaluate("document.documentElement.scrollWidth") <= width
        unnamed = visit.tab.evaluate(
            "[...document.querySelectorAll('button, input, select')].filter((e) => "
            "e.checkVisibility() && !(e.innerText || e.getAttribute('aria-label') || "
            "e.labels?.[0]?.innerText)).map((e) => e.outerHTML)"
        )
        assert unnamed == []


def test_colours_are_far_apart(open_boxes):
    with open_boxes() as visit:
        palette = visit.tab.evaluate("import('/page/colours.js').then((all) => all.PALETTE)")
    assert len(palette) >= 40
    values = np.array([[int(one[k : k + 2], 16) for k in (1, 3, 5)] for one in palette]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[41.24, 35.76, 18.05], [21.26, 71.52, 7.22], [1.93, 11.92, 95.05]])
    cube = np.cbrt(linear @ to_xyz.T / [95.05, 100, 108.88])
    lab = np.stack(
        [116 * cube[:, 1], 500 * (cube[:, 0] - cube[:, 1]), 200 * (cube[:, 1] - cube[:, 2])], 1
    )
    apart = np.linalg.norm(lab[:, None] - lab, axis=2) + 1000 * np.eye(len(lab))
    assert apart.min() > 20, "2.3 is just noticeable"


def test_models_of_the_server_from_end_to_end(open_page, served):
    upright = image_file("turned.jpg", (40, 60), "JPEG", exif=orientation(6))
    with open_page() as visit:
        visit.tab.wait_for_selector("#models")
        names = visit.tab.locator("#model option").all_inner_texts()
        assert names == ["classify", "detect", "instance", "semantic", "keypoint_rcnn"]
        visit.give(upright)
        for name in names:
            visit.tab.select_option("#model", name)
            visit.wait(1)
            assert visit.text("#note") == "", "browser and server turn the image alike"
            shown = visit.tab.locator("#frame img").bounding_box()
            assert shown["height"] / shown["width"] == pytest.approx(1.5, rel=0.01)
            assert visit.text("#summary")
            assert not visit.tab.locator("#trouble").is_visible()
        visit.set_range("threshold", 0)
        assert visit.predictions == len(names)
        visit.give(image_file("one.tif", (30, 50), "TIFF"), done=2)
        assert "50 x 30" in visit.text("#note")
        visit.tab.set_input_files("#files", [{**upright, "buffer": b"no image"}])
        visit.tab.wait_for_selector("#strip [data-state=failed]")
        assert "format" in visit.text("#trouble p")
        visit.expected = ("status of 415",)


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.slow
def test_photo_of_20_megapixels(open_page):
    height, width = 3648, 5472
    ramp = np.linspace(60, 200, width, dtype=np.uint8)
    pixels = np.repeat(np.tile(ramp, (height, 1))[..., None], 3, 2)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=90)
    photo = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": written.getvalue()}
    rows, columns = np.indices((height, width), np.int32)
    mask = ((rows - 1800) / 900) ** 2 + ((columns - 2700) / 1500) ** 2 < 1
    boxes = [{
        "xyxy": [1200, 900, 4200, 2700], "name": "cat", "id": 0, "score": 0.9,
        "mask": encode_mask(mask),
    }]  # fmt: skip
    answer = result_of("boxes", boxes, (height, width))
    with open_page(models=[model_of("detection")], answer=answer) as visit:
        visit.tab.evaluate(
            "() => { window.longest = 0; let last = performance.now(); (function tick() {"
            " const now = performance.now(); window.longest = Math.max(window.longest, now - last);"
            " last = now; requestAnimationFrame(tick); })(); }"
        )
        begun = time.monotonic()
        visit.give(photo)
        assert time.monotonic() - begun < 20
        at = visit.pixels((height, width))
        under = 60 + 140 * 2700 / width
        expected = [0.4 * part + 0.6 * under for part in colour_of(0)]
        assert near(at(2700, 1500), expected, 6)
        assert near(at(600, 600), [60 + 140 * 600 / width] * 3, 4)
        visit.tab.evaluate("window.longest = 0")
        for value in np.linspace(0.3, 0.8, 10):
            visit.set_range("opacity", float(value))
        visit.tab.click("#larger")
        visit.settle()
        assert visit.tab.evaluate("window.longest") < 3000, "no freeze"


@pytest.mark.slow
def test_answers_for_a_photo_have_its_pixels(open_page):
    """A photo of the server's own size limits is scaled to the view, and its places with it."""
    size = (1500, 2000)
    boxes = [{"xyxy": [500, 300, 1500, 1200], "name": "cat", "id": 0, "score": 0.9}]
    answer = result_of("boxes", boxes, size)
    options = {"device_scale_factor": 2, "expected": ["Canvas2D"]}
    with open_page(models=[model_of("detection")], answer=answer, **options) as visit:
        visit.give(image_file("photo.jpg", size, "JPEG"))
        shown = visit.tab.locator("#frame img").bounding_box()
        assert shown["width"] < 1300
        canvas = visit.tab.locator("#frame canvas")
        code = """(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(
            Math.round(x), Math.round(y), 1, 1).data]"""
        image, frame = shown, visit.tab.locator("#frame").bounding_box()
        left = 2 * (image["x"] - frame["x"] + image["width"] / 4)
        middle = 2 * (image["y"] - frame["y"] + image["height"] / 2)
        assert canvas.evaluate(code, [left, middle])[:3] == list(colour_of(0))
        assert canvas.evaluate(code, [left + 40, middle])[3] == 0


@pytest.mark.slow
def test_fingers_enlarge_and_move(open_boxes):
    options = {"has_touch": True, "is_mobile": True, "viewport": {"width": 400, "height": 800}}
    with open_boxes(**options) as visit:
        visit.give(image_file())
        assert visit.tab.locator("#camera").get_attribute("capture") == "environment"
        assert visit.tab.locator(".touch").is_visible()
        box = visit.tab.locator("#frame").bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        before = scale_of(visit)
        wire = visit.context.new_cdp_session(visit.tab)

        def touch(kind, *apart):
            points = [
                {"x": middle[0] + far, "y": middle[1], "id": k} for k, far in enumerate(apart)
            ]
            wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            visit.settle()

        touch("touchStart", -20, 20)
        for far in (30, 40, 50, 60):
            touch("touchMove", -far, far)
        touch("touchEnd")
        assert scale_of(visit) == pytest.approx(3 * before, rel=0.1)
        left = visit.tab.locator("#frame img").bounding_box()["x"]
        touch("touchStart", 0)
        for far in (10, 20, 40):
            touch("touchMove", far)
        touch("touchEnd")
        moved = visit.tab.locator("#frame img").bounding_box()["x"] - left
        assert moved == pytest.approx(40, abs=3)
        visit.tab.click("#whole")
        visit.settle()
        assert scale_of(visit) == before
        visit.tab.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.6)
        assert visit.text("#tip") == "dog 0.60"
