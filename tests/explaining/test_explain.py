# SPDX-License-Identifier: Apache-2.0
"""From models and images to a page; the model is not modified."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import muntin
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, DataError, MuntinWarning, RunError
from muntin.explaining import SECTIONS
from muntin.explaining.explanation import EXPLAINERS, model_notes
from muntin.explaining.figures import find_text
from muntin.explaining.inputs import (
    check_point,
    check_target,
    is_fresh,
    list_images,
    open_context,
    open_model,
)
from muntin.explaining.page import clean_stem
from muntin.prediction.from_run import find_threshold
from muntin.prediction.predictor import Predictor
from muntin.results import DEFAULT_SCORE_THRESHOLD
from muntin.run_lengths import decode_mask
from muntin.runs import Run
from muntin.samples import Classes
from muntin.synthetic.datasets import write_coco, write_frames, write_maps
from muntin.tasks.task_table import find_task
from tests.detectors import BODY, BODY_SETTINGS, tiny_detector, train_detector
from tests.explaining.small_contexts import assert_untouched, state_of
from tests.explaining.small_networks import build
from tests.small import CLASSES, image, train_small, write_images

NOT_COST = tuple(section for section in SECTIONS if section != "cost")
SMALL = {
    "swin_nano": {"depths": (2, 2), "num_heads": (1, 2), "embed_dim": 16, "img_size": 32},
    "vit_tiny": {"depth": 2, "img_size": 32},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_small(data, tmp_path_factory.mktemp("runs") / "trees").path


@pytest.mark.parametrize(
    ("name", "mode"),
    [("swin_nano", torch.inference_mode), ("vit_tiny", torch.enable_grad)],
)
def test_model_is_unchanged(name, mode, tmp_path):
    network = muntin.create_model(name, num_classes=3, drop_path_rate=0.1, **SMALL[name])
    network.head.fc.eval()  # a mode of its own
    for number, parameter in enumerate(network.parameters()):
        parameter.requires_grad = number % 3 > 0
        parameter.grad = torch.ones_like(parameter) if number % 2 else None
    images = torch.randn(2, 3, 32, 48)
    network.backbone.eval()
    with torch.no_grad():
        before = network(images)
    network.train()
    network.head.fc.eval()
    state = state_of(network)
    generator = torch.get_rng_state()
    sections = ("attention", "decision", "features")
    with mode():
        page = muntin.explain(network, image(0, 0, 40), tmp_path, sections=sections)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert torch.equal(torch.get_rng_state(), generator)
    assert page.path.is_file()
    assert_untouched(state, network)
    network.backbone.eval()
    with torch.no_grad():
        assert torch.equal(network(images), before)


@pytest.fixture(scope="module")
def whole(run, data, tmp_path_factory):
    """A page with all sections but the cost, and its progress messages; built once."""
    messages = []
    page = muntin.explain(
        run, data / "ash" / "0.png", tmp_path_factory.mktemp("whole") / "out", say=messages.append,
        folder=data / "birch", compare=run, sections=NOT_COST,
    )  # fmt: skip
    return page, messages


@pytest.fixture(scope="module")
def exported(run, data, tmp_path_factory):
    """The same for an exported file."""
    folder, messages = tmp_path_factory.mktemp("exported"), []
    file = muntin.export(run, folder / "trees.pt2", format="torch").path
    page = muntin.explain(
        file, data / "ash" / "0.png", folder / "out", folder=data, sections=NOT_COST,
        say=messages.append,
    )  # fmt: skip
    return page, messages


def test_files_are_stored_next_to_the_page(whole):
    page, _ = whole
    out = page.path.parent
    assert {json.loads(p.read_text())["section"] for p in page.files if p.suffix == ".json"} == set(
        NOT_COST
    )
    assert page.path == out / "page.html"
    assert not list(out.rglob("*.partial"))
    folder = out / "0"
    assert {path.parent for path in page.files} == {folder}
    images = sorted(folder.glob("*.png"))
    assert images
    for path in images:
        with Image.open(path) as figure:
            assert min(figure.size) > 100
            assert figure.size[0] <= 1200
        assert path.with_suffix(".svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
        words = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert words["text"]
        assert words["section"] in SECTIONS
        data_file = path.with_suffix(".npz")
        if data_file.is_file():
            with np.load(data_file) as arrays:
                assert len(arrays.files) > 0
    text = page.path.read_text(encoding="utf-8")
    assert len(text) < 10e6
    assert all(name in text for name in CLASSES[:1])


def test_several_images(run, data, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    places = [data / "ash" / "0.png", data / "birch" / "0.png", broken]
    with pytest.warns(MuntinWarning, match=r"broken\.png"):
        page = muntin.explain(run, places, tmp_path / "out", sections="cut")
    assert page.left_out == (str(broken),)
    assert {path.parent.name for path in page.files} == {"ash_0", "birch_0"}
    text = page.path.read_text(encoding="utf-8")
    assert all(title in text for title in ("ash/0.png", "birch/0.png"))
    with pytest.raises(DataError, match="broken"):
        muntin.explain(run, broken, tmp_path / "out", sections="cut")


def test_input_equals_that_of_prediction(run, data):
    path = data / "cedar" / "1.png"
    context = open_context(open_model(run), path)
    (result,) = muntin.load(run, device="cpu")(path)
    found = context.prediction
    np.testing.assert_array_equal(found.class_ids, result.class_ids)
    np.testing.assert_allclose(found.scores, result.scores, rtol=1e-6)
    assert torch.equal(context.network(context.images), context.network(context.images))


def test_drawings_have_the_threshold_of_the_run():
    run = Run.open(Path(__file__).parents[1] / "golden" / "old" / "instance")
    wanted = find_threshold(run).score
    assert wanted != DEFAULT_SCORE_THRESHOLD
    for source in (run, muntin.load(run, device="cpu")):
        context = open_context(open_model(source), image(1, 2, 64))
        assert context.prediction.threshold == wanted


def test_points():
    pixels = np.zeros((40, 100, 3), np.uint8)
    context = open_context(open_model("swin_nano"), pixels, point=(0.35, 0.5))
    assert context.point == (0.35, 0.5)
    with pytest.raises(ConfigError, match=r"point .*1\.1,0\.5"):
        open_context(open_model("swin_nano"), pixels, point=(1.1, 0.5))


@pytest.mark.parametrize("size", [(300, 500), (64, 64)])
def test_large_image_is_explained_in_a_window(size, data, run):
    model = open_model(run)
    pre = Preprocessing(
        img_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, fit="sliding_window", scale=0.5
    )
    task, classes = find_task("semantic"), Classes(names=CLASSES)
    predictor = Predictor(model.network, task, classes, pre, device="cpu")
    model = replace(model, predictor=predictor)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    context = open_context(model, pixels, point=(0.9, 0.5))
    if size == (64, 64):
        assert context.shown_size == (32, 32)
        assert context.size == size
        return
    assert context.shown_size == (64, 64)
    assert context.size == (128, 128)
    np.testing.assert_array_equal(context.pixels, pixels[86:214, 372:500])
    assert context.point == pytest.approx((78 / 128, 64 / 128), abs=0.02)


def test_random_weights_are_reported_and_reproducible(tmp_path):
    one, other = open_model("swin_nano"), open_model("swin_nano")
    for left, right in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(left, right)
    pixels = np.zeros((32, 32, 3), np.uint8)
    page = muntin.explain("swin_nano", pixels, tmp_path, sections="cut")
    assert "fresh" in page.path.read_text(encoding="utf-8")


def test_targets(run, data):
    model, path = open_model(run), data / "ash" / "0.png"
    assert open_context(model, path, target="birch").target == 1
    assert open_context(model, path, target="2").target == 2
    assert open_context(model, path, target=0).target == 0
    with pytest.raises(ConfigError, match=r"'brich'.*'birch'"):
        open_context(model, path, target="brich")
    with pytest.raises(ConfigError, match=r"0 to 2.*\b3\b"):
        open_context(model, path, target=3)


def test_a_grey_model(tmp_path):
    network = muntin.create_model("swin_nano", num_classes=2, in_chans=1, **SMALL["swin_nano"])
    sections = ("cut", "attention", "decision", "features")
    page = muntin.explain(network, image(0, 0, 40), tmp_path, sections=sections)
    reasons = {
        json.loads(path.read_text())["section"] for path in page.files if path.suffix == ".json"
    }
    assert reasons == set(sections)


def test_13_channels_report_available_sections(tmp_path):
    kept = tuple(explainer for explainer in EXPLAINERS if explainer.section != "cost")
    network = muntin.create_model("swin_nano", num_classes=2, in_chans=13, **SMALL["swin_nano"])
    pixels = np.asarray(image(0, 0, 40))
    page = muntin.explain(network, pixels, tmp_path, sections=NOT_COST)
    reasons = [missing.reason for missing in page.missing if "13 channels" in missing.reason]
    assert len(reasons) == len(
        [explainer for explainer in kept if explainer.needs_forward and not explainer.requires]
    )
    assert all(find_text("sections", "cut") in reason for reason in reasons)


@pytest.mark.parametrize("name", ["swin_nano", "vit_tiny"])
def test_image_smaller_than_a_window(name, tmp_path):
    model = muntin.create_model(name, num_classes=2, **SMALL[name])
    sections = ("cut", "attention")
    pixels = np.zeros((5, 3, 3), np.uint8)
    page = muntin.explain(model, pixels, tmp_path, img_size=(8, 6), sections=sections)
    assert {path.stem.split("-")[0] for path in page.files} == set(sections)


def test_unsupported_image_size(tmp_path):
    network = muntin.create_model("vit_tiny", num_classes=2, size_rule="microsoft", depth=1)
    sections = ("cut", "attention")
    page = muntin.explain(network, image(0, 0, 40), tmp_path, img_size=(30, 40), sections=sections)
    assert {missing.section for missing in page.missing} >= {"attention"}


def test_no_files_remain_after_an_error(run, data, tmp_path):
    path, sections = data / "ash" / "0.png", ("cut", "positions")
    old = muntin.explain(run, path, tmp_path / "old", sections="cut")
    before = {one: one.read_bytes() for one in (tmp_path / "old").rglob("*") if one.is_file()}

    def stop(line):
        if line.endswith("Position embeddings"):
            raise KeyboardInterrupt

    for out in (tmp_path / "new", old.path.parent):
        with pytest.raises(KeyboardInterrupt):
            muntin.explain(run, path, out, sections=sections, say=stop)
    assert not (tmp_path / "new").exists()
    after = {one: one.read_bytes() for one in (tmp_path / "old").rglob("*") if one.is_file()}
    assert after == before
    assert [one.name for one in (tmp_path / "old").iterdir() if one.name[0] == "."] == []


def test_progress_messages_name_explainers_that_run(whole, exported, data, run, tmp_path):
    def titles(messages):
        return {line.partition(": ")[2] for line in messages}

    assert titles(whole[1]) == {one.title for one in EXPLAINERS if one.section != "cost"}
    assert titles(exported[1]) == {one.title for one in EXPLAINERS if one.section == "decision"}
    messages, path = [], data / "ash" / "0.png"
    sections = ("features", "comparison")
    muntin.explain(run, path, tmp_path / "out", sections=sections, say=messages.append)
    assert titles(messages) == {"Feature maps"}, "neither a folder nor another model was given"


def test_invalid_arguments(data, tmp_path):
    # The checks are called directly: jaxtyping enforces the signature of `explain` in tests.
    tensor = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for images, got in ((None, "NoneType"), (tensor, "Tensor of shape (3, 32, 32)"), ([3], "int")):
        with pytest.raises(DataError, match=re.escape(got)):
            list_images(images)
    with pytest.raises(ConfigError, match=r"point .*'x'"):
        check_point("x")
    for target in (1.5, True, (1,)):
        with pytest.raises(ConfigError, match="target"):
            check_target(target)
    path = data / "ash" / "0.png"
    with pytest.raises(ConfigError, match="num_classes=0"):
        muntin.explain(muntin.create_model("swin_nano", num_classes=0), path, tmp_path)


def test_one_section_as_a_string(run, data, tmp_path):
    page = muntin.explain(run, data / "ash" / "0.png", tmp_path, sections="cut")
    assert {path.name.partition("-")[0] for path in page.files} == {"cut"}
    with pytest.raises(ConfigError, match=r"'cuts'.*'cut'"):
        muntin.explain(run, data / "ash" / "0.png", tmp_path, sections="cuts")


@pytest.mark.parametrize("target", [99, "square"])
def test_missing_box(target, tmp_path):
    names = ("cross", "ring", "square")
    network = tiny_detector("fcos_small", 3, task="detect").eval()
    with torch.no_grad():
        network.head.classes.bias[2] = -50  # never a square
    pre = Preprocessing(img_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, fit="letterbox")
    model = Predictor(network, find_task("detect"), Classes(names=names), pre, device="cpu")
    images, out = [image(0, 0, 64), image(0, 1, 64)], tmp_path / "out"
    message = r"0 to 19\b.*99" if target == 99 else "'square'"
    for given in (images[0], images):
        with pytest.raises(ConfigError, match=message):
            muntin.explain(model, given, out, target=target, sections="decision")
    assert not out.exists()


def test_box_missing_in_one_of_several_images(tmp_path):
    network = tiny_detector("fcos_small", 3, task="detect").eval()
    pre = Preprocessing(img_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, fit="letterbox")
    classes = Classes(names=("cross", "ring", "square"))

    def model(threshold):
        config = network.head.config
        network.head.config = replace(
            config, select=replace(config.select, score_threshold=threshold)
        )
        return Predictor(network, find_task("detect"), classes, pre, device="cpu")

    images = [image(0, 0, 64), Image.new("RGB", (64, 64), (250, 10, 10))]
    best = [float(found.scores[0]) for found in model(0.0)(images)]
    assert abs(best[0] - best[1]) > 1e-3
    page = muntin.explain(
        model(sum(best) / 2), images, tmp_path, target=0, sections=("cut", "decision")
    )
    assert [missing.section for missing in page.missing] == ["decision"]
    places = ("image_1", "image_2")
    there = places[int(best[1] > best[0])]
    assert {path.parent.name for path in page.files if path.name[0] == "d"} == {there}
    assert {path.parent.name for path in page.files if path.name[0] == "c"} == {*places}


def test_timm_model_is_built_for_the_size(tmp_path):
    page = muntin.explain(
        "timm:test_vit", image(0, 0, 40), tmp_path, img_size=(64, 96), sections="cut"
    )
    facts = json.loads((tmp_path / "image_1" / "cut-patches.json").read_text())["facts"]
    assert facts["grid"] == [4, 6]
    network = muntin.create_model("timm:pit_ti_224", num_classes=2)  # takes one size only
    page = muntin.explain(network, image(0, 0, 40), tmp_path, img_size=(64, 64), sections="cut")
    assert not page.files
    assert re.search("pit_ti_224.*64 x 64", page.missing[0].reason)


def test_errors(run, data, tmp_path):
    path = data / "ash" / "0.png"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=re.escape(str(tmp_path / "file"))):
        muntin.explain(run, path, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"'atention'.*'attention'"):
        muntin.explain(run, path, tmp_path, sections=["atention"])
    with pytest.raises(ConfigError, match=r"'swin_nanoo'.*'swin_nano'"):
        muntin.explain("swin_nanoo", path, tmp_path)
    with pytest.raises(ConfigError, match="weights"):
        muntin.explain(run, path, tmp_path, weights="some.safetensors")
    with pytest.raises(ConfigError, match="classifier"):
        muntin.explain(muntin.create_segmenter("swin_nano", num_classes=2), path, tmp_path)
    with pytest.raises(DataError):
        muntin.explain(run, [], tmp_path)
    with pytest.raises(DataError, match=r"folder .*nothing"):
        muntin.explain(run, path, tmp_path, folder=tmp_path / "nothing")
    with pytest.raises(RunError, match=r"run .*nothing"):
        muntin.explain(tmp_path / "nothing", path, tmp_path)


def test_exported_file(exported):
    page, _ = exported
    assert page.path.is_file()
    for missing in page.missing:
        assert missing.reason
    assert any(missing.section == "attention" for missing in page.missing)


def test_folder_names():
    assert clean_stem("\u732b") == "image"
    taken = {"cat"}
    assert clean_stem("CAT", taken) == "CAT-2"


SETTINGS = {**BODY_SETTINGS, "head.channels": 16}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", ["instance", "semantic", "pose"])
def test_every_task(task, tmp_path):
    if task == "instance":
        data = write_coco(tmp_path / "data", num_train=4, num_val=4, size=(48, 64))
        run = train_detector(
            task, data, tmp_path / "run", epochs=1, settings={"head.select.score_threshold": 0.0}
        ).path
        images = sorted((data / "val").iterdir())[:2]
    else:
        write = write_maps if task == "semantic" else write_frames
        data = write(tmp_path / "data", num_train=6, num_val=2, size=(64, 80))
        run = muntin.train(
            task, data, out=tmp_path / "run", model=BODY, weights="none", img_size=64, epochs=1,
            batch_size=4, precision="fp32", device="cpu", quiet=True, settings=SETTINGS,
        ).path  # fmt: skip
        images = sorted(p for p in data.rglob("*.png") if "mask" not in str(p))[:2]
    page = muntin.explain(run, images, tmp_path / "out", compare=run, folder=images[0].parent)
    reasons = {json.loads(p.read_text())["section"] for p in page.files if p.suffix == ".json"}
    assert reasons == set(SECTIONS)
    assert {missing.section for missing in page.missing} == {"attention"}, page.missing
    assert len(set(page.missing)) == len(page.missing), "reported once for all images"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_instance_segmentation_run(tmp_path):
    data = write_coco(
        tmp_path / "data", num_train=16, num_val=1, size=(64, 64), max_objects=2,
        classes=("cross", "ring"), usual_colours=1.0, max_angle=0.1,
    )  # fmt: skip
    learning = {"train.learning_rate": 4e-3}
    run = train_detector("instance", data, tmp_path / "run", epochs=40, settings=learning).path
    image = data / "train" / "00000.jpg"
    (found,) = muntin.load(run, device="cpu")(image)
    assert found.scores[0] > 0.5, "it has learnt to find something"
    assert decode_mask(found.masks[0]).any()
    sections = ("decision", "comparison")
    page = muntin.explain(run, image, tmp_path / "out", compare=run, sections=sections)
    assert page.missing == ()
    folder = tmp_path / "out" / "00000"
    facts = json.loads((folder / "decision-activation.json").read_text())["facts"]
    name = found.class_names[0]
    assert facts["asked"] == f"the log-odds of box 0, {name} ({found.scores[0]:.2f})"
    np.testing.assert_allclose(facts["box_xyxy"], found.boxes[0], atol=0.01)
    reasons = json.loads((folder / "comparison-answers.json").read_text())["facts"]
    assert reasons["agreement"] == 1
    again = muntin.explain(run, image, tmp_path / "named", target=name, sections="decision")
    messages = json.loads(next(p for p in again.files if p.suffix == ".json").read_text())["facts"]
    assert messages["asked"] == facts["asked"]
    with pytest.raises(ConfigError, match=rf"0 to {len(found) - 1}\b"):
        muntin.explain(run, image, tmp_path / "none", target=len(found), sections="decision")


@pytest.mark.parametrize("family", ["swin", "swin_v2", "vit", "deit", "t2t", "hiera"])
def test_random_weights_are_detected(family):
    network = build(family)
    assert is_fresh(network)
    step = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.rand(2, 3, 64, 64)).square().sum().backward()
    step.step()
    assert not is_fresh(network)


def test_page_of_random_predictor_warns():
    network = build("swin")
    pre = Preprocessing(img_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    classes = Classes(names=("ash", "birch", "cedar"))
    for source in (Predictor(network, find_task("classify"), classes, pre, device="cpu"), network):
        model = open_model(source)
        assert not model.trained
        assert any("fresh" in note for note in model_notes(model))
