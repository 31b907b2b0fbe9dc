# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a request is said before any data is read."""

from __future__ import annotations

import pytest
from PIL import Image

from muntin.errors import ConfigError, MuntinWarning
from muntin.synthetic.datasets import write_coco
from muntin.train_config import MachineConfig
from muntin.training.request import Request, read_config
from muntin.training.setup import prepare
from tests.detectors import train_detector


def ask(task, **more):
    return prepare(
        Request(task=task, data="nowhere", out="nowhere", machine=MachineConfig(), **more)
    )


@pytest.mark.parametrize(
    ("task", "head", "text"),
    [
        ("detect", "mask_rcnn", "'mask_rcnn'.*instance.*detect"),
        ("instance", "fcos", "'fcos'.*detect.*instance"),
        ("detect", "fcoss", "'fcoss'.*'fcos'"),
        ("classify", "fcos", "classify.*'fcos'"),
    ],
)
def test_heads(task, head, text):
    with pytest.raises(ConfigError, match=text):
        ask(task, head=head)


def test_images_that_are_too_small():
    with pytest.raises(ConfigError, match=r"img_size.*32.*\(1, 1\)"):
        ask("detect", img_size=(1, 1))


@pytest.mark.parametrize("name", ["class_weights", "label_smoothing"])
def test_settings_without_effect(name):
    with pytest.raises(ConfigError, match=rf"train\.{name}.*detect"):
        ask("detect", settings=((f"train.{name}", "0.1" if name[0] == "l" else "true"),))


def test_processes_are_some_for_each_core():
    request = Request(
        task="classify", data="nowhere", out="nowhere",
        machine=MachineConfig(device="cpu", devices=4096),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"--devices"):
        prepare(request)


def test_location_loss_has_no_effect_on_pretraining():
    with pytest.raises(ConfigError, match=r"train\.location_loss.*pretrain"):
        ask("pretrain", settings=(("train.location_loss", "0.5"),))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("learning_rat", "train.learning_rate"),
        ("train.learning_rat", "train.learning_rate"),
        ("epoch", "train.epochs"),
        ("machine.devic", "machine.device"),
        ("model.num_head", "model.num_heads"),
    ],
)
def test_a_misspelt_setting_is_answered_with_its_group(name, near):
    with pytest.raises(ConfigError, match=rf"'{name}'.*'{near}'"):
        ask("classify", model="swin_nano", settings=((name, "1"),))


@pytest.mark.parametrize("text", ["", '{"schema": 2,', "[1]", '{"task": classify}'])
def test_a_config_that_is_no_json_is_named_with_the_place(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json.*(line 1 column \d+|list)"):
        read_config(path)


def test_recipes_of_other_tasks():
    with pytest.raises(ConfigError, match="'imagenet'"):
        ask("detect", recipe="imagenet")
    with pytest.raises(ConfigError, match="'coco-3x'"):
        ask("classify", recipe="coco-3x")


def test_images_annotated_at_another_size_are_left_out(tmp_path):
    data = write_coco(tmp_path / "data", num_train=3, num_val=1, size=(64, 64))
    wrong = data / "train" / "00001.jpg"
    with Image.open(wrong) as opened:
        opened.resize((32, 40)).save(wrong)
    with pytest.warns(MuntinWarning, match="1 of 3 "):
        train_detector("detect", data, tmp_path / "run", epochs=1)
