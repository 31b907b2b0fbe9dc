# SPDX-License-Identifier: Apache-2.0
"""The page in Chinese: every text is there, and no sentence is English."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch

import muntin
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError
from muntin.explaining import LANGUAGES
from muntin.explaining.figures import find_text, load_texts, translate, use_language
from muntin.prediction.predictor import Predictor
from muntin.samples import Classes
from muntin.tasks.task_table import find_task
from tests.detectors import tiny_detector
from tests.explaining.convert_formulas import TEXTS
from tests.small import image

SWIN = {"depths": (2, 2), "num_heads": (1, 2), "embed_dim": 16, "img_size": 32}
VIT = {"depth": 2, "img_size": 32}
PRE = {"img_size": (64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, "fit": "letterbox"}
CHINESE = re.compile("[\u4e00-\u9fff]")
# Papers are cited, and words of figures explained, in English; three words make a sentence.
NAMES = re.compile(
    r"et al\. \d{4}.*?(?=[\uff0c\uff08\uff09]|$)|Grad-CAM|van der Maaten and Hinton|"
    r"Draelos and Carin|Abnar and Zuidema|Zeiler and Fergus|pip install \S+|class \d+"
)
SENTENCE = re.compile(r"[A-Za-z]{2,}(?:,? [A-Za-z]{2,}){2,}")


class Words(HTMLParser):
    """Texts of a page and those of attributes that are read out; none of scripts and formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.found: list[str] = []
        self.language = ""

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.language = values["lang"] if tag == "html" else self.language
        self.found += [values[key] for key in ("alt", "aria-label", "title") if values.get(key)]
        if tag in ("script", "style", "math"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside[-1:] == [tag]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside and data.strip():
            self.found.append(data.strip())


def read(path) -> Words:
    words = Words()
    words.feed(path.read_text(encoding="utf-8"))
    return words


def find_sentences(texts) -> list[str]:
    return [found for text in texts for found in SENTENCE.findall(NAMES.sub("", text))]


def make_model(kind: str):
    torch.manual_seed(0)
    if kind != "detector":
        options = SWIN if kind == "swin_nano" else VIT
        return muntin.create_model(kind, num_classes=3, **options)
    network = tiny_detector("fcos_small", 3, task="detect").eval()
    classes = Classes(names=("cross", "ring", "square"))
    return Predictor(network, find_task("detect"), classes, Preprocessing(**PRE), device="cpu")


# `test_every_chinese_text_is_chinese` sees every text; pages show where one is left out.
@pytest.mark.parametrize(
    "kind", ["vit_tiny", "detector", pytest.param("swin_nano", marks=pytest.mark.slow)]
)
def test_page_in_chinese_has_no_english_sentence(kind, tmp_path):
    model = make_model(kind)
    sections = ("cut", "positions", "attention", "decision", "features")
    sections += ("comparison",) if kind == "vit_tiny" else ()
    page = muntin.explain(
        model, image(0, 0, 40), tmp_path, language="zh", sections=sections,
        compare=model if kind == "vit_tiny" else None,
    )  # fmt: skip
    words = read(page.path)
    assert words.language == "zh-Hans"
    assert find_sentences(words.found) == []
    captions = [text for text in words.found if len(text) > 30]
    assert len(captions) > 10
    assert all(map(CHINESE.search, captions)), "every caption is Chinese"


def test_english_sentences_would_be_found():
    texts = load_texts("en")
    captions = [table["text"] for table in texts.values() if len(table.get("text", "")) > 60]
    assert captions
    assert all(find_sentences([caption]) for caption in captions)


def test_every_language_is_offered():
    assert set(LANGUAGES) == {path.stem for path in TEXTS.glob("*.toml")}


def test_every_chinese_text_is_chinese():
    def list_texts(table, place=""):
        for key, value in table.items():
            if isinstance(value, dict):
                yield from list_texts(value, f"{place}{key}.")
            else:
                yield f"{place}{key}", value

    english = dict(list_texts(load_texts("en")))
    names = {"formula", "name", "latex", "source", "language"}
    same = {"missing.cost-refused.reason"}
    for place, text in list_texts(load_texts("zh")):
        if place.rpartition(".")[2] not in names and place not in same:
            assert CHINESE.search(text), f"{place}: {text}"
            assert text != english[place]
        if place.endswith("latex"):
            plain, own = (re.sub(r"\\text ?\{.*?\}", "", one) for one in (english[place], text))
            assert plain == own, "formulas are the same but for their words"


WORDS = {
    "stage 2, block 1 (shifted), mean of 4 heads": "\u9636\u6bb5 2\uff0c\u5757 1",
    "stage 3, block 7 (mask units, pooled queries), head 2": "\u63a9\u7801\u5355\u5143",
    "tokens to token, step 1": "tokens-to-token\uff0c\u7b2c 1 \u6b65",
    "the class token or padding": "\u6216\u586b\u5145",
    "the register 2": "\u5bc4\u5b58\u5668 token 2",
    "3 images": "3 \u5f20\u56fe\u50cf",
    "of the run my or yours": "\u6765\u81ea\u8bad\u7ec3\u7ed3\u679c",
    "log-odds": "\u5bf9\u6570\u51e0\u7387",
}


@pytest.mark.parametrize("text", WORDS)
def test_words_of_figures_are_translated(text):
    assert translate(text) == text
    with use_language("zh"):
        assert WORDS[text] in translate(text)
        assert find_sentences([translate(text)]) == []
    assert translate(text) == text


DRAWN = (
    "3 x 3 neighbours", "3 x 3 tokens of 3 pixels",
    "3 x 3 tokens, an image of twice the height and width", "3 x 3 tokens, original",
    "a window in the middle\nallowed: 3% of pairs", "above: ViT\nbelow: ViT",
    "activations saved for backward (GiB)", "as computed:\nshifted up and left",
    "at the bottom edge\nallowed: 3% of pairs", "at the right edge\nallowed: 3% of pairs",
    "attention", "attention stays\nwithin each region", "bias", "block 3",
    "block 3\nglobal: 3 x 3 tokens", "block 3\nmax\xa03", "block 3\nmax\xa03, elsewhere\xa03%",
    "block 3, heads 3 to 3", "blocks 3 to 3\n3 units of 3 x 3 tokens",
    "blocks 3 to 3\nglobal: 3 x 3 tokens", "blocks of ViT", "central 3 x 3",
    "column of the position", "concatenated: 3", "cosine similarity",
    "decreases | increases: fraction of each scale    (all pixels: 3)",
    "decreases | increases: fraction of each scale    (all pixels: +3)", "explained image",
    "first component\nand its share\nof the variance", "formulas", "head", "head 3", "head, global",
    "head, inside shifted windows", "head, inside windows", "highest", "image",
    "image side in pixels", "image size (height x width)", "in the corner\nallowed: 3% of pairs",
    "increases the output: fraction of the map's maximum", "largest",
    "last layer, from\nthe class token", "last layer, from\nthe point", "linear", "linear CKA",
    "linear scale", "lines: formula; markers: counted", "local average: 3 is 3",
    "logarithmic scale", "lowest", "mean distance, pixels", "measured", "multiply-adds (billions)",
    "multiply-adds of attention layers (billions)", "not shifted:\none window\ncovers the map",
    "offset to the right, tokens", "one token: 3", "patches", "per pixel: 3 is 3",
    "principal components", "projections", "query", "rollout, from\nthe class token",
    "rollout, from\nthe point", "row of the position", "shares at 3 x 3",
    "shifted by 3 and 3 tokens\nin place", "side of the map in tokens", "stage 3",
    "stage 3\nblock 3", "stage 3, block 3\n(global)\nmax\xa03",
    "stage 3, block 3\n(global, pooled queries)\nmax\xa03", "stage 3, block 3\n(shifted)\nmax\xa03",
    "stage 3, block 3\n(shifted)\nmax\xa03, 3\xa0x\xa0zoom", "stage 3, block 3\nmax\xa03",
    "stage 3, block 3\nmax\xa03, 3\xa0x\xa0zoom", "stage 3, block 3 (global)\nmax\xa03",
    "stage 3, block 3 (global), heads 3 to 3",
    "stage 3, block 3 (mask\nunits)\nmax\xa03, 3\xa0x\xa0zoom",
    "stage 3, block 3 (mask\nunits, pooled queries)\nmax\xa03, 3\xa0x\xa0zoom",
    "stage 3, block 3 (mask units), head 3", "stage 3, block 3 (mask units), heads 3 to 3",
    "stage 3, block 3 (shifted), head 3", "stage 3, block 3 (shifted), head 3; 3 to 3",
    "stage 3, block 3 (shifted), heads 3 to 3", "stage 3, block 3 (shifted), heads 3 to 3; 3 to 3",
    "stage 3, block 3, head 3", "stage 3, block 3, head 3; 3 to 3",
    "stage 3, block 3, heads 3 to 3", "stage 3, block 3, heads 3 to 3; 3 to 3",
    "stage 3, windows of 3 x 3\n3 window on 3 x 3 tokens",
    "stage 3, windows of 3 x 3\n3 windows on 3 x 3 tokens",
    "stage 3: 3 x 3 tokens\n3 channels, 3 pixels per token", "stride 3", "stride 3 (main)",
    "the image", "time (ms)", "unfolding 3: 3 x 3 tokens\n3 channels, 3 pixels per token",
    "uniform attention",
)  # fmt: skip
"""What figures of all families show; numbers are 3."""


@pytest.mark.parametrize("text", DRAWN)
def test_what_is_drawn_is_translated(text):
    assert translate(text) == text
    with use_language("zh"):
        shown = translate(text)
    assert CHINESE.search(shown)
    assert re.findall(r"[A-Za-z]{2,}", re.sub(r"token|GiB|ViT|Swin-T|CKA", "", shown)) == []
    assert len(re.findall("3", shown)) == len(re.findall("3", text))


def test_language_ends_with_the_call(tmp_path):
    with pytest.raises(ConfigError, match="language 'de'"):
        muntin.explain("swin_nano", image(0, 0, 40), tmp_path / "out", language="de")
    assert not (tmp_path / "out").exists()
    assert find_text("page", "contents") == "Contents"
