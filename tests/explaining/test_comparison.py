# SPDX-License-Identifier: Apache-2.0
"""Two models on the same images: similarity of layers and agreement of predictions."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import muntin
from muntin.errors import ConfigError, ShapeError
from muntin.explaining.comparison import agreement, show_comparison, show_predictions
from muntin.explaining.context import Context
from muntin.explaining.feature_maps import block_maps, compare_layers
from muntin.explaining.figures import ExplanationFigure, MissingFigure
from muntin.ops.similarity import centred_gram, compare_grams
from muntin.results import Detections, Labels, Poses, SemanticMap
from muntin.samples import Classes
from tests.detectors import tiny_detector
from tests.explaining.small_networks import FAMILIES, TINY, build, in_engine, make_context

# Layers.


def linear_cka(first, second):
    return compare_grams(centred_gram(first), centred_gram(second))


def _slow_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Song et al. 2012, equation 5, term by term."""

    def hsic(k, m):
        n = len(k)
        k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
        one = torch.ones(n, dtype=torch.float64)
        middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (torch.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = first.double() @ first.double().T, second.double() @ second.double().T
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


@pytest.mark.parametrize("shape", [(4, 3, 2), (9, 5, 700), (60, 8, 8)])
def test_cka_matches_the_paper(shape: tuple[int, int, int]) -> None:
    count, channels, others = shape
    first = torch.randn(count, channels) + 1
    second = torch.randn(count, others) + (first @ torch.randn(channels, others))
    assert linear_cka(first, second) == pytest.approx(_slow_cka(first, second), rel=1e-6)


def test_cka_ignores_rotation_and_scale() -> None:
    first = torch.randn(30, 12)
    turned = 7 * first @ torch.linalg.qr(torch.randn(12, 12))[0] + 3
    assert linear_cka(first, turned) == pytest.approx(1, abs=1e-6)
    # The plain estimate of Kornblith et al. would be about 0.98 for these.
    apart = [linear_cka(torch.randn(20, 1000), torch.randn(20, 1000)) for _ in range(5)]
    assert max(map(abs, apart)) < 0.15
    assert linear_cka(first, torch.ones(30, 4)) == 0
    with pytest.raises(ShapeError, match=r"\b4\b.*\b3\b"):
        linear_cka(first[:3], first[:3])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(48, 80), (37, 61)])
def test_block_maps_of_every_family(family: str, size: tuple[int, int]) -> None:
    context = make_context(build(family), size=size)
    layers = block_maps(context)
    with torch.no_grad():
        maps = context.backbone(context.images)
    assert len(layers) >= len(maps)
    ratio = context.images.shape[2] / context.images.shape[3]
    for one in layers.values():
        assert 0.5 * ratio <= one.shape[1] / one.shape[2] <= 2 * ratio
    # A map that no norm touches is one of them, cell by cell.
    if len(maps) > 1:
        alike = [x for x in layers.values() if x.shape[0] == maps[0].shape[1]]
        high, wide = maps[0].shape[2:]
        assert any(torch.equal(x[:, :high, :wide], maps[0][0]) for x in alike)


def test_names_blocks_by_stage() -> None:
    assert [*block_maps(make_context(build("swin")))] == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    assert [*block_maps(make_context(build("vit")))] == ["1", "2", "3"]


def _images(network, count: int = 3, **more) -> list[Context]:
    return [make_context(network, index=i, **more) for i in range(count)]


def test_similarity_to_itself_and_to_another_model() -> None:
    network = build("swin")
    rows, columns, values, count = compare_layers(_images(network), _images(network))
    assert rows == columns
    assert count == 3 * 3 * 5  # the coarsest map of three images
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-9)
    np.testing.assert_allclose(values, values.T, atol=1e-9)
    _, _, others, _ = compare_layers(_images(network), _images(build("swin", seed=1)))
    assert np.diag(others).max() < 0.999


def test_compares_other_families_and_sizes() -> None:
    first = _images(build("swin"), size=(48, 80))
    second = _images(build("vit"), size=(48, 80))
    rows, columns, values, _ = compare_layers(first, second)
    assert values.shape == (len(rows), len(columns)) == (6, 3)
    assert np.isfinite(values).all()


def test_too_few_cells() -> None:
    contexts = _images(build("swin"), 1, size=(16, 16))
    layers, answers = show_comparison(contexts, contexts)
    assert isinstance(layers, MissingFigure)
    assert "4" in layers.reason
    assert answers.facts["agreement"] == 1


# Answers.


def test_images_with_the_worst_agreement_come_first() -> None:
    network = build("swin")
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.head.fc.bias[1] += 2
    first, second = _images(network, 6), _images(other, 6, name="other")
    predicted = [
        [int(one.network(one.images).argmax()) for one in contexts] for contexts in (first, second)
    ]
    same = np.equal(*predicted)
    _, answers = show_comparison(first, second)
    assert answers.facts["agreement"] == pytest.approx(same.mean())
    assert len(answers.facts["differ"]) == int((~same).sum())
    assert answers.arrays["agreement"].tolist() == same.astype(float).tolist()


def _boxes(*rows: tuple[float, float, float, float, str, float]) -> Detections:
    return Detections(
        path="", size=(100, 100), boxes=np.array([row[:4] for row in rows], float).reshape(-1, 4),
        class_ids=np.zeros(len(rows), np.int64), scores=np.array([row[5] for row in rows], float),
        class_names=tuple(row[4] for row in rows),
    )  # fmt: skip


def test_agreement_of_boxes() -> None:
    one = _boxes((0, 0, 10, 10, "cat", 0.9), (50, 50, 60, 60, "dog", 0.8), (0, 0, 9, 9, "x", 0.1))
    other = _boxes((1, 1, 10, 10, "cat", 0.9), (50, 50, 60, 60, "cat", 0.8))
    assert (
        agreement(one, other) == 0.5
    )  # the class of the second differs, the third has a low score
    assert agreement(one, one) == agreement(_boxes(), _boxes()) == 1
    assert agreement(one, _boxes()) == 0
    # Two boxes on the same object are one pair.
    twice = _boxes((0, 0, 10, 10, "cat", 0.9), (0, 0, 10, 11, "cat", 0.9))
    assert agreement(_boxes((0, 0, 10, 10, "cat", 0.9)), twice) == pytest.approx(2 / 3)


def test_agreement_of_maps_is_by_class_name() -> None:
    labels = np.array([[0, 1, 1], [2, 2, 0]], np.int16)
    one = SemanticMap(path="", size=(2, 3), labels=labels, class_names=("a", "b", "c"))
    other = SemanticMap(path="", size=(2, 3), labels=labels, class_names=("a", "c", "d"))
    assert agreement(one, one) == 1
    assert agreement(one, other) == pytest.approx(2 / 6)


def test_agreement_of_keypoints() -> None:
    def pose(*points: tuple[float, float]) -> Poses:
        rows = np.array([[*point, 1.0] for point in points])[None]
        names = ("nose", "tail")
        return Poses(path="", size=(300, 400), keypoints=rows, scores=np.ones(1),
                     keypoint_names=names)  # fmt: skip

    assert agreement(pose((10, 10), (50, 50)), pose((15, 10), (50, 70))) == 0.5  # 2 % are 10 pixels


def test_agreement_of_labels_is_by_name() -> None:
    def labels(*names: str) -> Labels:
        ids = np.arange(len(names))
        return Labels(path="", size=(1, 1), class_ids=ids, scores=1.0 - ids / 9, class_names=names)

    assert agreement(labels("a", "b"), labels("a", "c")) == 1
    assert agreement(labels("a", "b"), labels("b", "a")) == 0
    with pytest.raises(TypeError, match=r"of muntin\.results"):
        agreement(3, 3)


@pytest.mark.parametrize("kind", ["detect", "instance", "semantic", "pose"])
def test_every_result_type(kind: str) -> None:
    options = {"size": (50, 70), "fit": "letterbox"}
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        if kind == "semantic":
            made = muntin.create_segmenter("swin_nano", num_classes=3, head="light_small", **TINY)
            options["fit"] = "sliding_window"
        elif kind == "pose":
            made = muntin.create_pose_estimator(
                "swin_nano", num_keypoints=3, head="light_pose_small", **TINY
            )
            options |= {"fit": "instance_crop", "size": (48, 64)}
        else:
            head = "fcos_small" if kind == "detect" else "mask_rcnn_small"
            made = tiny_detector(head, 3, task=kind, seed=seed)
        networks.append(made.eval())
    first, second = (_images(network, 2, task=kind, **options) for network in networks)
    result = show_predictions(first, second)
    assert 0 <= result.facts["agreement"] <= 1
    assert result.figure.axes


def _fit(figure) -> None:
    """Check that texts lie inside the figure and not on its panels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    words = [*figure.texts, *(axes.title for axes in figure.axes)]
    boxes = [text.get_window_extent(renderer) for text in words if text.get_text()]
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    for axes in figure.axes:
        inside = axes.get_window_extent(renderer)
        assert not any(inside.overlaps(box) for box in boxes)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_labels_are_not_cut_off(count: int) -> None:
    sizes = ((64, 64), (40, 100), (100, 40), (48, 80), (64, 64))[:count]
    name = "a run whose name is long (swin_small_patch4_window7_224 of the tenth of May, again)"
    networks = [build("swin"), build("swin", seed=3)]
    first, second = (
        [make_context(network, size=size, index=k, name=f"{number} {name}")
         for k, size in enumerate(sizes)]
        for number, network in enumerate(networks)
    )  # fmt: skip
    result = show_predictions(first, second)
    _fit(result.figure)


def test_models_without_shared_classes_compare_layers_only() -> None:
    network = build("swin")
    first = _images(network)
    others = [_named(one, "fir", "oak", "yew") for one in first]
    layers, answers = show_comparison(first, others)
    assert layers.facts["mean_of_diagonal"] == pytest.approx(1)
    assert isinstance(answers, MissingFigure)
    numbers = [_named(one, "class 0", "class 1", "class 2", "class 3") for one in first]
    assert isinstance(show_predictions(numbers, others), MissingFigure)
    fewer = [_named(one, "class 0", "class 1", "class 2") for one in first]
    assert isinstance(show_predictions(fewer, numbers), MissingFigure), "numbers of two lists"
    assert isinstance(show_predictions(fewer, fewer), ExplanationFigure)
    some = [_named(one, "birch", "cedar", "fir") for one in first]
    shown = show_predictions(first, some)
    assert re.search(r"\b2\b.*\b3\b.*\b3\b", shown.text)


def _named(context: Context, *names: str) -> Context:
    return replace(context, classes=Classes(names=names))


def test_fresh_weights_are_noted() -> None:
    first = _images(build("swin"))
    other = [replace(one, name="new", trained=False) for one in _images(build("swin", seed=1))]
    layers, answers = show_comparison(first, other)
    learnt = [replace(one, trained=True) for one in other]
    for shown, again in zip((layers, answers), show_comparison(first, learnt), strict=True):
        assert "fresh" in shown.text
        assert "fresh" not in again.text


# What cannot be compared.


def test_different_images_are_refused() -> None:
    network = build("swin")
    contexts = _images(network, 2)
    with pytest.raises(ConfigError, match="same images"):
        show_comparison(contexts, contexts[::-1])
    detector = tiny_detector("fcos_small", 3, task="detect")
    others = _images(detector, 2, task="detect")
    with pytest.raises(ConfigError, match="classify and detect"):
        show_comparison(contexts, others)


def test_exported_files_compare_predictions_only() -> None:
    contexts = _images(build("swin"), 2)
    engine = in_engine(contexts[0].network, contexts[0].pre, (64, 96), finds=False)
    exported = [replace(context, network=engine) for context in contexts]
    layers, answers = show_comparison(contexts, exported)
    assert isinstance(layers, MissingFigure)
    assert answers.facts["num_images"] == 2
