# SPDX-License-Identifier: Apache-2.0
"""What the page saves and opens: drawn images, JSON, COCO, CSV, explanations; and `/docs`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import subprocess

import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

from muntin.drawing.style import colour_of
from muntin.run_lengths import decode_mask, encode_mask
from tests.serving.browsing import image_file, model_of, result_of
from tests.serving.live import DATA

SIZE = (60, 80)
ROWS, COLUMNS = np.indices(SIZE)
MASKS = [(ROWS - 20) ** 2 + (COLUMNS - 20) ** 2 < 120, (ROWS > 30) & (COLUMNS > 40)]
BOXES = [
    {"xyxy": [9, 9, 31.5, 31], "name": 'cat "A", b', "id": 1, "score": 0.9},
    {"xyxy": [41, 31, 80, 60], "name": "dog", "id": 0, "score": 0.6},
    {"xyxy": [0, 0, 5, 5], "name": "dog", "id": 0, "score": 0.1},
]
NAMES = ["dog", 'cat "A", b']


def with_masks():
    masks = [*MASKS, MASKS[0]]
    return [{**row, "mask": encode_mask(mask)} for row, mask in zip(BOXES, masks, strict=True)]


def open_coco(text, folder):
    path = folder / "coco.json"
    path.write_bytes(text)
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_drawn_image_is_saved_with_its_own_pixels(open_page):
    answer = result_of("boxes", BOXES, (600, 800))
    with open_page(models=[model_of("detection", class_names=NAMES)], answer=answer) as visit:
        visit.give(image_file("a.b.png", (600, 800)))
        with visit.tab.expect_download() as waiting:
            visit.tab.click("#downloads [data-file=image]")
        assert waiting.value.suggested_filename == "a.b.png"
        with Image.open(waiting.value.path()) as saved:
            assert saved.size == (800, 600)
            assert saved.getpixel((41, 45))[:3] == colour_of(0)
            assert saved.getpixel((70, 57))[:3] == (120, 120, 120)
            assert saved.getpixel((0, 3))[:3] == (120, 120, 120), "below the threshold"


def test_legend_of_a_map_is_saved_below_it(open_page):
    rows = [
        {"name": n, "id": k, "share": 0.5, "mask": encode_mask((ROWS < 30) == (k == 0))}
        for k, n in enumerate(("sky", "sea"))
    ]
    model = model_of("segmentation", class_names=["sky", "sea"], threshold=0.0)
    with open_page(models=[model], answer=result_of("semantic", rows, SIZE)) as visit:
        visit.give(image_file("one.png", SIZE))
        visit.set_range("opacity", 1)
        with Image.open(io.BytesIO(visit.saved("image"))) as saved:
            assert saved.width == 80 * 8, "small images are enlarged"
            assert saved.height > 60 * 8
            assert saved.getpixel((300, 239))[:3] == colour_of(0)
            assert saved.getpixel((300, 240))[:3] == colour_of(1)


def test_tables_of_all_images(open_page, tmp_path):
    boxes = with_masks()
    answer = result_of("boxes", boxes, SIZE)
    with open_page(models=[model_of("detection", class_names=NAMES)], answer=answer) as visit:
        visit.give(image_file("one.png", SIZE), image_file('odd, "name".png', SIZE))
        lines = list(csv.DictReader(io.StringIO(visit.saved("csv").decode(), newline="")))
        assert len(lines) == 2, "one image, above the threshold"
        visit.tab.check("#all")
        lines = list(csv.DictReader(io.StringIO(visit.saved("csv").decode(), newline="")))
        assert [line["path"] for line in lines] == ["one.png"] * 2 + ['odd, "name".png'] * 2
        assert lines[0]["name"] == NAMES[1]
        assert [float(lines[0][edge]) for edge in ("left", "top", "right", "bottom")] == [
            9, 9, 31.5, 31,
        ]  # fmt: skip
        found = open_coco(visit.saved("coco"), tmp_path)
        assert json.loads(visit.saved("json")) == 2 * answer(None)[1]
    assert [image["file_name"] for image in found.loadImgs([1, 2])] == [
        "one.png",
        'odd, "name".png',
    ]
    rows = found.loadAnns(found.getAnnIds(imgIds=[2]))
    assert [found.cats[row["category_id"]]["name"] for row in rows] == [NAMES[1], "dog"]
    for row, mask in zip(rows, MASKS, strict=True):
        assert np.array_equal(decode_mask(row["segmentation"]), mask)
        assert row["area"] == mask.sum()
    assert rows[0]["bbox"] == [9, 9, 22.5, 22]


def test_keypoints_as_coco(open_page, tmp_path):
    names = ["nose", "tail"]
    pose = {"keypoints": [[10.5, 20, 0.9], [30, 40, 0.1]], "score": 0.8}
    model = model_of(
        "keypoints", class_names=["mouse"], skeleton={"names": names, "edges": [[0, 1]]}
    )
    answer = result_of("poses", [pose], SIZE, keypoint_names=names)
    with open_page(models=[model], answer=answer) as visit:
        visit.give(image_file("one.png", SIZE))
        found = open_coco(visit.saved("coco"), tmp_path)
        lines = list(csv.DictReader(io.StringIO(visit.saved("csv").decode(), newline="")))
        assert visit.rows() == ["#1 0.80", "nose 0.90"]
    (row,) = found.loadAnns(found.getAnnIds())
    assert row["keypoints"] == [10.5, 20, 2, 0, 0, 0]
    assert row["num_keypoints"] == 1
    assert found.cats[1] == {
        "id": 1, "name": "mouse", "keypoints": names, "skeleton": [[1, 2]],
    }  # fmt: skip
    assert [(line["keypoint"], line["x"], line["y"]) for line in lines] == [
        ("nose", "10.5", "20"), ("tail", "30", "40"),
    ]  # fmt: skip


def test_json_is_that_of_the_server(open_page, served):
    name = "00000.png"
    data = (DATA / "scenes" / "train" / name).read_bytes()
    with open_page() as visit:
        visit.tab.wait_for_selector("#models")
        visit.tab.select_option("#model", "instance")
        visit.give({"name": name, "mimeType": "image/png", "buffer": data})
        saved = visit.saved("json")
    _, expected, _ = served.predict(data, f"/predict?model=instance&name={name}")
    assert json.loads(saved) == expected


EXPLANATION = """<!doctype html><html><body><h1>Why</h1><p class="files">Files: gone.png</p>
<style>h1 { color: rgb(1, 2, 3); }</style><script>
let reached = 'all';
try { reached = String(window.localStorage.length); } catch { reached = 'nothing'; }
document.querySelector('h1').textContent = 'reaches ' + reached;
fetch('/models').catch(() => { document.body.dataset.shut = 'yes'; });
</script></body></html>"""


def test_explanation_runs_in_a_tab_that_reaches_nothing(open_page):
    expected = ["Content Security Policy", "Fetch API cannot load"]
    answer = result_of("boxes", BOXES, SIZE)
    with open_page(models=[model_of("detection")], answer=answer, expected=expected) as visit:
        visit.tab.route("**/explain?*", lambda route: route.fulfill(body=EXPLANATION))
        visit.give(image_file("one.png", SIZE))
        with visit.context.expect_page() as waiting:
            visit.tab.click("#explain")
        tab = waiting.value
        tab.locator("h1", has_text="reaches nothing").wait_for()
        tab.wait_for_selector("body[data-shut=yes]")
        style = "h1 => getComputedStyle(h1).color"
        assert tab.locator("h1").evaluate(style) == "rgb(1, 2, 3)"
        assert tab.locator(".files").count() == 0
        assert [text for text in visit.messages if "inline style" in text] == []
        assert visit.tab.title() != ""


def test_explanation_that_fails_says_why(open_page):
    answer = result_of("boxes", BOXES, SIZE)
    options = {"models": [model_of("detection")], "answer": answer, "expected": ["422"]}
    with open_page(**options) as visit:
        refusal = {"error": "there is no <b>gradient</b>"}
        visit.tab.route("**/explain?*", lambda route: route.fulfill(status=422, json=refusal))
        visit.give(image_file("one.png", SIZE))
        with visit.context.expect_page() as waiting:
            visit.tab.click("#explain")
        for tab, place in ((waiting.value, "p"), (visit.tab, "#explain-state")):
            tab.locator(place, has_text="there is no <b>gradient</b>").wait_for()


@pytest.mark.slow
def test_explanation_of_a_model(open_page):
    with open_page(expected=["Content Security Policy"]) as visit:
        visit.tab.wait_for_selector("#models")
        data = (DATA / "scenes" / "train" / "00000.png").read_bytes()
        visit.give({"name": "one.png", "mimeType": "image/png", "buffer": data})
        with visit.context.expect_page() as waiting:
            visit.tab.click("#explain")
        tab = waiting.value
        tab.locator("h1").first.wait_for(timeout=180_000)
        tab.locator("canvas[data-drawn]").first.wait_for()
        loaded = (
            "Promise.all([...document.images].map((i) => i.decode())).then((all) => all.length)"
        )
        assert tab.evaluate(loaded) > 3
        assert "one.png" in tab.locator("body").inner_text()


def test_docs_show_every_route(open_page, served):
    _, described, _ = served.ask("GET", "/openapi.json")
    with open_page("/docs") as visit:
        visit.tab.wait_for_selector("article:nth-of-type(2)")
        heads = visit.tab.locator("article h2").all_inner_texts()
        expected = {
            f"{method.upper()} {path}"
            for path, all_ in described["paths"].items()
            for method in all_
        }
        assert {head.replace("\n", " ") for head in heads} == expected
        lines = visit.tab.locator("#routes a", has_text="/ready").last.inner_text()
        assert "/v2/models/{name}/versions/{version}/ready" in lines
        breaks = visit.tab.locator("#routes a", has_text="{name}/ready").first.evaluate(
            "(a) => a.querySelectorAll('wbr').length"
        )
        assert breaks == 3, "a path is broken before a slash"
        visit.tab.set_viewport_size({"width": 400, "height": 800})
        assert visit.tab.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.slow
def test_examples_of_docs_are_answered(open_page, served, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (500, 600, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    assert (tmp_path / "photo.jpg").stat().st_size > 200_000, "too long for an argument"
    with open_page("/docs") as visit:
        visit.tab.wait_for_selector("article:nth-of-type(2)")
        texts = visit.tab.locator("article").evaluate_all(
            "all => all.map(one =>"
            " [one.id, [...one.querySelectorAll('pre')].map(each => each.innerText)])"
        )
    commands = {place: found for place, found in texts if "explain" not in place}
    assert len(commands["post-predict"]) == 4
    asked = ("post-predict", "get-models", "get-models-name-", "post-v2-models-name-infer")
    for place in (*asked, "post-v2-models-name-versions-version-infer"):
        for command in commands[place]:
            done = subprocess.run(
                ["sh", "-c", command + " --silent --show-error --fail-with-body"],
                cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert json.loads(done.stdout)
