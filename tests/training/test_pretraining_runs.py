# SPDX-License-Identifier: Apache-2.0
"""Runs that learn from images without labels, and what goes on from them."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from muntin.data.splitting import hold_out
from muntin.errors import ConfigError, DataError, MuntinWarning, RunError
from muntin.run_files import read_json
from muntin.runs import Run
from muntin.samples import Entry, Listing
from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps
from muntin.training.arguments import check_arguments
from muntin.training.distillation import open_teacher
from muntin.training.machine import choose_machine
from muntin.training.pretraining_session import pretrain
from muntin.training.request import Request
from muntin.training.session import train
from muntin.training.setup import prepare
from muntin.zoo.weight_conversion import convert_weights
from tests.small import image, write_images
from tests.training.test_resume import journal_of, state_of

MODEL = "vit_tiny_patch16_224"
SETTINGS = {
    "model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "model.patch_size": 4,
    "head.dim": 16, "head.depth": 1, "head.num_heads": 2, "machine.workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


def pretrain_small(images, out, *, settings=None, **options):
    """Pretrain a tiny ViT in a moment, without drawing; a resumed run keeps what it began with."""
    options = {"pictures": False, "quiet": True, **options}
    if not options.get("resume"):
        chosen = {"model": MODEL, "img_size": 16, "epochs": 2, "batch_size": 4}
        options = {"precision": "fp32", "device": "cpu", **chosen, **options}
        settings = {**SETTINGS, **(settings or {})}
    return pretrain(images, out=out, settings=settings, **options)


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    return pretrain_small(images, tmp_path_factory.mktemp("runs") / "pre", pictures=True).path


def request_of(task, data, **options):
    machine = choose_machine(None, "fp32", "cpu", 1)
    return Request(task=task, data=str(data), out="nowhere", machine=machine, **options)


def test_the_run_folder(pretrained):
    run = Run.open(pretrained, pretraining=True)
    assert (run.config.task, run.config.head.kind, run.classes.names) == ("pretrain", "mae", ())
    assert run.config.train.recipe == "pretrain-small"
    assert read_json(pretrained / "results.json")["figures"]["loss"] > 0
    assert read_json(pretrained / "split.json")["train"][1] == 17  # one of 18 is held out
    drawn = {path.name for path in (pretrained / "pictures").iterdir()}
    assert drawn == {"batch.png", "curves.png", "reconstructions.png"}
    with Image.open(pretrained / "pictures" / "reconstructions.png") as sheet:
        assert sheet.width > 6 * 128  # two images a row: each, what was seen, and the rest


def test_same_bits(images, tmp_path):
    pretrain_small(images, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    for number, steps in enumerate((2, 4)):
        run = pretrain_small(images, stopped, resume=number > 0, stop_after=steps)
        assert run.interrupted
    assert not pretrain_small(images, stopped, resume=True).interrupted
    (expected, rest), (got, other) = state_of(tmp_path / "whole"), state_of(stopped)
    assert got.keys() == expected.keys()
    assert all(got[name].equal(tensor) for name, tensor in expected.items())
    assert other == rest
    assert journal_of(stopped) == journal_of(tmp_path / "whole")


def test_a_run_is_repeated_and_gone_on_from(images, pretrained, tmp_path):
    config = pretrained / "config.json"
    again = pretrain(images, config=config, out=tmp_path / "again", quiet=True, pictures=False)
    assert again.metrics == read_json(pretrained / "results.json")["figures"]
    longer = pretrain(
        images, weights=pretrained, epochs=1, out=tmp_path / "on", device="cpu", quiet=True,
        pictures=False, settings={"machine.workers": 0}, precision="fp32",
    )  # fmt: skip
    on = Run.open(longer.path, pretraining=True).config
    before = Run.open(pretrained, pretraining=True).config
    assert (on.model, on.head) == (before.model, before.head)
    assert on.train.learning_rate < before.train.learning_rate
    assert longer.metrics["loss"] < 2


WRITE = {
    "classify": lambda folder: write_classify(
        folder, num_train_per_class=2, num_val_per_class=1, size=(32, 32)
    ),
    "detect": lambda folder: write_coco(folder, num_train=2, num_val=1, size=(32, 32)),
    "instance": lambda folder: write_coco(folder, num_train=2, num_val=1, size=(32, 32)),
    "semantic": lambda folder: write_maps(folder, num_train=2, num_val=1, size=(32, 32)),
    "pose": lambda folder: write_frames(folder, num_train=4, num_val=2, size=(32, 32)),
}


@pytest.mark.parametrize("task", WRITE)
def test_every_task_goes_on_from_it(pretrained, tmp_path, task):
    WRITE[task](tmp_path / "data")
    prepared = prepare(request_of(task, tmp_path / "data", weights=str(pretrained)))
    config = prepared.run.config
    assert (config.model_name, config.model.embed_dim) == (MODEL, 16)
    assert config.weights == str(pretrained)
    assert any("backbone only" in note for note in prepared.notes)
    assert (config.model.img_size == (16, 16)) == (task == "classify")
    saved = load_file(pretrained / "weights.safetensors")
    got = prepared.network.state_dict()
    blocks = [name for name in saved if name.startswith("backbone.blocks")]
    assert blocks
    assert all(got[name].equal(saved[name]) for name in blocks)


def test_a_hiera_is_pretrained_without_the_norm_of_its_classifier(images, tmp_path):
    settings = {
        "model.embed_dim": 8, "model.depths": "1,1,1,1", "model.num_heads": 1, "head.dim": 16,
        "head.depth": 1, "head.num_heads": 2, "machine.workers": 0,
    }  # fmt: skip
    pretrain(
        images, out=tmp_path / "run", settings=settings, model="hiera_tiny_224", img_size=64,
        epochs=1, batch_size=16, device="cpu", precision="fp32", quiet=True, pictures=False,
    )  # fmt: skip
    assert Run.open(tmp_path / "run", pretraining=True).config.model.out_norm == "none"
    request = request_of("classify", images, weights=str(tmp_path / "run"))
    assert prepare(request).run.config.model.out_norm == "last"


def test_it_is_gone_on_from_as_from_random_weights(images, pretrained):
    config = prepare(request_of("classify", images, weights=str(pretrained))).run.config.train
    assert (config.recipe, config.optimizer, config.start_size) == ("small-data", "muon", 1)
    named = request_of("classify", images, weights=str(pretrained), recipe="finetune")
    assert prepare(named).run.config.train.learning_rate == 1e-3


def test_training_from_it(images, pretrained, tmp_path):
    run = train(
        "classify", images, weights=pretrained, epochs=1, batch_size=4, device="cpu", quiet=True,
        precision="fp32", pictures=False, out=tmp_path / "run", settings={"machine.workers": 0},
    )  # fmt: skip
    assert run.metrics["num_images"] > 0
    assert Run.open(run.path).config.model.img_size == (16, 16)


def test_its_backbone_is_written_for_others(pretrained, tmp_path):
    done = convert_weights(pretrained, tmp_path / "out.safetensors", to="timm")
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        MODEL, img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    assert model.load_state_dict(load_file(done.path)) is not None
    assert all(name.startswith("head.") for name in done.left_out)


def test_what_has_no_answers_is_refused(pretrained):
    with pytest.raises(RunError, match="--weights"):
        Run.open(pretrained)


SWIN = {
    "model.embed_dim": 16, "model.depths": "1,1", "model.num_heads": "2,2",
    "model.out_indices": "0,1", "machine.workers": 0,
}  # fmt: skip
LEARNERS = {
    "mae": (MODEL, {**SETTINGS, "model.embed_dim": 32, "head.dim": 32, "train.epochs": 16}),
    "simmim": ("swin_nano_patch2_window4_32", {**SWIN, "train.epochs": 6}),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_classify(folder, num_train_per_class=16, num_val_per_class=1, size=(32, 32))


@pytest.mark.parametrize("objective", LEARNERS)
def test_more_is_learnt_than_the_best_constant(scenes, tmp_path, objective):
    """Normalised patches have a variance of 1: their mean predicts them with a loss of 1."""
    model, settings = LEARNERS[objective]
    run = pretrain(
        scenes, objective=objective, model=model, batch_size=16, img_size=32, quiet=True,
        settings={**settings, "train.learning_rate": 3e-3}, device="cpu", precision="fp32",
        pictures=False, out=tmp_path / "run",
    )  # fmt: skip
    assert run.metrics["loss"] < 0.97


def test_views_in_half_precision_and_their_neighbours(images, tmp_path):
    run = pretrain(
        images, objective="views", model="swin_nano_patch2_window4_32", epochs=1, img_size=16,
        settings=SWIN, device="cpu", precision="bf16", quiet=True, out=tmp_path / "run",
    )  # fmt: skip
    assert Run.open(run.path, pretraining=True).config.train.recipe == "pretrain-views"
    assert (run.path / "pictures" / "neighbours.png").is_file()
    assert not (run.path / "pictures" / "reconstructions.png").exists()


def test_the_verdict(tmp_path):
    data = write_images(tmp_path / "set", each=12)
    (data / "ash" / "3.png").write_bytes(b"no image")
    with pytest.warns(MuntinWarning, match=r"ash/3\.png"):
        run = pretrain_small(data, tmp_path / "run", probe=data, epochs=2)
    assert run.metrics["probe"]["num_images"] + run.metrics["probe"]["neighbours"]["labels"] == 35
    probe = run.metrics["probe"]
    assert read_json(run.path / "results.json")["figures"]["probe"] == probe
    assert probe["steps"] == 20
    # One image a class is more than 1 % and, rounded, as many as 10 %.
    assert [name for name in probe if name.startswith("labels")] == ["labels_1"]
    for name in ("neighbours", "labels_1"):
        row = probe[name]
        first, second = (f"{100 * row[key]:.1f} %" for key in ("pretrained", "fresh"))
        assert f"{first} instead of {second}" in probe["verdict"]
    # The classes differ in brightness: chance finds a third of them.
    assert probe["neighbours"]["pretrained"] > 0.6


def corrupt(folder):
    write_images(folder, each=2)
    (folder / "ash" / "0.png").write_bytes(b"no image")
    return folder


def test_corrupt_images_are_left_out_and_named(tmp_path):
    with pytest.warns(MuntinWarning, match=r"1 of 5 images .*ash/0\.png"):
        run = pretrain_small(corrupt(tmp_path / "set"), tmp_path / "run", epochs=1)
    assert run.epochs == 1


def test_images_that_cannot_be_read_are_not_all_that_is_held_out(tmp_path):
    entries = tuple(Entry(path=f"{i}.png") for i in range(4))
    listing = Listing(source=str(tmp_path), entries=entries, class_names=())
    (first,) = hold_out(listing, count=1, seed=0)[1].entries
    for entry in entries:
        image(0, 0).save(tmp_path / entry.path)
    assert hold_out(listing, count=1, seed=0)[1].entries == (first,)
    (tmp_path / first.path).unlink()
    (tmp_path / first.path).symlink_to(tmp_path / "gone.png")
    held = hold_out(listing, count=1, seed=0)[1].entries
    assert len(held) == 2
    assert first in held


def test_wrong_images(tmp_path):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", each=1, classes=("ash",))
    for name, named in (("empty", "0 images"), ("one", "at least two images.*got 1")):
        with pytest.raises(DataError, match=named):
            pretrain_small(tmp_path / name, tmp_path / f"run-{name}")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"objective": "mea"}, "'mea'.*'mae'"),
        ({"settings": {"head.mask_ratio": 0}}, "mask_ratio.*0"),
        ({"settings": {"head.mask_ratio": 1}}, "mask_ratio.*1"),
        ({"model": "swin_nano_patch2_window4_32", "objective": "mae"}, "mae"),
        ({"settings": {"head.width": 3}}, "width"),
        ({"recipe": "finetune"}, "finetune"),
        ({"settings": {"train.label_smoothing": 0.1}}, "label_smoothing"),
        ({"settings": {"train.location_loss": 0.5}}, "location_loss"),
        ({"settings": {"data.sampler": "balanced"}}, "sampler"),
        ({"settings": {"augment.mixup": 0.8}}, "mixup"),
    ],
)
def test_wrong_settings(images, tmp_path, options, named):
    settings = {**options.pop("settings", {})}
    rows = {} if "model" in options else SETTINGS
    with pytest.raises(ConfigError, match=named):
        pretrain(
            images, out=tmp_path / "run", settings={**rows, **settings}, quiet=True,
            **{"model": MODEL, "device": "cpu", "img_size": 16, **options},
        )  # fmt: skip
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1.5), ("batch_size", 2.5), ("max_time_s", "2h"), ("seed", "x"),
        ("img_size", "big"), ("img_size", (16, "x")), ("devices", True), ("recipe", 3),
    ],
)  # fmt: skip
def test_types_of_arguments(images, name, value):
    """Of both verbs; without the checks of annotations that come first in the tests."""
    for verb, given in ((pretrain, (images,)), (train, ("classify", images))):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            inspect.unwrap(verb)(*given, **{name: value})


def test_numbers_of_numpy_are_welcome():
    check_arguments({"epochs": np.int64(2), "img_size": [16, 32], "weights": None, "seed": -1})


def test_wrong_probes(images, pretrained, tmp_path):
    write_coco(tmp_path / "boxes", num_train=2, num_val=1, size=(32, 32))
    write_images(tmp_path / "one", each=3, classes=("ash",))
    (tmp_path / "several.csv").write_text(
        "path,class\n" + "".join(f"one/ash/{i}.png,{'a;b' if i else 'a'}\n" for i in range(3))
    )
    write_images(tmp_path / "single", each=1)
    for name in ("boxes", "one", "several.csv", "nothing", "single"):
        with pytest.raises(DataError, match="--probe"):
            pretrain(images, out=pretrained, resume=True, probe=tmp_path / name, quiet=True)


def test_a_resumed_run_keeps_its_objective(images, pretrained):
    with pytest.raises(ConfigError, match="head"):
        pretrain_small(images, pretrained, resume=True, settings={"head.mask_ratio": 0.5})
    assert not pretrain_small(images, pretrained, resume=True, objective="mae").interrupted


def test_a_run_of_another_kind_is_not_resumed(images, pretrained):
    with pytest.raises(RunError, match="muntin pretrain"):
        train("classify", images, out=pretrained, resume=True, quiet=True)


def test_an_interrupted_verdict_tells_how_to_get_it(images, pretrained, tmp_path, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    probe = corrupt(tmp_path / "probe")
    with warnings.catch_warnings():
        warnings.simplefilter("always", MuntinWarning)
        warnings.showwarning = interrupt  # of the image that the verdict cannot read
        with pytest.raises(KeyboardInterrupt):
            pretrain(images, out=pretrained, resume=True, probe=probe, pictures=False)
    said = "".join(capsys.readouterr().out.split())
    assert f"--resume--out{pretrained}--probe{probe}" in said


def test_a_frozen_random_backbone_is_warned_of(images):
    settings = tuple((name, str(value)) for name, value in {**SETTINGS, "train.freeze": -1}.items())
    request = request_of("pretrain", images, model=MODEL, img_size=(16, 16), settings=settings)
    with pytest.warns(MuntinWarning, match="keeps the backbone"):
        prepare(request)


def test_a_pretrained_run_teaches_its_maps_and_no_classes(pretrained):
    assert open_teacher(str(pretrained), backbone_only=True).backbone.spec.channels
    with pytest.raises(ConfigError, match=r"distill\.kind=features"):
        open_teacher(str(pretrained))
