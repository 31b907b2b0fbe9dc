# SPDX-License-Identifier: Apache-2.0
"""``muntin pretrain``, and what other verbs say of its runs."""

from __future__ import annotations

import json

import pytest

from tests.commands.cli_errors import fails_with
from tests.small import write_images

TINY = [
    "--model", "vit_tiny_patch16_224", "--img-size", "16", "--device", "cpu", "--precision", "fp32",
    *(f"--set={row}" for row in (
        "model.embed_dim=16", "model.depth=2", "model.num_heads=2", "model.patch_size=4",
        "head.dim=16", "head.depth=1", "head.num_heads=2", "machine.workers=0",
    )),
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "pre run"


def test_pretrain_and_what_follows(muntin, images, out):
    code, text, _ = muntin("pretrain", images, "--out", out, "--epochs", 1, *TINY)
    assert code == 0
    assert "objective: mae" in text
    assert f"muntin pretrain {images} --resume --out '{out}' --probe" in text
    assert f"next: muntin train TASK DATA --weights '{out}'" in text
    code, text, _ = muntin("pretrain", images, "--out", out, "--resume", "--probe", images)
    assert code == 0
    assert "20 steps each" in text
    for arguments in (
        ("predict", out, images),
        ("eval", out, images),
        ("explain", out, images / "ash" / "0.png"),
        ("export", out, out / "model.onnx", "--format", "onnx"),
    ):
        assert fails_with(muntin(*arguments), f"muntin train TASK DATA --weights '{out}'")


def test_check(muntin, tmp_path):
    data = write_images(tmp_path / "set", each=2)
    assert muntin("check", "pretrain", data)[0] == 0
    (data / "ash" / "0.png").write_bytes(b"no image")
    code, text, _ = muntin("check", "pretrain", data, "--json")
    (problem,) = [row for row in json.loads(text)["problems"] if row["severity"] == "error"]
    assert (code, problem["file"]) == (1, "ash/0.png")


def test_plan(muntin, images):
    code, text, _ = muntin("plan", "pretrain", images, "--objective", "mae", "--json", *TINY)
    plan = json.loads(text)
    assert (code, plan["task"], plan["model"]) == (0, "pretrain", "vit_tiny_patch16_224")
    assert plan["peak"] > plan["parameters"] > 0
    assert plan["step_s"] > 0
    code, _, text = muntin("plan", "pretrain", images, "--freeze", 9, "--epochs", 1, *TINY)
    assert code == 1
    assert "train.freeze must be at most 2" in text


def test_wrong_input(muntin, images, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, named in (
        (("pretrain", tmp_path / "empty"), "0 images"),
        (("pretrain", tmp_path / "lacks"), "lacks"),
        (("pretrain", images, "--objective", "dino"), "dino"),
        (("pretrain", images, "--probe", tmp_path / "empty"), "--probe"),
        (("pretrain", images, "--part", "teacher"), "Name it with --weights"),
        (("pretrain", images, "--weights", "none", "--part", "teacher"), "Name it with --weights"),
        (("train", "pretrain", images), "muntin pretrain IMAGES"),
        (("demo", "pretrain"), "muntin pretrain IMAGES"),
    ):
        assert fails_with(muntin(*arguments), named)
