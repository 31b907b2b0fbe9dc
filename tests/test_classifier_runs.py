# SPDX-License-Identifier: Apache-2.0
"""A fine-tuned classifier of another library becomes a run that predicts what it does there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models._hub import save_for_hf

import muntin
from muntin.commands import main
from muntin.errors import ConfigError, MuntinWarning, WeightError
from muntin.published import open_published
from muntin.runs import Run
from muntin.weights.weight_files import read_weights, write_weights
from muntin.zoo.published_classifier import imagenet_names

NAMES = ("buttercup", "daisy", "rose")


@pytest.fixture(scope="module", params=[(97, 151), (140, 83), (64, 64)], ids=str)
def photograph(request):
    """Blobs of colour, with some noise, of one size after the other."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8))
    smooth = np.asarray(small.resize(request.param[::-1], Image.Resampling.BICUBIC), float)
    noisy = smooth + rng.normal(0, 8, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large in the classifier, so that other pixels give other probabilities.
            spread = 0.5 if parameter.ndim < 2 or name.startswith(("classifier", "head")) else 0.05
            parameter.normal_(0, spread)
    return model.eval()


def check(folder, image, expected, tmp_path):
    """Compare probabilities by name with those of the other library."""
    image.save(tmp_path / "image.png")
    found = muntin.load(folder)(tmp_path / "image.png")[0]
    ours = dict(zip(found.class_names, found.scores, strict=True))
    assert ours.keys() == set(expected)
    assert max(abs(ours[name] - score) for name, score in expected.items()) < 1e-4


PROCESSORS = {
    "stretched": lambda: transformers.ViTImageProcessor(size={"height": 64, "width": 64}),
    "stretched and cut": lambda: transformers.DeiTImageProcessor(
        size={"height": 73, "width": 73}, crop_size={"height": 64, "width": 64}
    ),
    "by the shorter side": lambda: transformers.BitImageProcessor(
        size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}
    ),
    "ConvNext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 64}),
    "scaled otherwise": lambda: transformers.ViTImageProcessor(
        size={"height": 64, "width": 64}, rescale_factor=1 / 127, do_normalize=False, resample=3
    ),
}


@pytest.fixture(scope="module")
def classifier():
    config = transformers.ViTConfig(
        image_size=64, patch_size=16, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, id2label=dict(enumerate(NAMES)), hidden_act="gelu_new",
    )  # fmt: skip
    return randomise(transformers.ViTForImageClassification(config))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_folder_of_transformers(kind, classifier, photograph, tmp_path):
    processor = PROCESSORS[kind]()
    classifier.save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    run, report = open_published(tmp_path / "theirs", tmp_path / "run")
    assert run.classes.names == NAMES
    assert "config.json" in report.summary()
    with torch.no_grad():
        logits = classifier(**processor(photograph, return_tensors="pt")).logits[0]
    check(tmp_path / "run", photograph, _by_name(logits), tmp_path)


def _by_name(logits):
    return dict(zip(NAMES, logits.double().softmax(0).tolist(), strict=True))


@pytest.mark.parametrize(
    "images",
    [
        {"crop_pct": 0.9, "interpolation": "bicubic"},
        {"crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"},
        {"crop_pct": 1.0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    ],
    ids=lambda images: images.get("crop_mode", str(images["crop_pct"])),
)
def test_a_folder_of_timm(images, photograph, tmp_path):
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=4, num_classes=3,
        pretrained_cfg_overlay={"input_size": (3, 64, 64), **images},
    )  # fmt: skip
    randomise(theirs)
    stated = {"label_names": list(NAMES)}
    save_for_hf(theirs, tmp_path / "theirs", model_config=stated, safe_serialization=True)
    run, _ = open_published(tmp_path / "theirs", tmp_path / "run")
    assert run.config.model_name == "vit_tiny_patch16_224"
    transform = create_transform(**resolve_data_config(model=theirs))
    with torch.no_grad():
        logits = theirs(transform(photograph)[None])[0]
    check(tmp_path / "run", photograph, _by_name(logits), tmp_path)


@pytest.fixture(scope="module")
def of_torchvision(tmp_path_factory):
    """A model of torchvision, and the run that its file becomes."""
    folder = tmp_path_factory.mktemp("torchvision")
    theirs = torchvision.models.swin_t()
    theirs.head = torch.nn.Linear(768, 3)
    randomise(theirs)
    write_weights(folder / "swin.safetensors", theirs.state_dict())
    run, _ = open_published(
        folder / "swin.safetensors", folder / "run", model="swin_t", class_names=NAMES
    )
    return theirs, run.path


def test_a_model_of_torchvision(of_torchvision, photograph, tmp_path):
    theirs, run = of_torchvision
    transform = torchvision.models.Swin_T_Weights.DEFAULT.transforms()
    with torch.no_grad():
        logits = theirs(transform(photograph)[None])[0]
    check(run, photograph, _by_name(logits), tmp_path)


def _command(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return ended.value.code, capsys.readouterr()


def test_from_the_command_line(classifier, tmp_path, capsys):
    classifier.save_pretrained(tmp_path / "theirs")
    PROCESSORS["stretched"]().save_pretrained(tmp_path / "theirs")
    code, shown = _command(capsys, "convert", tmp_path / "theirs", tmp_path / "run", "--to", "run")
    assert code == 0
    assert "buttercup, daisy, rose" in shown.out
    assert "stretch" in shown.out
    # Written for another library: what no parameter shows is said.
    words = ("convert", tmp_path / "theirs", tmp_path / "timm.safetensors", "--to", "timm")
    code, shown = _command(capsys, *words)
    assert code == 0
    assert "norm_eps=1e-12, activation='gelu_tanh'" in shown.out


def test_head_rows(tmp_path, capsys):
    model = muntin.create_model(
        "vit_tiny", num_classes=5, img_size=32, embed_dim=24, depth=1, num_heads=2
    ).eval()
    torch.nn.init.normal_(model.head.fc.weight)
    write_weights(tmp_path / "a.safetensors", muntin.to_dialect(model, "timm"))
    (tmp_path / "rows.txt").write_text("4\n0\n2\n")
    shape = [f"--set={field}" for field in ("img_size=32", "embed_dim=24", "depth=1")]
    shape += ["--set=num_heads=2", "--model=vit_tiny", "--head-rows", tmp_path / "rows.txt"]
    for target, to in (("b.safetensors", "timm"), ("run", "run")):
        code, _ = _command(
            capsys, "convert", tmp_path / "a.safetensors", tmp_path / target, "--to", to, *shape
        )
        assert code == 0
    rows = model.head.fc.weight[[4, 0, 2]]
    written = read_weights(tmp_path / "b.safetensors").tensors
    assert written["head.weight"].equal(rows)
    run = Run.open(tmp_path / "run")
    assert run.load_network().head.fc.weight.equal(rows)
    assert run.classes.names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"resample": 0}, "0"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"shortest_edge": 64}}, "shortest_edge"),
    ],
)
def test_images_that_cannot_be_prepared_so(values, text, classifier, tmp_path):
    theirs = tmp_path / "theirs"
    classifier.save_pretrained(theirs)
    images = {"image_processor_type": "ViTImageProcessor", "size": 64, **values}
    (theirs / "preprocessor_config.json").write_text(json.dumps(images))
    with pytest.raises(ConfigError, match=rf"{text}.*preprocessor_config\.json"):
        open_published(theirs, tmp_path / "run")
    # The advice: without the file.
    (theirs / "preprocessor_config.json").unlink()
    run, _ = open_published(theirs, tmp_path / "run")
    assert run.preprocessing.fit == "center_crop"


def test_what_is_not_known_is_asked_for(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").unlink()
    with pytest.raises(ConfigError, match="--model"):
        open_published(tmp_path / "theirs", tmp_path / "run")
    config = classifier.config.to_dict()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"--classes.*3"):
        open_published(tmp_path / "theirs", tmp_path / "run", class_names=("one",))
    headless = transformers.ViTModel(classifier.config)
    headless.save_pretrained(tmp_path / "body")
    with pytest.raises(ConfigError, match="classifier"):
        open_published(tmp_path / "body", tmp_path / "run")


def _edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"0": "a", "1": "b"}, "3 classes.*2"),
        ({"0": "a", "1": "b", "3": "c"}, "id2label.* 2"),
        ({"0": "a", "1": "b", "2": None}, "id2label.* 2"),
    ],
)
def test_names_that_are_not_those_of_all_classes(labels, text, classifier, tmp_path):
    theirs = tmp_path / "theirs"
    classifier.save_pretrained(theirs)
    _edit(theirs / "config.json", id2label=labels)
    with pytest.raises(ConfigError, match=rf"{text}.*--classes"):
        open_published(theirs, tmp_path / "run")
    run, _ = open_published(theirs, tmp_path / "run", class_names=NAMES)  # the advice
    assert run.classes.names == NAMES


def test_repeated_names_are_said(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "theirs")
    with pytest.warns(MuntinWarning, match=r"same name: rose\."):
        open_published(tmp_path / "theirs", tmp_path / "a", class_names=("rose", "daisy", "rose"))


def test_a_classifier_of_several_layers_is_named(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = dict(read_weights(file).tensors)
    tensors["classifier.2.weight"] = torch.ones(3, 48)
    tensors["classifier.0.weight"] = tensors.pop("classifier.weight")
    tensors["classifier.0.bias"] = tensors.pop("classifier.bias")
    write_weights(file, tensors)
    with pytest.raises(ConfigError, match=r"48.*classifier\.0\.bias"):
        open_published(tmp_path / "theirs", tmp_path / "run")
    with pytest.raises(WeightError, match="Swin"):  # of another family
        open_published(tmp_path / "theirs", tmp_path / "run", model="swin_nano")


def test_another_model_type_is_named(classifier, tmp_path):
    theirs = tmp_path / "theirs"
    classifier.save_pretrained(theirs)
    _edit(theirs / "config.json", model_type="data2vec-vision")
    with pytest.raises(ConfigError, match=r"'data2vec-vision'.*--model"):
        open_published(theirs, tmp_path / "run")
    fields = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    settings = {name: str(value) for name, value in fields.items()}
    run, _ = open_published(theirs, tmp_path / "run", model="vit_tiny", settings=settings)
    assert run.classes.names == NAMES


def test_images_of_dense_tasks_and_of_timm_are_refused_too(classifier, tmp_path):
    theirs = tmp_path / "theirs"
    classifier.save_pretrained(theirs)
    (theirs / "preprocessor_config.json").write_text('{"image_processor_type": "Levit"}')
    with pytest.raises(ConfigError, match=r"'Levit'.*preprocessor_config\.json"):
        open_published(theirs, tmp_path / "run", head="upernet", class_names=NAMES)
    small = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=1, num_heads=4, num_classes=3
    )
    save_for_hf(small, tmp_path / "timm", safe_serialization=True)
    config = tmp_path / "timm" / "config.json"
    stated = json.loads(config.read_text())["pretrained_cfg"]
    _edit(config, pretrained_cfg={**stated, "crop_mode": "border"})
    with pytest.raises(ConfigError, match=r"crop_mode.*'border'.*config\.json"):
        open_published(tmp_path / "timm", tmp_path / "run")
    _edit(config, pretrained_cfg={**stated, "crop_mode": "squash"})  # the advice
    assert open_published(tmp_path / "timm", tmp_path / "run")[0].preprocessing.fit == "stretch"


def test_imagenet_has_1000_names():
    assert len(imagenet_names()) == len(set(imagenet_names())) == 1000
