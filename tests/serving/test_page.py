# SPDX-License-Identifier: Apache-2.0
"""What the page draws: boxes, masks, maps, keypoints and classes, to the pixel."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from PIL import Image

from muntin.drawing.style import colour_of
from muntin.run_lengths import encode_mask
from tests.serving.browsing import GREY, SIZE, image_file, model_of, result_of

NAMES = ["cat", "dog"]


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


def test_what_is_not_drawn_or_listed_is_said(open_page):
    pose = {"keypoints": [[40, 20, 0.1], [160, 20, 0.2]], "score": 0.1}
    skeleton = {"names": ["nose", "tail"], "edges": []}
    model = model_of("keypoints", skeleton=skeleton, threshold=0.0, threshold_from="")
    answer = result_of("poses", [pose], SIZE, keypoint_names=skeleton["names"])
    with open_page(models=[model], answer=answer) as visit:
        visit.give(image_file())
        assert visit.text("#origin") == "starts at 0: everything is listed"
        assert "Keypoints of 1 not drawn: all below 0.30" in visit.text("#summary")
        assert json.loads(visit.saved("coco"))["annotations"] == []
        visit.set_range("least", 0.15)
        assert visit.text("#summary") == "1 instance"
        assert json.loads(visit.saved("coco"))["annotations"][0]["bbox"] == [160.5, 20.5, 0, 0]


def test_a_long_list_is_cut_until_it_is_asked_for(open_page):
    rows = [
        {"xyxy": [2 * k, 0, 2 * k + 2, 90], "name": "cat", "id": 0, "score": 0.9 - k / 200}
        for k in range(60)
    ]
    answer = result_of("boxes", rows, SIZE)
    with open_page(models=[model_of("detection")], answer=answer) as visit:
        visit.give(image_file())
        assert len(visit.rows()) == 25
        box = visit.tab.locator("#frame").bounding_box()
        place = box["x"] + box["width"] * 101 / 200, box["y"] + box["height"] / 2
        visit.tab.mouse.move(*place)
        assert len(visit.rows()) == 60, "what is pointed at is in the list"
        visit.give(image_file("two.png"), done=2)
        assert len(visit.rows()) == 25
        visit.tab.click("#more")
        assert len(visit.rows()) == 60


def test_what_the_page_does_not_offer_is_said(open_page):
    rows = [{"name": "cat", "id": 0, "score": 0.9}]
    model = model_of("classification", threshold=0.0, threshold_from="")
    with open_page(models=[model], answer=result_of("classes", rows, SIZE)) as visit:
        visit.give(image_file("scan.tif", kind="TIFF"), image_file())
        assert visit.text("#strip li:first-child .small").split() == ["TIF", "scan.tif"]
        assert visit.tab.locator("#downloads [data-file=coco]").is_disabled()
        assert "COCO has no form" in visit.text("#no-coco")
        assert visit.text("#for-all") == "JSON, CSV of all 2 images"


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


@pytest.mark.slow
def test_photo_of_20_megapixels(open_page, tmp_path):
    height, width = 3648, 5472
    ramp = np.linspace(60, 200, width, dtype=np.uint8)
    pixels = np.repeat(np.tile(ramp, (height, 1))[..., None], 3, 2)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(photo, quality=90)
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
        visit.tab.set_input_files("#files", photo)
        visit.wait(1)
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
