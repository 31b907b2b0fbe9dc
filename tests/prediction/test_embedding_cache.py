# SPDX-License-Identifier: Apache-2.0
"""Vectors on disk: of these weights and these pixels only, and never more than so many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import muntin
from muntin.data.transforms import Preprocessing
from muntin.prediction.embedding_cache import EmbeddingCache, cache_folder
from muntin.samples import Classes
from muntin.tasks.task_table import find_task


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Counted(muntin.Predictor):
    """Knows how many images all of its kind have prepared."""

    num_prepared = 0

    def prepare(self, images, **options):
        Counted.num_prepared += 1
        return super().prepare(images, **options)


def new_images() -> int:
    """How many images were computed since this was asked last."""
    count, Counted.num_prepared = Counted.num_prepared, 0
    return count


def make(seed=0, side=32):
    torch.manual_seed(seed)
    network = muntin.create_model("swin_nano", num_classes=2)
    pre = Preprocessing(img_size=(side, side), mean=(0.4,) * 3, std=(0.3,) * 3)
    classes = Classes(names=("a", "b"))
    return Counted(network, find_task("classify"), classes, pre, device="cpu")


def draw(*seeds, side=20):
    return [
        np.random.default_rng(seed).integers(0, 255, (side, side + 3, 3), np.uint8)
        for seed in seeds
    ]


def test_known_images_are_not_computed_again():
    new_images()
    first = EmbeddingCache(make())
    rows = first.embed(draw(1, 2, 3))
    assert new_images() == 3
    np.testing.assert_allclose(rows, muntin.embed(make(), draw(1, 2, 3)).rows, atol=1e-6)
    first.save()
    new_images()
    again = EmbeddingCache(make())
    np.testing.assert_array_equal(again.embed(draw(3, 2, 4))[:2], rows[2:0:-1])
    assert new_images() == 1
    # Other pixels, other weights and another size are not known.
    EmbeddingCache(make()).embed([draw(1)[0][:, ::-1]])
    EmbeddingCache(make(seed=1)).embed(draw(1))
    EmbeddingCache(make(side=40)).embed(draw(1))
    assert new_images() == 3


def test_it_is_bounded():
    for seed in range(3):
        cache = EmbeddingCache(make(seed), max_rows=4, max_files=2)
        cache.embed(draw(1, 2, 3, 4, 5))
        cache.save()
    assert len(list(cache_folder().iterdir())) == 2
    new_images()
    EmbeddingCache(make(2)).embed(draw(1, 2, 3, 4, 5))
    assert new_images() == 1


def test_models_that_were_used_longest_ago_are_forgotten():
    paths = []
    for seed in (0, 1, 0, 2):  # the second time the first one only looks up
        cache = EmbeddingCache(make(seed), max_files=2)
        cache.embed(draw(1))
        cache.save()
        paths.append(cache.path)
    assert {*cache_folder().iterdir()} == {paths[0], paths[3]}


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04cut"])
def test_a_broken_file_is_as_none(content):
    cache = EmbeddingCache(make())
    cache.path.parent.mkdir(parents=True)
    cache.path.write_bytes(content)
    again = EmbeddingCache(make())
    again.embed(draw(1))
    again.save()
    new_images()
    EmbeddingCache(make()).embed(draw(1))
    assert new_images() == 0
