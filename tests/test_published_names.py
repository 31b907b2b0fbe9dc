# SPDX-License-Identifier: Apache-2.0
"""Published models by their names: the weights that are there, and the names of ImageNet."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import muntin
from muntin.commands import main
from muntin.errors import ConfigError, MuntinWarning, RunError, WeightError
from muntin.models.timm_backbone import name_classes
from muntin.published import PublishedRun, find_published, open_run
from muntin.weights.weight_files import write_weights
from muntin.zoo.published_classifier import imagenet_names

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUNTIN_WEIGHTS", raising=False)
    monkeypatch.setattr("warnings.showwarning", None)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = muntin.create_model("vit_tiny").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1 if parameter.ndim > 1 else 0.3)
    return model


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    """A folder of weights, as somebody downloads them."""
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / f"{NAME}.safetensors", muntin.to_dialect(model, "timm"))
    return folder


@pytest.fixture(scope="module")
def photograph():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 13, 3), np.uint8))
    return small.resize((301, 260), Image.Resampling.BICUBIC)


def prepare(image):
    """As timm says of these weights: bicubic to 248 = 224 / 0.9, the middle, from -1 to 1."""
    resize = v2.Resize(248, v2.InterpolationMode.BICUBIC, antialias=True)
    steps = [v2.PILToTensor(), resize, v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize([0.5] * 3, [0.5] * 3)])(image)[None]


@pytest.mark.parametrize("name", ["vit_tiny", NAME, "vit_tiny_patch16_224"])
def test_the_answers_are_those_of_the_model(name, model, stored, photograph, monkeypatch):
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(stored))
    predictor = muntin.load(name, device="cpu")
    with torch.no_grad():
        wanted = model(prepare(photograph)).softmax(1)[0].numpy()
    (found,) = predictor(photograph)
    assert predictor.classes.names == imagenet_names()
    scores = dict(zip(found.class_names, found.scores, strict=True))
    order = np.argsort(-wanted)[:3]
    assert [imagenet_names()[place] for place in order] == list(found.class_names[:3])
    assert [scores[imagenet_names()[i]] for i in order] == pytest.approx(wanted[order], abs=1e-4)


@pytest.mark.parametrize("file", ["vit_tiny.safetensors", "vit_tiny_patch16_224/model.safetensors"])
def test_a_file_of_the_name_here_is_enough(file, model, stored, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    shutil.copy(stored / f"{NAME}.safetensors", tmp_path / file)
    run = open_run("vit_tiny")
    assert isinstance(run, PublishedRun)
    assert run.config.weights == file
    assert run.network.head.fc.weight.equal(model.head.fc.weight)
    if file.endswith("y.safetensors"):  # itself, too
        again = open_run(tmp_path / file)
        assert again.config.model_name == "vit_tiny_patch16_224"
        assert again.network.head.fc.weight.equal(model.head.fc.weight)


def test_larger_parts_of_imagenet_have_the_names_that_timm_has():
    data = pytest.importorskip("timm.data")
    names = name_classes(21841)
    info = data.ImageNetInfo("imagenet-22k")
    assert len({*names}) == info.num_classes() == 21841
    assert names[1] == info.index_to_description(1) == "benthos"
    for place in range(0, 21841, 100):
        synset, lemma = info.index_to_label_name(place), info.index_to_description(place)
        assert names[place] in (lemma, f"{lemma} ({synset})")
    assert name_classes(7) == ()


@pytest.mark.slow
def test_a_classifier_of_a_larger_part(tmp_path):
    pytest.importorskip("timm")
    model = muntin.create_model("vit_tiny", num_classes=21841)
    write_weights(tmp_path / "vit_tiny.safetensors", muntin.to_dialect(model, "timm"))
    assert open_run("vit_tiny").classes.names == name_classes(21841)


def test_without_weights_one_line_says_how_to_get_them(tmp_path):
    for way in ("HF_HUB_OFFLINE", f"timm/{NAME}", "vit_tiny_patch16_224.safetensors",
                "MUNTIN_WEIGHTS", "HF_ENDPOINT"):  # fmt: skip
        with pytest.raises(WeightError, match=way):
            muntin.load("vit_tiny")
    with pytest.raises(WeightError, match=r"none are known.*t2t_vit_7\.safetensors.*muntin train"):
        find_published("t2t_vit_7")
    with pytest.raises(RunError, match=r"'vit_tinyy'.*'vit_tiny'"):
        muntin.load("vit_tinyy")
    for path in ("runs/vit_tiny", "no-such-run", "model.onnx"):
        with pytest.raises(RunError, match=r"a folder.*of a model.*muntin models"):
            muntin.load(path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"as its model.*swin_tiny\.safetensors"):
        muntin.load("w.safetensors")


def test_a_file_that_stands_for_those_of_the_hub_is_named(stored, monkeypatch):
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(stored))
    assert f"read from {stored / NAME}.safetensors" in open_run("vit_tiny").describe()


def test_a_search_finds_a_file_of_weights_again(stored, photograph, tmp_path):
    file = stored / f"{NAME}.safetensors"
    muntin.embed(file, photograph, tmp_path / "f.npy", device="cpu")
    assert [match.path for match in muntin.search(tmp_path / "f.npy", photograph)] == ["image 1"]


def test_a_folder_of_the_name_comes_first(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(stored))
    (tmp_path / "vit_tiny").mkdir()
    with pytest.raises(RunError, match=r"config\.json"):
        muntin.load("vit_tiny")


def call(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def test_predict_eval_and_explain(stored, photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(stored))
    for number, name in enumerate(("tench", "goldfish")):
        (tmp_path / "data" / name).mkdir(parents=True)
        photograph.crop((number, 0, 200, 200)).save(tmp_path / "data" / name / "a.png")
    image = tmp_path / "data" / "tench" / "a.png"
    code, text, said = call(capsys, "predict", "vit_tiny", image, "--json")
    assert code == 0
    assert json.loads(text)[0]["classes"][0]["name"] in imagenet_names()
    assert "license Apache-2.0" in said
    code, text, _ = call(capsys, "eval", "vit_tiny", tmp_path / "data", "--json")
    assert code == 0
    assert json.loads(text)["num_images"] == 2
    assert not (tmp_path / "vit_tiny").exists()
    page = muntin.explain("vit_tiny", str(image), tmp_path / "page", sections="cut")
    text = page.path.read_text(encoding="utf-8")
    assert "untrained" not in text
    assert f"timm/{NAME}" in text


def test_explain_without_weights_warns(tmp_path, photograph):
    with pytest.warns(MuntinWarning, match=r"fresh weights.*HF_ENDPOINT"):
        page = muntin.explain("vit_tiny", photograph, tmp_path / "page", sections="cut")
    assert "untrained" in page.path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_weights_without_a_classifier_give_features_only(tmp_path, photograph):
    name = "vit_small_patch14_dinov2"
    state = muntin.to_dialect(muntin.create_model(name, num_classes=0), "timm")
    write_weights(tmp_path / f"{name}.safetensors", state)
    with pytest.raises(ConfigError, match="classifier"):
        muntin.load(name)
    table = muntin.embed(name, photograph, device="cpu")
    assert table.rows.shape == (1, 384)
