# SPDX-License-Identifier: Apache-2.0
"""Runs on five bands of 16 bits, from the check of the data to the exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import muntin
from muntin.commands import app
from muntin.data.transforms import normalise
from muntin.engines.engine_network import make_graph
from muntin.explaining.inputs import open_context, open_model
from muntin.exporting.run_export import export
from muntin.runs import Run
from muntin.serving.batch_steps import answer_batch
from muntin.serving.messages import BatchOptions, WorkItem
from tests.bands import (
    BANDS,
    scene_of,
    values_of,
    write_bands,
    write_boxes_of_bands,
    write_maps_of_bands,
)
from tests.data.deep_files import png_16, tiff
from tests.detectors import train_dense, train_detector
from tests.serving.live import start
from tests.small import train_small, write_images

EVERY = ["classify"] + [
    pytest.param(task, marks=pytest.mark.slow)
    for task in ("semantic", "detect", "instance", "pose")
]


def write_set(task: str, folder: Path) -> Path:
    write = {"classify": write_bands, "semantic": write_maps_of_bands}
    return write.get(task, write_boxes_of_bands)(folder)


def train_set(task: str, data: Path, out: Path, **options: Any) -> Path:
    if task == "classify":
        return train_small(data, out, **options).path
    if task in ("detect", "instance"):
        return train_detector(task, data, out, **options).path
    return train_dense(task, data, out, **options).path


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    """A run of a task, its data, and an image of them."""
    task = request.param
    root = tmp_path_factory.mktemp(task)
    data = write_set(task, root / "data")
    report = CliRunner().invoke(app, ["check", task, str(data), "--json"])
    assert report.exit_code == 0
    assert any(f"{BANDS} bands" in line for line in json.loads(report.stdout)["lines"])
    run = train_set(task, data, root / "run", epochs=1)
    return task, run, data, next(data.rglob("*.tif"))


def raw_of(run: Path, image: Any) -> torch.Tensor:
    predictor = muntin.load(run)
    inputs = predictor.prepare(
        [image], **({"boxes": [[[4, 4, 60, 60]]]} if "pose" in str(run) else {})
    )
    return inputs.parts[0].images


@pytest.mark.filterwarnings("ignore:the run was trained on crops of instances")
@pytest.mark.parametrize("trained", EVERY, indirect=True)
class TestEveryTask:
    def test_the_input_has_all_bands(self, trained):
        _, run, _, image = trained
        opened = Run.open(run)
        assert opened.config.model.in_chans == BANDS
        assert opened.preprocessing.bits == 16
        assert opened.preprocessing.mean == opened.config.data_config.mean
        assert len(set(opened.preprocessing.std)) > 1
        assert raw_of(run, image).shape[1] == BANDS

    def test_low_bits_change_answers(self, trained, tmp_path):
        task, run, _, _ = trained
        values = values_of(0, 1) if task == "classify" else scene_of(1)[0]
        places = []
        for number, one in enumerate((values, values ^ np.uint16(1))):
            place = tmp_path / f"{number}.tif"
            place.write_bytes(tiff(one))
            places.append(raw_of(run, place))
        assert (places[0] != places[1]).float().mean() > 0.8  # crops of poses have borders
        network = Run.open(run).load_network()
        answers = [read(network, images) for images in places]
        assert not torch.equal(*answers)
        # An array of the same values is the same image.
        assert torch.equal(raw_of(run, values), places[0])

    def test_it_is_scored_predicted_and_drawn(self, trained, tmp_path):
        task, run, _, image = trained
        drawn = task != "classify"
        figures = muntin.evaluate(run, write_set(task, tmp_path / "other"), pictures=drawn)
        assert figures["num_images"] >= 1
        places = [str(image), "--out", str(tmp_path / "out"), "--format", "drawing"]
        shown = {}
        for bands in ("", "5,2,1"):
            options = [*places, "--force", *(["--bands", bands] if bands else [])]
            assert CliRunner().invoke(app, ["predict", str(run), *options]).exit_code == 0
            shown[bands] = np.array(Image.open(next((tmp_path / "out").rglob("*.png"))))
        assert shown[""].shape == shown["5,2,1"].shape
        assert (shown[""] != shown["5,2,1"]).any()

    def test_it_is_served_and_explained_as_predicted(self, trained):
        _, run, _, image = trained
        predictor = muntin.load(run)
        items = (
            WorkItem(name="bands", data=image.read_bytes()),
            WorkItem(name="colours", data=png_16(values_of(0, 0)[..., :3])),
        )
        answers = answer_batch(predictor, BatchOptions(model="a"), items)
        assert [one.fault for one in answers] == ["", "image"]
        assert "5 bands" in answers[1].text
        context = open_context(open_model(run), image)
        assert context.pixels.shape[2] == 3
        assert context.images.shape[1] == BANDS
        size = torch.tensor([context.shown.shape[1:]])
        wanted = normalise(raw_of(run, image), Run.open(run).preprocessing, size)
        if "pose" not in str(run):  # of which the whole image is explained
            assert torch.equal(context.images, wanted)

    def test_its_graph_reads_16_bits(self, trained):
        _, run, _, image = trained
        opened, predictor = Run.open(run), muntin.load(run)
        pre, images = opened.preprocessing, raw_of(run, image)
        canvas = (images.shape[2], images.shape[3])
        graph = make_graph(predictor.network, opened.task, opened.classes, pre, canvas)
        assert graph.example[0].dtype == torch.float32
        sizes = torch.tensor([canvas]) if opened.task.detects else None
        inputs = (images,) if sizes is None else (images, sizes)
        with torch.no_grad():
            found = graph.module(*inputs)
            wanted = predictor.network(normalise(images, pre), sizes)
        if sizes is None:
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        else:
            best = predictor.network.decode(wanted)[0].scores
            torch.testing.assert_close(found[1][0][: len(best)], best, atol=1e-4, rtol=1e-4)

    @pytest.mark.slow
    def test_it_is_exported(self, trained, tmp_path):
        _, run, _, image = trained
        done = export(run, tmp_path / "file", format="onnx")
        assert all(row.difference <= row.limit for row in done.rows)
        own, exported = muntin.load(run)(image), muntin.load(done.path)(image)
        assert own[0].size == exported[0].size


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["classify"], indirect=True)
def test_a_server_reads_bands(trained):
    _, run, _, image = trained
    with start(run) as live:
        status, answer, _ = live.predict(image.read_bytes())
    assert status == 200, answer


def read(network, images) -> torch.Tensor:
    with torch.no_grad():
        raw = network(images / 255)
    return raw if isinstance(raw, torch.Tensor) else raw.scores


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["classify", "semantic"], indirect=True)
def test_openvino_too(trained, tmp_path):
    done = export(trained[1], tmp_path / "file", format="openvino")
    assert all(row.difference <= row.limit for row in done.rows)


def test_other_weights_are_repeated_over_the_bands(tmp_path, capsys):
    images = write_images(tmp_path / "rgb", classes=("ash", "birch"), each=4)
    rgb = train_small(images, tmp_path / "before", epochs=1)
    data = write_bands(tmp_path / "data")
    options = {"quiet": False, "pictures": False, "device": "cpu", "precision": "fp32", "epochs": 1}
    settings = {"machine.workers": 0}
    run = muntin.train(
        "classify", data, weights=rgb.path, out=tmp_path / "run", settings=settings, **options
    )
    said = capsys.readouterr().out.replace("\n", " ")
    assert "5 bands" in said
    assert Run.open(run.path).config.model.in_chans == BANDS


def test_three_bands_are_enough_if_the_user_says_so(tmp_path):
    data = write_bands(tmp_path / "data")
    run = train_small(data, tmp_path / "run", epochs=1, settings={"model.in_chans": 3}).path
    pre = Run.open(run).preprocessing
    assert (pre.in_chans, pre.bits, len(pre.mean)) == (3, 16, 3)


@pytest.mark.parametrize(("settings", "bits"), [({}, 16), ({"data.bits": 8}, 8)])
def test_grey_of_16_bits(tmp_path, settings, bits):
    for class_id, name in enumerate(("a", "b")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            values = values_of(class_id, number)[..., 4]
            (tmp_path / "data" / name / f"{number}.png").write_bytes(png_16(values))
    run = train_small(tmp_path / "data", tmp_path / "run", epochs=1, settings=settings).path
    assert Run.open(run).preprocessing.bits == bits
    values = values_of(0, 7)[..., 4]
    first, second = (raw_of(run, png_16(one)) for one in (values, values ^ np.uint16(1)))
    assert first.dtype == (torch.float32 if bits == 16 else torch.uint8)
    assert (first != second).float().mean() > 0.9 or bits == 8
