# SPDX-License-Identifier: Apache-2.0
"""The command line for segmentation: end to end, JSON, and one line per error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from muntin.run_lengths import decode_mask
from muntin.scoring.evaluation import evaluate
from muntin.synthetic.datasets import write_coco, write_maps
from muntin.train_config import MachineConfig
from muntin.training.request import Request
from muntin.training.setup import prepare
from tests.commands.cli_errors import fails_with
from tests.detectors import BODY, BODY_SETTINGS, train_dense

OPTIONS = [
    *(f"--set={name}={value}" for name, value in {**BODY_SETTINGS, "head.channels": 16}.items()),
    "--model", BODY, "--weights=none", "--img-size=64", "--batch-size=4", "--precision=fp32",
    "--device=cpu", "--epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_maps(folder, num_train=6, num_val=2, size=(64, 80))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that nobody changes, but for what eval draws."""
    return train_dense("semantic", data, tmp_path_factory.mktemp("runs") / "maps", epochs=1).path


def test_end_to_end(muntin, data, tmp_path):
    assert muntin("check", "semantic", data)[0] == 0
    run = tmp_path / "run"
    assert muntin("train", "semantic", data, "--out", run, *OPTIONS)[0] == 0
    figures = json.loads(muntin("eval", run, data, "--json")[1])
    assert {"miou", "pixel_accuracy", "iou", "class_names"} <= figures.keys()
    drawn = tmp_path / "drawn"
    words = ["predict", run, data / "images" / "val", "--out", drawn, "--tta", "--tile=64"]
    code, stdout, _ = muntin(*words, "--scales=0.5,1")
    assert code == 0
    assert str(drawn) in stdout
    assert len(list(drawn.glob("*_labels.png"))) == 2
    assert len(list(drawn.glob("*.png"))) == 4


def test_json(muntin, run, data):
    found = json.loads(muntin("predict", run, data / "images" / "val", "--json")[1])
    assert [one["size"] for one in found] == [[64, 80]] * 2
    masks = [decode_mask(row["mask"]) for row in found[0]["semantic"]]
    assert (np.sum(masks, axis=0) == 1).all(), "every pixel has one class"


def test_wrong_words(muntin, run, data, tmp_path):
    image = data / "images" / "val" / "00000.jpg"
    assert fails_with(muntin("predict", run, image, "--scales=big"), "--scales", "big")
    assert fails_with(muntin("predict", run, image, "--scales=0"), "scales", "0")
    words = ["train", "semantic", data, "--out", tmp_path / "other"]
    assert fails_with(muntin(*words, "--head=mask_rcnn"), "mask_rcnn", "instance")
    assert fails_with(muntin(*words, "--set=data.colors=a:#12"), "data.colors")
    assert fails_with(muntin("train", "semantic", tmp_path / "none"), "none")


def broken(root, how):
    """A data set that cannot be learnt from."""
    write_maps(root, num_train=3, num_val=1, size=(64, 80))
    for path in root.rglob("masks/**/*.png"):
        labels = np.asarray(Image.open(path))
        if how == "photographs":
            values = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
            Image.fromarray(values).save(path)
        if how == "other sizes":
            Image.fromarray(labels[:40].copy()).save(path)
        if how == "numbers beyond the names":
            Image.fromarray(labels + np.uint8(100)).save(path)
            (root / "classes.txt").write_text("background\ndisc\n", encoding="utf-8")
        if how == "broken":
            path.write_bytes(b"no image")
        if how == "no masks":
            path.unlink()
    return root


BROKEN = {
    "photographs": "data.",
    "other sizes": "(40, 80)",
    "numbers beyond the names": "10",
    "broken": ".png",
    "no masks": "mask",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", BROKEN)
def test_broken_data(muntin, tmp_path, how):
    data = broken(tmp_path / "data", how)
    assert muntin("check", "semantic", data)[0] == 1
    code, _, stdout = muntin("train", "semantic", data, "--out", tmp_path / "run", *OPTIONS)
    assert code == 1
    assert BROKEN[how] in stdout
    assert "Traceback" not in stdout


def test_masks_of_objects(tmp_path):
    data = write_coco(tmp_path / "data", num_train=4, num_val=2, size=(48, 64))
    run = train_dense("semantic", data, tmp_path / "run", epochs=1)
    names = json.loads((run.path / "classes.json").read_text())["names"]
    assert names[0] == "background"
    figures = evaluate(run.path, data, pictures=False)
    assert figures["miou"] == pytest.approx(run.metrics["miou"], abs=1e-6)


def test_check_reads_masks_as_training_would(muntin, tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        noise = Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8))
        noise.save(tmp_path / "images" / f"{number}.png")
        mask = np.zeros((40, 40, 3), np.uint8)
        mask[:20] = (0x6E, 0xC1, 0xE4)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    setting = "--set=data.colors=road:#6EC1E4"
    stdout = muntin("check", "semantic", tmp_path, setting, "--set=data.ignored=#000000")[1]
    assert "road" in stdout
    result = muntin("check", "semantic", tmp_path, "--set=data.colours=a:#123456")
    assert fails_with(result, "colors")


def test_labels_are_written_at_full_size(muntin, run, data, tmp_path):
    out = tmp_path / "out"
    assert muntin("predict", run, data / "images" / "val", "--out", out)[0] == 0
    (first, _) = sorted(out.glob("*_labels.png"))
    written = np.asarray(Image.open(first))
    assert written.shape == (64, 80)
    found = json.loads(muntin("predict", run, data / "images" / "val", "--json")[1])
    for row in found[0]["semantic"]:
        assert ((written == row["id"]) == decode_mask(row["mask"])).all()


def test_options_without_effect_on_segmentation(muntin, run, data):
    image = data / "images" / "val" / "00000.jpg"
    assert fails_with(muntin("predict", run, image, "--threshold=0.5"), "--threshold")
    assert fails_with(muntin("predict", run, image, "--select=iou=0.5"), "--select")


def test_unknown_background_class(muntin, tmp_path):
    other = write_coco(tmp_path / "objects", num_train=2, num_val=2, size=(48, 64))
    labels = tmp_path / "maps"
    write_maps(labels, num_train=4, num_val=2, size=(48, 64))
    (labels / "classes.txt").write_text(
        "\n".join(("floor", "cross", "disc", "ring", "square", "star", "triangle"))
    )
    out = tmp_path / "floors"
    train_dense("semantic", labels, out, epochs=1)
    assert fails_with(muntin("eval", out, other), "'background'", "data.ignored=background")
    words = ["eval", out, other, "--json"]
    assert muntin(*words, "--set=data.ignored=background")[0] == 0


def test_weights_of_a_run_with_other_classes(run, data, tmp_path):
    other = tmp_path / "other"
    write_maps(other, num_train=4, num_val=2, size=(64, 80))
    names = ("triangle", "background", "cross", "disc", "ring", "square", "star")
    (other / "classes.txt").write_text("\n".join(names))

    def prepared(source):
        machine = MachineConfig(device="cpu", precision="fp32")
        request = Request(
            task="semantic", data=str(source), out="nowhere", weights=str(run), machine=machine
        )
        return prepare(request)

    state = load_file(run / "weights.safetensors")
    for source, same in ((data, True), (other, False)):
        found = prepared(source)
        assert any("order" in note for note in found.notes) != same
        new = found.network.state_dict()
        changed = {name for name, tensor in state.items() if not tensor.equal(new[name])}
        assert bool(changed) != same
        assert not [name for name in changed if name.startswith("backbone.")]
