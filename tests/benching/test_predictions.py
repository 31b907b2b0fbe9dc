# SPDX-License-Identifier: Apache-2.0
"""Where the time of predictions goes, for a run of each task."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from muntin.benching.benchmark_kinds import run_benchmark
from muntin.benching.peers import BenchRequest
from muntin.benching.predictions import make_images
from muntin.benching.result_rows import format_rows
from muntin.commands import main
from muntin.data.decoding import open_image
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError
from tests.golden.material import OLD

PARTS = ["preparing", "network", "decoding", "call", "drawing"]


def measure(run, **options):
    options = {"batch_size": 2, "rounds": 2, "size": (48, 64), **options}
    return run_benchmark("inference", BenchRequest(model="swin_tiny", run=str(run), **options))


@pytest.mark.parametrize(
    "name", ["classify", "detect", "instance", "semantic", "pose", "keypoint_rcnn"]
)
def test_parts_add_up_to_the_call(name):
    found = measure(OLD / name)
    json.dumps(found)
    rows = found["contestants"]
    assert [(row["batch"], row["part"]) for row in rows] == [(n, p) for n in (1, 2) for p in PARTS]
    for batch in (rows[:5], rows[5:]):
        seconds = {row["part"]: row["seconds"] for row in batch}
        assert all(one["count"] == 2 and one["min"] > 0 for one in seconds.values())
        # Of two rounds the median is the mean, so medians add up as the rounds do.
        whole = sum(seconds[name]["median"] for name in PARTS[:3])
        assert whole == pytest.approx(seconds["call"]["median"])
        assert [row["share"] for row in batch if row["part"] == "call"] == [1]
    titles, cells = format_rows(found)
    assert titles[:3] == ["batch", "part", "s an image"]
    assert [one[:2] for one in cells] == [[str(n), part] for n in (1, 2) for part in PARTS]


def test_an_exported_file(tmp_path):
    path = tmp_path / "detect.pt2"
    path.write_bytes(gzip.decompress((OLD / "detect.pt2.gz").read_bytes()))
    found = measure(path, batch_size=1)
    assert [row["part"] for row in found["contestants"]] == PARTS
    assert found["task"] == "detect"


def test_images_of_many_bands_are_arrays():
    pre = Preprocessing(img_size=(32, 32), mean=(0.5,) * 5, std=(0.2,) * 5, in_chans=5)
    (image,) = make_images(1, (20, 30), pre)
    assert image.shape == (20, 30, 5)
    np.testing.assert_array_equal(image[..., 3], image[..., 0])
    np.testing.assert_array_equal(open_image(image, pre.reading), image)


@pytest.mark.parametrize(("what", "options"), [("data", {}), ("inference", {"compiled": True})])
def test_a_run_is_for_plain_inference(what, options):
    request = BenchRequest(model="swin_tiny", run="runs/a", **options)
    with pytest.raises(ConfigError, match=f"got 'runs/a' for '{what}'"):
        run_benchmark(what, request)


@pytest.mark.parametrize("words", [("--json",), ()])
def test_the_command(capsys, words):
    run = ("bench", "inference", str(OLD / "detect"), "--rounds=1", "--batch-size=1")
    with pytest.raises(SystemExit) as caught:
        main([*run, "--img-size=48x64", *words])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    if words:
        assert json.loads(shown)["kind"] == "predictions"
    else:
        assert "48x64" in shown
        assert "decoding" in shown
