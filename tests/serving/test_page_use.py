# SPDX-License-Identifier: Apache-2.0
"""How the page is used: keyboard, fingers, several images, refusals, tokens, languages."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.serving.browsing import (
    BOXES,
    SIZE,
    Visit,
    fulfil,
    image_file,
    model_of,
    result_of,
)
from tests.serving.live import RUNS, start

HOSTILE = '"><img src=x onerror="document.title=1">&lt;.png'


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


def test_images_behind_a_full_server_say_so(open_boxes):
    refusal = 429, {"error": "64 images wait"}, {"Retry-After": "60"}
    with open_boxes(answer=lambda _: refusal, expected=["status of 429"]) as visit:
        visit.tab.set_input_files("#files", [image_file(f"{number}.png") for number in range(4)])
        visit.tab.wait_for_selector("#strip [data-state=waiting] >> nth=2")
        visit.tab.locator("#strip .small").nth(3).click()
        assert "64 images wait" in visit.text("#trouble p")
        assert visit.text("#summary") == "waiting to be sent"
        assert "busy" not in visit.tab.locator("#frame").get_attribute("class")


def test_another_model_stops_what_the_first_is_asked(open_page):
    held = []

    def answer(request):
        if "model=slow" in request.url:
            held.append(request)
            return None
        return result_of("boxes", BOXES, SIZE)(None)

    models = [model_of("detection", name="slow"), model_of("detection", name="quick")]
    with open_page(models=models, expected=["Failed to load"]) as visit:
        stopped = []
        visit.tab.on("requestfailed", lambda request: stopped.append(request.url))
        visit.tab.route(
            "**/predict?*",
            lambda route: (found := answer(route.request)) and fulfil(route, *found),
        )
        with visit.tab.expect_request("**/predict?model=slow*"):
            visit.tab.set_input_files("#files", [image_file(f"{n}.png") for n in range(4)])
        visit.tab.select_option("#model", "quick")
        visit.wait(4)
        assert len(stopped) == 3, "three are sent at a time"
        with visit.tab.expect_request("**/predict?model=slow*"):
            visit.tab.select_option("#model", "slow")


@pytest.mark.slow
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


@pytest.mark.slow
def test_token_of_a_server(browser, tmp_path):
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length")
    with start(RUNS / "detect", "--token-file", file) as live:
        base = f"http://127.0.0.1:{live.port}"
        with Visit(browser, base, expected=["status of 401"]) as visit:
            visit.tab.fill("#token", "a-token-of-some-length")
            visit.tab.keyboard.press("Enter")
            visit.give(image_file())
            assert visit.text("#summary")
        with Visit(browser, base, expected=["status of 401"]) as visit:
            visit.tab.locator("#token-dialog button").last.click()
            visit.tab.locator("#banner button").click()
            visit.tab.wait_for_selector("dialog[open]")


@pytest.mark.slow
def test_file_beyond_the_limits_says_so(open_page, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(40 * 2**20))
    with open_page(expected=["413", "ERR_"]) as visit:
        visit.tab.set_input_files("#files", large)
        visit.tab.wait_for_selector("#again:visible")
        assert "MiB" in visit.text("#trouble p")


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
