# SPDX-License-Identifier: Apache-2.0
"""Whole models of the transformers library as runs, beside the library's own pipeline."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

import muntin
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, MissingExtra, ShapeError, WeightError
from muntin.heads.transformers_head import TransformersHeadConfig
from muntin.heads.transformers_masks import mask_boxes
from muntin.heads.transformers_model import ARCHITECTURES, build_model
from muntin.prediction.predictor import Predictor
from muntin.published import open_published
from muntin.runs import Run
from muntin.synthetic.datasets import write_coco, write_maps
from muntin.tasks.task_table import find_task
from muntin.weights.weight_loading import load_weights
from tests.transformers_folders import MODELS, write_folder

pytest.importorskip("transformers")
SIZES = ((61, 90), (90, 70), (200, 64))
QUICK = ("rt_detr_v2", "detr", "segformer")


def _mark(names: list[str]) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


BOXES = _mark([name for name, row in ARCHITECTURES.items() if row.answers == "boxes"])
MASKS = ["mask2former", "maskformer", "rf_detr_instance", "eomt_dinov3"]
MAPS = _mark(
    [
        name
        for name, row in ARCHITECTURES.items()
        if not row.answers.startswith("boxes") and name not in MASKS[2:]
    ]
)


def _image(high: int, wide: int) -> NDArray[np.uint8]:
    cells = np.random.default_rng(high).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(cells).resize((wide, high), Image.Resampling.BICUBIC))


def _convert(name: str, tmp_path: Path, task: str = "") -> tuple[Predictor, Any, Any]:
    model, processor = write_folder(name, tmp_path / name)
    open_published(tmp_path / name, tmp_path / "run", head=task)
    return muntin.load(tmp_path / "run", device="cpu"), model, processor


def _inputs(name: str, processor: Any, image: NDArray[np.uint8]) -> dict[str, Any]:
    given = processor(image, return_tensors="pt")
    kept = ("pixel_values", "pixel_mask") if ARCHITECTURES[name].reads_mask else ("pixel_values",)
    return {key: given[key] for key in kept}


@pytest.mark.parity
@pytest.mark.parametrize("name", BOXES)
def test_boxes_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    predictor, model, processor = _convert(name, tmp_path)
    for size in SIZES:
        image = _image(*size)
        inputs = _inputs(name, processor, image)
        with torch.no_grad():
            raw = model(**inputs)
            own = predictor.network(inputs["pixel_values"])
        sides = torch.tensor(inputs["pixel_values"].shape[:1:-1]).repeat(2)
        centre, extent = raw.pred_boxes.split(2, -1)
        corners = torch.cat([centre - extent / 2, centre + extent / 2], -1) * sides
        torch.testing.assert_close(own.boxes[:, :, 0], corners, rtol=1e-5, atol=1e-4)
        if name == "rf_detr":  # which resizes before it rounds to 8 bits
            continue
        answers = processor.post_process_object_detection(raw, 0.01, [size])[0]
        order = answers["scores"].argsort(descending=True, stable=True)
        found = predictor([image])[0]
        edges = np.clip(answers["boxes"][order].numpy(), 0, [size[1], size[0]] * 2)
        np.testing.assert_allclose(found.scores, answers["scores"][order], atol=1e-5)
        np.testing.assert_allclose(found.boxes, edges, atol=1e-3)
        np.testing.assert_array_equal(found.class_ids, answers["labels"][order])


@pytest.mark.parity
@pytest.mark.parametrize("name", MAPS)
def test_maps_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    predictor, model, processor = _convert(name, tmp_path, "semantic")
    for size in SIZES if name != "eomt" else ((64, 64), (100, 100)):
        image = _image(*size)
        with torch.no_grad():
            raw = model(**_inputs(name, processor, image))
        answers = processor.post_process_semantic_segmentation(raw, target_sizes=[size])[0]
        share = (predictor([image])[0].labels == answers.numpy()).mean()
        # Mask2Former and EoMT are read on another grid there: edges move by part of a pixel.
        assert share > (0.97 if ARCHITECTURES[name].answers == "masks" else 0.9995), size


@pytest.mark.parity
@pytest.mark.parametrize("name", _mark(MASKS))
def test_instances_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    predictor, model, processor = _convert(name, tmp_path, "instance")
    for size in SIZES:
        image = _image(*size)
        with torch.no_grad():
            inputs = _inputs(name, processor, image)["pixel_values"]
            raw = model(inputs)
        options = {} if name.startswith("eomt") else {"return_binary_maps": True}
        answers = processor.post_process_instance_segmentation(
            raw, threshold=0.0, target_sizes=[size], **options
        )[0]["segments_info"]
        best = sorted(answers, key=lambda one: -one["score"])
        found = predictor([image])[0]
        assert len(found.scores) == len(best)
        # The library takes the mean of a mask after resizing it, which calms noise; that of the
        # cells is tested below.
        near = 0.05 if name.startswith("eomt") else 0.02
        np.testing.assert_allclose(found.scores, [one["score"] for one in best], atol=near)
        # Every mask is that of one query, resized by pixels' centres.
        masks = raw.pred_masks if name.startswith("rf") else raw.masks_queries_logits
        if name.startswith("eomt"):
            masks = F.interpolate(masks, inputs.shape[2:], mode="bilinear")
            high, wide = get_size_with_aspect_ratio(size, 64, 64)
            masks = masks[..., :high, :wide]
        shown = F.interpolate(masks, size, mode="bilinear")[0].numpy() > 0
        for rle in found.masks or ():
            drawn = coco_mask.decode(rle).astype(bool)
            union = (shown | drawn).sum((1, 2))
            assert ((shown & drawn).sum((1, 2)) / np.maximum(union, 1)).max() > 0.95


@pytest.mark.parity
def test_padding_is_black_and_counts_for_no_mask(tmp_path: Path) -> None:
    predictor, model, processor = _convert("eomt_dinov3", tmp_path, "instance")
    for size, (high, wide) in (((61, 90), (43, 64)), ((200, 64), (64, 20))):
        inputs = _inputs("eomt_dinov3", processor, _image(*size))["pixel_values"]
        outside = inputs[0, :, :, wide:] if wide < 64 else inputs[0, :, high:]
        assert outside.eq(outside[:, -1:, -1:]).all()
        with torch.no_grad():
            raw = model(inputs)
        cells = raw.masks_queries_logits[0, :, : (high + 1) // 4, : (wide + 1) // 4]
        inside = cells > 0
        quality = (cells.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2))
        wanted = raw.class_queries_logits[0].softmax(-1)[:, :-1].amax(-1) * quality
        found = predictor([_image(*size)])[0]
        np.testing.assert_allclose(found.scores, wanted.sort(descending=True).values, atol=1e-5)


def test_edges_are_rounded_as_in_the_library() -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    plain = {"img_size": (60, 97), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    rng = np.random.default_rng(0)
    sizes = [(60, 60), (60, 97), (97, 60), (1, 500), *rng.integers(1, 3000, (300, 2)).tolist()]
    for short, long in ((60, 97), (800, 1333), (512, 0)):
        pre = Preprocessing(edges=(short, long), **plain)  # type: ignore[arg-type]
        for high, wide in sizes:
            wanted = get_size_with_aspect_ratio((high, wide), short, long or None)
            assert pre.edge_size((high, wide)) == tuple(wanted), (high, wide)


def test_boxes_end_where_masks_cross_zero() -> None:
    logits = torch.full((1, 2, 4, 5), -1.0)
    logits[0, 0, 1:3, 2] = 3.0  # from the centre of column 1 (1.5), after a quarter of the way
    logits[0, 0, 0, 2] = 1.0
    assert mask_boxes(logits)[0].tolist() == [[1.75, 0.0, 3.25, 3.25], [0.0] * 4]


def test_other_classes_replace_class_layers_alone(tmp_path: Path) -> None:
    predictor, _, _ = _convert("detr", tmp_path)
    run = Run.open(tmp_path / "run")
    assert run.classes.names == ("cat", "dog", "N/A (2)", "N/A (3)")
    network = run.task.build_head(
        predictor.network.backbone, muntin.samples.Classes(names=("a", "b")), run.config.head
    )
    other = muntin.heads.network.Network(predictor.network.backbone, network)
    report = load_weights(other, tmp_path / "run" / "weights.safetensors")
    layer = "head.net.class_labels_classifier"
    assert sorted(report.reset) == [f"{layer}.bias", f"{layer}.weight"]
    assert other.head.class_layers() == {"net.class_labels_classifier": (1, 1)}
    kept = predictor.network.state_dict()["head.net.bbox_predictor.layers.0.weight"]
    assert other.state_dict()["head.net.bbox_predictor.layers.0.weight"].equal(kept)


def _change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    folder, images = tmp_path / "folder", "preprocessor_config.json"
    write_folder("segformer", folder)

    def refused(error: type[Exception], *words: str) -> None:
        with pytest.raises(error) as caught:
            open_published(folder, tmp_path / "run")
        assert all(word in str(caught.value) for word in words), caught.value
        assert not (tmp_path / "run").exists()

    saved = tmp_path / "saved"
    shutil.copytree(folder, saved)
    _change(folder, images, sharpen=2)
    refused(ConfigError, "sharpen", images)
    _change(folder, images, sharpen=None, image_processor_type="OwlViTImageProcessor")
    refused(ConfigError, "OwlViTImageProcessor", "Segformer")
    (folder / images).unlink()
    refused(WeightError, images)
    shutil.copy(saved / images, folder / images)
    _change(folder, "config.json", decoder_hidden_size="many")
    refused(ConfigError, "hf:segformer")
    _change(folder, "config.json", decoder_hidden_size=20)
    refused(WeightError, "decode_head")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(WeightError, "model.safetensors", "save_pretrained")
    owl = {"model_type": "owlvit", "architectures": ["OwlViTForObjectDetection"]}
    (folder / "config.json").write_text(json.dumps(owl))
    refused(ConfigError, "owlvit", "rt_detr_v2", "mask2former")


def test_sizes_that_a_model_does_not_take_are_refused(tmp_path: Path) -> None:
    predictor, _, _ = _convert("segformer", tmp_path)
    with pytest.raises(ConfigError, match="vector"):
        predictor.network.backbone.embed(torch.zeros(1, 3, 32, 32))
    body, classes = predictor.network.backbone, muntin.samples.Classes(names=("a",))
    with pytest.raises(ConfigError, match="hf:segformer"):
        find_task("detect").build_head(body, classes, TransformersHeadConfig())


def test_the_extra_is_named_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"muntin\[hf\]"):
        build_model("segformer", "{}", 2)


@pytest.mark.slow
def test_windows_must_fit(tmp_path: Path) -> None:
    predictor, _, _ = _convert("rf_detr", tmp_path)
    with pytest.raises(ShapeError, match="48 x 64"):
        predictor.network(torch.zeros(1, 3, 48, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["rt_detr_v2", "detr", "segformer", "mask2former", "rf_detr_instance", "eomt_dinov3"],
)
def test_train_evaluate_and_export(name: str, tmp_path: Path) -> None:
    task = "instance" if name in MASKS else "semantic" if name == "segformer" else "detect"
    write_folder(name, tmp_path / name, spread=0)
    run = open_published(tmp_path / name, tmp_path / "run", head=task)[0]
    write = write_maps if task == "semantic" else write_coco
    data = write(tmp_path / "data", num_train=4, num_val=2, size=(64, 64))
    done = muntin.train(
        task, data=str(data), weights=str(run.path), epochs=1, batch_size=2, device="cpu",
        precision="fp32", out=str(tmp_path / "tuned"),
    )  # fmt: skip
    assert Run.open(done.path).config.model == run.config.model
    scores = muntin.evaluate(done.path, data=str(data))
    assert scores["num_images"] == 2
    if name in ("detr", "segformer"):
        file = muntin.export(done.path, tmp_path / "model.onnx", format="onnx")
        assert all(row.difference <= row.limit for row in file.rows)
        assert len(muntin.load(file.path)([_image(50, 70)])) == 1


@pytest.mark.slow
def test_queries_that_are_chosen_by_score_are_exported(tmp_path: Path) -> None:
    write_folder("rt_detr_v2", tmp_path / "folder", settled=True)
    run = open_published(tmp_path / "folder", tmp_path / "run")[0]
    rows = muntin.export(run.path, tmp_path / "model.onnx", format="onnx").rows
    assert max(row.difference for row in rows) < 1e-4


@pytest.mark.slow
def test_a_family_is_built_anew(tmp_path: Path) -> None:
    from muntin.training.transformers_defaults import keep_drop_path

    data = write_coco(tmp_path / "data", num_train=2, num_val=1, size=(64, 64))
    done = muntin.train(
        "detect", data=str(data), model="hf:rt_detr_v2", weights="none", epochs=1, batch_size=2,
        img_size=160, device="cpu", precision="fp32", out=str(tmp_path / "run"),
        settings={"train.drop_path_rate": 0.1},
    )  # fmt: skip
    run = Run.open(done.path)
    assert run.preprocessing.pad_to_size
    asked = replace(run.config.train, drop_path_rate=0.1)
    kept = keep_drop_path(asked, run.config.model, [("drop_path_rate", "0.1")])
    assert kept.value == run.config.train
    assert "hf:rt_detr_v2" in kept.notes[0]
    assert set(MODELS) <= {one.removeprefix("hf:") for one in muntin.list_models("hf:*")}
