# SPDX-License-Identifier: Apache-2.0
"""Runs that learn from a teacher, from beginning to end."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric.plugins.precision import Precision
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

import muntin
from muntin.data.cache import ImageCache
from muntin.data.loading import TrainLoader
from muntin.errors import ConfigError, RunError, WeightError
from muntin.objectives.teacher_answer import SharedClasses
from muntin.published import open_published
from muntin.run_config import RunConfig
from muntin.runs import Run
from muntin.staging import checksum
from muntin.synthetic.datasets import write_classify, write_coco
from muntin.train_config import MachineConfig
from muntin.training.distillation import (
    add_teacher,
    check_teacher,
    open_teacher,
    resolve_distill,
)
from muntin.training.machine import build_fabric
from muntin.training.progress import Reporter
from muntin.training.request import Request
from muntin.training.run_objective import build_objective
from muntin.training.setup import prepare
from muntin.training.teacher_cache import TeacherImages, find_answers, store_answers
from muntin.weights.weight_files import write_weights
from tests.detectors import BODY, BODY_SETTINGS, head_settings
from tests.small import CLASSES, MODEL, SETTINGS, train_small, write_images
from tests.training.test_resume import journal_of, state_of

PLAIN = {"train.optimizer": "adamw", "train.start_size": 1}
ANSWERS = Path("teacher") / "answers.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory) -> Path:
    """A trained run that nobody changes."""
    return train_small(data, tmp_path_factory.mktemp("runs") / "teacher", epochs=3).path


@pytest.fixture(scope="module")
def cached(data, teacher, tmp_path_factory) -> Path:
    """A run with stored answers that nobody changes."""
    out = tmp_path_factory.mktemp("runs") / "cached"
    return train_small(data, out, teacher=teacher, settings={"distill.kind": "soft"}).path


def requested(data, teacher, task="classify", settings=None, **options) -> Request:
    machine = MachineConfig(device="cpu", precision="fp32", workers=0)
    chosen = {"model": MODEL, "img_size": (16, 16), "batch_size": 4, "weights": "none"}
    texts = tuple((name, str(value)) for name, value in {**SETTINGS, **(settings or {})}.items())
    return Request(
        task=task, data=str(data), out="nowhere", machine=machine, settings=texts,
        teacher=str(teacher), **{**chosen, **options},
    )  # fmt: skip


def told() -> tuple[Reporter, io.StringIO]:
    stream = io.StringIO()
    return Reporter(Console(file=stream, width=500)), stream


def test_a_run_says_what_it_learnt_from(cached, teacher):
    distill = Run.open(cached).config.distill
    assert distill is not None
    assert (distill.teacher, distill.kind, distill.alpha) == (str(teacher), "soft", 0.1)
    assert distill.checksum == checksum(teacher / "weights.safetensors")
    assert distill.cache == "on"
    assert not [name for name in load_file(cached / "weights.safetensors") if "teacher" in name]
    values = Run.open(cached).config.to_dict()
    assert RunConfig.from_dict(values) == Run.open(cached).config
    del values["distill"]  # as in files of earlier versions
    assert RunConfig.from_dict(values).distill is None


def test_stored_answers_are_what_the_teacher_predicts(cached, teacher, data):
    logits = load_file(cached / ANSWERS)["logits"]
    listing = prepare(requested(data, teacher)).train
    results = muntin.load(teacher, device="cpu")([data / entry.path for entry in listing.entries])
    assert logits.dtype == torch.float16
    for row, result in zip(logits.float().softmax(dim=1), results, strict=True):
        scores = dict(zip(result.class_names, result.scores.tolist(), strict=True))
        assert row.tolist() == pytest.approx([scores[name] for name in CLASSES], abs=1e-2)


SHARED = SharedClasses((0, 1, 2), (0, 1, 2))


def test_a_repeated_run_has_the_teacher_of_its_config(cached, data, teacher):
    config = Run.open(cached).config
    again = prepare(replace(requested(data, ""), base=config, weights="auto"))
    assert again.run.config.distill == config.distill
    other = replace(requested(data, cached), base=config, weights="auto")
    distill = prepare(other).run.config.distill
    assert (distill.teacher, distill.kind) == (str(cached), "soft")
    assert distill.checksum == checksum(cached / "weights.safetensors")


def stored(path, prepared, network=None, shared=SHARED):
    """The stored logits of a run, and what is said of them."""
    reporter, stream = told()
    config, listing = prepared.run.config, prepared.train
    opened = open_teacher(config.distill.teacher)
    opened = opened if network is None else replace(opened, network=network)
    file = find_answers(path, config.distill, opened, shared, listing)
    answers = store_answers(file, TeacherImages(listing, opened, config), shared, reporter)
    return answers.logits, stream.getvalue()


def test_answers_are_read_again_and_damage_is_noticed(cached, teacher, data, tmp_path):
    prepared = prepare(requested(data, teacher))
    run = shutil.copytree(cached, tmp_path / "run")
    whole = load_file(run / ANSWERS)["logits"].clone()  # not a view of the file
    logits, said = stored(run, prepared)
    assert logits.equal(whole)
    assert f"read from {run / ANSWERS}" in said
    content = bytearray((run / ANSWERS).read_bytes())
    content[-1] ^= 1
    for broken in (bytes(content), b"", b"nothing", bytes(content[:-9])):
        (run / ANSWERS).write_bytes(broken)
        logits, said = stored(run, prepared)
        assert logits.equal(whole)
        assert "is damaged; its answers are computed again" in said
        assert load_file(run / ANSWERS)["logits"].equal(whole)


def test_answers_of_other_weights_images_or_classes_are_noticed(cached, teacher, data, tmp_path):
    prepared = prepare(requested(data, teacher))
    other = train_small(data, tmp_path / "other", seed=1, epochs=1).path
    moved = shutil.copytree(data, tmp_path / "trees")
    first = next(moved.rglob("*.png"))
    first.write_bytes(first.read_bytes() + b"0")
    for number, changed in enumerate(
        (prepare(requested(data, other)), prepare(requested(moved, teacher)))
    ):
        run = shutil.copytree(cached, tmp_path / f"run{number}")
        before = (run / ANSWERS).read_bytes()
        assert "belongs to another teacher" in stored(run, changed)[1]
        assert (run / ANSWERS).read_bytes() != before
        assert "read from" in stored(run, changed)[1]
    (tmp_path / "fewer").mkdir()
    for columns in ((0, 1, 2), (0, 1), (1, 0)):
        logits, said = stored(tmp_path / "fewer", prepared, shared=SharedClasses(columns, columns))
        assert logits.shape[1] == len(columns)
        assert ("belongs to another" in said) == (len(columns) == 2)


class _Stops(nn.Module):
    """Answers so many batches, and then Ctrl-C comes."""

    def __init__(self, network: nn.Module, batches: int) -> None:
        super().__init__()
        self.network, self.left, self.seen = network, batches, 0

    def forward(self, images):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.seen += len(images)
        return self.network(images)


def test_answers_before_ctrl_c_are_kept(teacher, tmp_path):
    data = write_images(tmp_path / "many", each=30)
    prepared = prepare(requested(data, teacher, settings={"data.val_fraction": 0.1}))
    network = _Stops(open_teacher(str(teacher)).network, 1)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "run", prepared, network)
    network.left = 9
    found, _ = stored(tmp_path / "run", prepared, network)
    assert network.seen == len(prepared.train) == 81, "no image twice"
    whole, _ = stored(tmp_path / "again", prepared)
    assert found.allclose(whole, atol=1e-2)


def test_runs_may_share_answers(data, teacher, tmp_path):
    settings = {"distill.cache_dir": tmp_path / "answers"}
    options = {"teacher": teacher, "settings": settings, "epochs": 1}
    runs = [train_small(data, tmp_path / name, **options) for name in ("one", "two")]
    (file,) = (tmp_path / "answers").iterdir()
    assert file.suffix == ".safetensors"
    assert not any((run.path / "teacher").exists() for run in runs)


def test_answers_that_cannot_be_written_are_one_line(data, teacher, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    settings = {"distill.cache_dir": tmp_path / "file"}
    with pytest.raises((WeightError, RunError), match=r"file.*written"):
        train_small(data, tmp_path / "run", teacher=teacher, settings=settings)


CASES = {
    "stored": {"distill.kind": "soft"},
    "beside, mixed": {"augment.mixup": 0.8, "augment.erase": 0.5, "distill.kind": "soft"},
    "features": {"distill.kind": "features", "train.ema_decay": 0.9},
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_has_the_same_bits(data, teacher, tmp_path, case):
    settings = {**PLAIN, "data.val_fraction": 0.12, **CASES[case]}
    train_small(data, tmp_path / "whole", settings=settings, teacher=teacher)
    assert train_small(
        data, tmp_path / "part", settings=settings, teacher=teacher, stop_after=3
    ).interrupted
    train_small(data, tmp_path / "part", resume=True)
    (expected, rest), (got, other) = state_of(tmp_path / "whole"), state_of(tmp_path / "part")
    assert got.keys() == expected.keys()
    assert ("/auxiliary/0.weight" in got) == (case == "features")
    assert not [name for name in got if not got[name].equal(expected[name])]
    assert other == rest
    assert journal_of(tmp_path / "part") == journal_of(tmp_path / "whole")
    best = load_file(tmp_path / "part" / "weights.safetensors")
    assert not [name for name in best if not name.startswith(("backbone.", "head."))]
    assert muntin.load(tmp_path / "part", device="cpu")([next(data.rglob("*.png"))])


def test_a_resumed_run_keeps_its_teacher(data, teacher, tmp_path):
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    run = tmp_path / "run"
    train_small(data, run, teacher=mine, stop_after=1)
    for options, named in (
        ({"settings": {"distill.cache_dir": "x"}}, r"distill\.cache_dir"),
        ({"settings": {"distill.alpha": 0.2}}, r"distill\.alpha"),
    ):
        with pytest.raises(ConfigError, match=named):
            train_small(data, run, resume=True, **options)
    other = train_small(data, tmp_path / "other", seed=1, epochs=1).path
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    with pytest.raises(ConfigError, match=r"teacher.*SHA-256"):
        train_small(data, run, resume=True)
    shutil.rmtree(mine)
    with pytest.raises(ConfigError, match=r"teacher.*resumed.*--teacher"):
        train_small(data, run, resume=True)
    train_small(data, run, resume=True, teacher=teacher)  # the same weights elsewhere


@pytest.mark.parametrize(
    ("settings", "options", "named"),
    [
        ({"distill.kind": "soft"}, {"teacher": ""}, r"distill\.kind.*--teacher"),
        ({"distill.cache_dir": "x"}, {"teacher": ""}, r"distill\.cache_dir.*--teacher"),
        ({"distill.kid": "soft"}, {}, r"distill\.kid.*distill\.kind"),
        ({"distill.alpha": 2}, {}, r"distill\.alpha.*2"),
        ({"distill.alpha": 2000, "distill.kind": "features"}, {}, r"distill\.alpha.*2000"),
        ({"distill.temperature": 0}, {}, r"distill\.temperature.*0"),
        ({"distill.temperature": 9}, {}, r"distill\.temperature.*kind=hard"),
        ({"train.lora_alpha": 9}, {}, r"train\.lora_alpha.*adapt=lora"),
        ({"distill.cache": "on", "augment.mixup": 1}, {}, r"cache=on.*augment\.mixup on"),
        ({"distill.cache": "on", "distill.kind": "features"}, {}, r"cache=on.*features"),
        ({}, {"teacher": "swin_nano_patch4_window4_64"}, r"--teacher.*none are known"),
        ({}, {"teacher": "runs/none"}, r"--teacher"),
    ],
)
def test_what_is_refused(data, teacher, settings, options, named):
    with pytest.raises((ConfigError, WeightError), match=named):
        prepare(requested(data, options.pop("teacher", teacher), settings=settings, **options))


def test_stored_answers_are_bounded(data, teacher):
    prepared = prepare(requested(data, teacher, settings={"distill.cache_mib": 1}))
    config, distill = prepared.run.config, prepared.run.config.distill
    resolve = partial(resolve_distill, run=config, classes=prepared.run.classes)
    for count, wanted in ((170_000, "on"), (180_000, "off")):  # of 6 bytes
        choice = resolve(replace(distill, cache="auto"), num_images=count)
        assert choice.value.cache == wanted
    with pytest.raises(ConfigError, match=r"cache=on needs 2 MiB.*distill\.cache_mib=1\."):
        resolve(replace(distill, cache="on"), num_images=180_000)


@pytest.mark.parametrize(
    ("augment", "cache"),
    [
        ({}, "on"),
        ({"crop_scale": 0.4}, "off"),
        ({"mixup": 0.2}, "off"),
        ({"cutmix": 1}, "off"),
        ({"auto": "trivialaugment"}, "off"),
        ({"jitter": 0.2}, "off"),
    ],
)
def test_answers_are_stored_where_images_change_little(data, teacher, augment, cache):
    settings = {f"augment.{name}": value for name, value in augment.items()}
    prepared = prepare(requested(data, teacher, settings=settings))
    assert prepared.run.config.distill.cache == cache
    assert any("arXiv 2106.05237" in note for note in prepared.notes) == (cache == "on")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_coco(
        tmp_path_factory.mktemp("data") / "scenes", num_train=4, num_val=1, size=(64, 80)
    )


HEADS = {
    "detect": "fcos_small",
    "instance": "mask_rcnn_small",
    "semantic": "light_small",
    "pose": "light_pose_small",
}


def prepared_dense(scenes, teacher, task, settings=None, **options):
    widths = {"head.channels": 16} if task in ("semantic", "pose") else head_settings(HEADS[task])
    chosen = {"model": BODY, "img_size": (64, 64), "head": HEADS[task]}
    texts = {**BODY_SETTINGS, **widths, **(settings or {})}
    machine = MachineConfig(device="cpu", precision="fp32", workers=0)
    return prepare(
        Request(
            task=task, data=str(scenes), out="nowhere", machine=machine, teacher=str(teacher),
            settings=tuple((name, str(value)) for name, value in texts.items()),
            batch_size=2, weights="none", **chosen, **options,
        )
    )  # fmt: skip


@pytest.mark.parametrize("task", HEADS)
def test_every_task_learns_features_of_a_classifier(scenes, teacher, task):
    prepared = prepared_dense(scenes, teacher, task)
    run, network = prepared.run, prepared.network
    assert run.config.distill.kind == "features"
    store = ImageCache(prepared.train, run.preprocessing, run.config.data_config, training=True)
    loader = TrainLoader(store, run.config.augment, batch_size=2, seed=0)
    batch = next(loader.batches(0, 0, run.preprocessing.img_size))
    device = torch.device("cpu")
    supervised = build_objective(run, prepared.train, device, network)
    objective = add_teacher(supervised, run, network.spec, build_fabric(run.config.machine, 1))
    inputs = objective.prepare((batch,), device)
    losses = objective.losses(network, inputs)
    assert losses.keys() > {"features"}
    assert losses["features"].shape == (2,)
    losses["features"].sum().backward()
    assert network.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match=rf"distill\.kind=soft.*{task}.*features"):
        prepared_dense(scenes, teacher, task, settings={"distill.kind": "soft"})


def test_a_teacher_has_the_precision_of_its_student(data, teacher):
    prepared = prepare(requested(data, teacher, settings={"distill.cache": "off"}))
    run, network = prepared.run, prepared.network
    fabric = build_fabric(MachineConfig(device="cpu", precision="bf16", workers=0), 1)
    supervised = build_objective(run, prepared.train, fabric.device, network)
    autocast = add_teacher(supervised, run, network.spec, fabric).answer.teacher.autocast
    with autocast():
        assert torch.is_autocast_enabled("cpu")
    fabric.strategy.precision = Precision()  # as of one that leaves half precision
    with autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_a_teacher_of_another_task_teaches_features_only(scenes, data, teacher, tmp_path):
    prepared = prepared_dense(scenes, teacher, "semantic")
    run = replace(prepared.run, path=tmp_path / "maps")
    run.write()
    write_weights(run.path / "weights.safetensors", prepared.network.state_dict())
    with pytest.raises(ConfigError, match=r"classify, got semantic.*distill\.kind=features"):
        prepare(requested(data, run.path))
    notes = prepare(requested(data, run.path, settings={"distill.kind": "features"})).notes
    assert any("its maps at strides 4, 8, 16" in note for note in notes)


IMAGENET = ("goldfish", "tench", "Volcano", "something_else")


def test_published_models_teach(tmp_path, monkeypatch):
    """A model of timm, whose 1000 classes are matched by name, and a backbone without classes."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    (tmp_path / "weights").mkdir()
    save_file(model.state_dict(), tmp_path / "weights" / "test_vit.r160_in1k.safetensors")
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(tmp_path / "weights"))
    data = write_images(tmp_path / "set", classes=IMAGENET)
    prepared = prepare(requested(data, "timm:test_vit"))
    said = " ".join(prepared.notes)
    assert "3 of 4 classes matched by name; 997 of its classes are left out" in said
    assert "something_else learnt from labels alone" in said
    opened = open_teacher("timm:test_vit")
    pixels = torch.rand(2, 3, 160, 160) * 255
    pre = opened.preprocessing
    mean, std = (torch.tensor(x)[:, None, None] * 255 for x in (pre.mean, pre.std))
    logits = opened.logits(pixels)
    torch.testing.assert_close(logits, model((pixels - mean) / std))
    body = open_teacher("timm:test_vit", backbone_only=True)
    assert body.task is None
    assert body.maps(pixels, torch.full((2, 2), 160))[0].shape[:2] == (2, 64)
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightError, match=r"--teacher.*test_vit\.safetensors.*MUNTIN_WEIGHTS"):
        check_teacher("timm:test_vit")
    file = tmp_path / "weights" / "test_vit.r160_in1k.safetensors"
    open_published(file, tmp_path / "run", model="timm:test_vit")
    torch.testing.assert_close(open_teacher(str(tmp_path / "run")).logits(pixels), logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch"])
def test_an_exported_file_teaches_classes(data, teacher, tmp_path, kind):
    exported = muntin.export(teacher, tmp_path / "teacher", format=kind)
    run = train_small(
        data, tmp_path / kind, teacher=exported.path, settings={"distill.cache": "off"}
    )
    assert run.epochs == 2
    with pytest.raises(ConfigError, match=r"distill\.kind=features.*exported"):
        prepare(requested(data, exported.path, settings={"distill.kind": "features"}))


@pytest.mark.parametrize("cache", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_plans_tell_what_a_teacher_costs(data, teacher, cache):
    plan = muntin.plan(
        "classify", data, model=MODEL, img_size=16, batch_size=4, precision="fp32", device="cpu",
        weights="none", teacher=teacher, settings={**SETTINGS, "distill.cache": cache},
    )  # fmt: skip
    weights = sum(x.numel() for x in load_file(teacher / "weights.safetensors").values())
    assert plan.teacher == pytest.approx(0 if cache == "on" else 4 * weights / 2**20)
    assert ("answer of the teacher" in dict(plan.measured)) == (cache == "on")
    assert any("answers once for all images" in note for note in plan.notes) == (cache == "on")


@pytest.mark.slow
def test_few_labels_and_a_teacher_are_worth_more_than_few_labels(tmp_path):
    """Of 5 % of generated scenes, whose other labels only the teacher has seen."""
    looks = {"size": (32, 32), "usual_colours": 0.9, "max_angle": 0.3}
    data = write_classify(tmp_path / "all", num_train_per_class=80, num_val_per_class=30, **looks)
    shutil.copytree(data / "val", tmp_path / "few" / "val")
    for folder in (data / "train").iterdir():
        (tmp_path / "few" / "train" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:4]:
            shutil.copy(file, tmp_path / "few" / "train" / folder.name)
    body = {"model.embed_dim": 24, "model.depths": "1,1,1", "model.num_heads": "1,2,2"}
    body |= {"model.out_indices": "0,1,2"}
    options = {"img_size": 32, "settings": body}
    big = train_small(data, tmp_path / "big", epochs=10, batch_size=48, **options).path
    taught = {"distill.kind": "soft", "distill.alpha": 0.7}
    options = {"img_size": 32, "epochs": 25, "batch_size": 8}
    few = partial(train_small, tmp_path / "few", **options)
    plain = few(tmp_path / "plain", settings=body).metrics
    soft = few(tmp_path / "soft", settings={**body, **taught}, teacher=big).metrics
    assert soft["loss"] < plain["loss"] - 0.1
    assert soft["top1"] > plain["top1"]


SCRIPT = """# a test
import sys
from tests.small import train_small

if __name__ == "__main__":
    data, teacher, out, kind = sys.argv[1:]
    settings = {"train.optimizer": "adamw", "train.start_size": 1, "distill.kind": kind}
    train_small(data, out, settings=settings, batch_size=6, devices=2, teacher=teacher)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "features"])
def test_two_processes_share_a_teacher(data, teacher, tmp_path, kind):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    command = [sys.executable, "script.py", data, teacher, tmp_path / "run", kind]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = {**PLAIN, "distill.kind": kind}
    alone = train_small(data, tmp_path / "one", settings=settings, batch_size=6, teacher=teacher)
    losses = [journal_of(path)[0]["train_loss"] for path in (alone.path, tmp_path / "run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
