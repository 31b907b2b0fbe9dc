# SPDX-License-Identifier: Apache-2.0
"""What notebooks show of runs, evaluations, pages and tables."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

import muntin
from muntin.drawing.notebook import embed_image, show_facts, show_table
from muntin.explaining.explanation import Page
from muntin.runs import Run
from muntin.scoring.evaluation import Figures
from muntin.training.session import TrainedRun

OLD = Path(__file__).parents[1] / "golden" / "old"


def parse(text):
    return ElementTree.fromstring(f"<div>{text}</div>")


def cells(text):
    return {row[0].text: row[1].text for row in parse(text).findall(".//tbody/tr")}


def test_images_are_small(tmp_path):
    Image.new("RGBA", (2000, 900), "red").save(tmp_path / "a.png")
    data = parse(embed_image(tmp_path / "a.png")).find(".//img").get("src").split(",")[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (640, 288))
    assert embed_image(tmp_path / "none.png") == ""


def test_tables_have_an_end():
    page = parse(show_table({"a": range(70), "b": np.linspace(0, 1, 70)}))
    assert len(page.findall(".//tbody/tr")) == 50
    assert "20 more" in page.find("p").text
    assert show_table({"a": []}) == ""


def test_facts_are_numbers_and_texts():
    text = show_facts("<b>", {"top1": 0.123456, "n": 3, "ap": [1, 2], "iou": None, "x": "<i>"})
    assert cells(text) == {"top1": "0.1235", "n": "3", "iou": "n/a", "x": "<i>"}
    assert parse(text).findall(".//th")[1].text == "<b>"
    assert show_facts("a & b", {}) == "a &amp; b"


def test_a_run():
    run = Run.open(OLD / "instance")
    shown = cells(run._repr_html_())
    assert shown["task"] == "instance"
    assert {"model", "classes", "box_ap"} <= shown.keys()
    assert len(repr(run)) < 200


def test_what_training_returns(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "curves.png")
    metrics = {"top1": 0.75, "recall": [0.5, 1.0]}
    run = TrainedRun(path=tmp_path, metrics=metrics, epochs=3, seconds=2.5, interrupted=False)
    assert repr(run) == f"TrainedRun(path={str(tmp_path)!r}, epochs=3, top1=0.75)"
    assert cells(run._repr_html_()) == {"epochs": "3", "seconds": "2.5", "top1": "0.75"}
    assert parse(run._repr_html_()).find(".//img") is not None


def test_an_evaluation_is_still_a_dictionary():
    figures = Figures({"top1": 0.5, "recall": [1.0]})
    assert figures == {"top1": 0.5, "recall": [1.0]}
    assert cells(figures._repr_html_()) == {"top1": "0.5"}


def test_a_page(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    files = (tmp_path / "a.npz", tmp_path / "a.png")
    page = Page(path=tmp_path / "page.html", files=files, missing=())
    assert cells(page._repr_html_())["figures"] == "1"
    assert parse(page._repr_html_()).find(".//img") is not None
    assert "a.npz" not in repr(page)


def test_dir_shows_public_names_alone():
    assert dir(muntin) == sorted(muntin.__all__)
