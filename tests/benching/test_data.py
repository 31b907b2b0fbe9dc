# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Loading JPEG files, compared with torchvision."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from muntin.benching.data import IMAGE_SIZE, bench_data, write_jpegs
from muntin.errors import ConfigError


def test_compared_with_torchvision():
    messages = []
    found = bench_data(
        "swin_nano",
        batch_size=2,
        size=(48, 64),
        peers=("torchvision", "timm"),
        rounds=1,
        num_images=3,
        log=messages.append,
    )
    json.dumps(found)
    assert found["kind"] == "data"
    assert (found["num_images"], found["image_size"]) == (3, [*IMAGE_SIZE])
    assert any("timm" in line for line in messages)
    rows = found["contestants"]
    assert len(rows) == 3 * 2 * 2
    assert {one["name"] for one in rows if one["rival"]} == {
        "torchvision Pillow",
        "torchvision tensors",
    }
    for one in rows:
        assert one["missing"] == 0
        assert one["images_per_s"]["count"] == 1
        assert one["against_best_rival"] > 0
        if one["work"] == "evaluation":
            # In standard deviations; a grey level is 0.017.
            assert one["mean_error"] < 0.05
        else:
            assert one["mean_error"] is None


def test_without_peers_and_workers():
    found = bench_data("swin_nano", size=(32, 32), peers=(), rounds=2, num_images=2, workers=(0,))
    assert [one["work"] for one in found["contestants"]] == ["evaluation", "training"]
    assert all(one["against_best_rival"] is None for one in found["contestants"])
    assert all(one["images_per_s"]["count"] == 2 for one in found["contestants"])


def test_files(tmp_path):
    write_jpegs(tmp_path, 3)
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))
    assert paths == ["even/00000.jpg", "even/00002.jpg", "odd/00001.jpg"]
    with Image.open(tmp_path / paths[0]) as image:
        assert (image.format, image.size) == ("JPEG", IMAGE_SIZE[::-1])


def test_invalid_arguments_are_rejected():
    with pytest.raises(ConfigError, match=r"compiled.*data"):
        bench_data("swin_nano", compiled=True)
    with pytest.raises(ConfigError, match=r"num_images.* 0"):
        bench_data("swin_nano", num_images=0)
    with pytest.raises(ConfigError, match="peer 'tim'"):
        bench_data("swin_nano", peers=("tim",))
