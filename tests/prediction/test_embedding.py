# SPDX-License-Identifier: Apache-2.0
"""Features of images: those of a plain loop over the network, in files that can be gone on with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import muntin
from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError, DataError, MuntinWarning, RunError
from muntin.prediction import feature_files
from muntin.prediction.embedding import embed_images
from muntin.prediction.feature_files import read_features
from muntin.samples import Classes
from muntin.tasks.task_table import find_task
from tests.golden.material import OLD

SIZES = ((17, 23), (40, 31), (64, 64), (9, 120), (33, 32))


def write_images(folder: Path, sizes=SIZES) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(sizes):
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        paths.append(folder / f"\u56fe {number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("embedding") / "images")


class Counted(muntin.Predictor):
    """Knows how many images it has prepared."""

    num_prepared = 0

    def prepare(self, images, **options):
        self.num_prepared += 1
        return super().prepare(images, **options)


def small(in_chans=3, name="swin_nano", size=(32, 32), **options):
    """A predictor with random weights that none shares."""
    torch.manual_seed(3)
    network = muntin.create_model(name, num_classes=2, in_chans=in_chans, **options)
    pre = Preprocessing(
        img_size=size, mean=(0.4,) * in_chans, std=(0.3,) * in_chans, in_chans=in_chans
    )
    task, classes = find_task("classify"), Classes(names=("a", "b"))
    return Counted(network, task, classes, pre, device="cpu", batch_size=2)


def loop(predictor, paths, read=lambda features: features.vector):
    """One image after the other, with nothing but the public parts of a predictor."""
    rows = []
    for path in paths:
        (part,) = predictor.prepare([path]).parts
        pixels = normalise(part.images, predictor.preprocessing, torch.tensor(
            [part.metas[0].input_size]
        ))  # fmt: skip
        with torch.no_grad():
            rows.append(read(predictor.network.backbone.features(pixels))[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("run", ["classify", "detect", "pose", "semantic", "instance"])
def test_vectors_are_those_of_a_plain_loop_over_the_network_of_a_run(run, images):
    table = muntin.embed(OLD / run, images, batch_size=3, device="cpu")
    wanted = loop(muntin.load(OLD / run, device="cpu"), images)
    np.testing.assert_allclose(table.rows, wanted, atol=1e-5)
    assert table.names == tuple(map(str, images))


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_file_holds_features_names_and_model(in_chans, suffix, images, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    predictor, out = small(in_chans), tmp_path / f"f{suffix}"
    muntin.embed(predictor, images[0].parent, out)
    table = read_features(out)
    np.testing.assert_allclose(table.rows, loop(predictor, images), atol=1e-5)
    assert table.names == tuple(map(str, images))
    assert table.record["pool"] == "vector"
    assert table.record["preprocessing"]["in_chans"] == in_chans
    assert not list(tmp_path.glob("*.part*"))
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(out), table.rows)
        names = (tmp_path / "f.names.txt").read_text(encoding="utf-8").splitlines()
        assert names == [str(path) for path in images]
        assert isinstance(table.rows, np.memmap)
        assert json.loads((tmp_path / "f.json").read_text())["shape"] == [5, *table.rows.shape[1:]]


def test_tokens_and_maps(images, tmp_path):
    vit = small(name="vit_tiny", size=(16, 16), img_size=16, patch_size=8, depth=1)
    tokens = muntin.embed(vit, images, tmp_path / "t.npy", pool="tokens")
    np.testing.assert_allclose(
        tokens.rows, loop(vit, images, lambda features: features.tokens), atol=1e-5
    )
    assert tokens.rows.shape[1:] == (5, 192)  # a class token and 2 x 2 patches
    swin = small()
    maps = muntin.embed(swin, images, pool="maps")
    np.testing.assert_allclose(
        maps.rows, loop(swin, images, lambda features: features.maps[-1]), atol=1e-5
    )
    with pytest.raises(ConfigError, match="ViT"):
        muntin.embed(swin, images, pool="tokens")
    with pytest.raises(ConfigError, match=r"'vectors'.*'vector'"):
        muntin.embed(swin, images, pool="vectors")


def test_maps_of_several_shapes_are_refused_and_leave_nothing(images, tmp_path):
    with pytest.raises(DataError, match=r"one shape.*pool vector"):
        muntin.embed(OLD / "detect", images, tmp_path / "m.npy", pool="maps", device="cpu")
    assert not list(tmp_path.iterdir())


def test_one_image_arrays_and_none(images, tmp_path):
    predictor = small()
    pixels = np.asarray(Image.open(images[1]))
    alone = muntin.embed(predictor, pixels)
    assert alone.names == ("image 1",)
    assert alone.record["source"] == ""  # not the folder that the process is in
    several = muntin.embed(predictor, [pixels, Image.open(images[0])])
    assert several.names == ("image 1", "image 2")
    np.testing.assert_allclose(alone.rows[0], several.rows[0], atol=1e-6)
    stored = muntin.embed(predictor, images[1].read_bytes())  # the bytes of a file
    np.testing.assert_array_equal(stored.rows, alone.rows)
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="film"):
        muntin.embed(predictor, [tmp_path / "film.mp4"])
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", []):
        with pytest.raises(DataError):
            muntin.embed(predictor, nothing, tmp_path / "f.npy")
    assert not (tmp_path / "f.npy").exists()


def test_what_cannot_be_read_is_named_and_left_out(images, tmp_path):
    broken = tmp_path / "a.png"
    broken.write_bytes(b"nothing")
    with pytest.warns(MuntinWarning, match=r"a\.png"):
        table = muntin.embed(small(), [images[0], broken, images[1]], tmp_path / "f.npy")
    assert table.names == (str(images[0]), str(images[1]))
    assert read_features(tmp_path / "f.npy").left_out == (str(broken),)
    with pytest.warns(MuntinWarning), pytest.raises(DataError, match="readable"):
        muntin.embed(small(), [broken], tmp_path / "g.npy")


def test_an_interruption_before_the_first_image_is_a_new_beginning(images, tmp_path):
    (tmp_path / "f.npy.part").write_bytes(b"")
    (tmp_path / "f.npy.part.jsonl").write_bytes(b"")
    assert len(muntin.embed(small(), images[:1], tmp_path / "f.npy")) == 1


class Stopped(Exception):
    """As Ctrl-C."""


def test_the_same_call_goes_on_where_it_stopped(images, tmp_path):
    predictor, out = small(), tmp_path / "f.npy"
    whole = muntin.embed(predictor, images)
    seen: list[str] = []

    def stop(line):
        seen.append(line)
        if line.startswith("4 of"):
            raise Stopped

    with pytest.raises(Stopped):
        muntin.embed(predictor, images, out, say=stop)
    assert not out.exists()
    # The last of the rows was cut while it was written, and so was a name.
    with (tmp_path / "f.npy.part").open("r+b") as file:
        file.truncate(os.path.getsize(tmp_path / "f.npy.part") - 5)
    with (tmp_path / "f.npy.part.jsonl").open("ab") as file:
        file.write(b'"cut')
    with pytest.raises(RunError, match=r"part\.jsonl.*Delete it"):
        muntin.embed(small(in_chans=1), images, out)
    before = predictor.num_prepared
    table = muntin.embed(predictor, images, out)
    assert predictor.num_prepared == before + 2
    np.testing.assert_allclose(table.rows, whole.rows, atol=1e-6)
    assert table.names == whole.names
    with pytest.raises(RunError, match="--force"):
        muntin.embed(predictor, images, out)
    assert len(muntin.embed(predictor, images[:1], out, force=True)) == 1


def test_memory_is_that_of_a_batch(images, tmp_path):
    """No more images are open at a time than a batch has, and none of their pixels."""
    predictor, open_now, most = small(), 0, 0

    def give():
        nonlocal open_now, most
        for path in images * 4:
            open_now += 1
            most = max(most, open_now)
            yield path

    for places, _ in embed_images(predictor, give()):
        open_now -= len(places)
    assert most <= predictor.batch_size


def test_names_that_are_no_lines(tmp_path):
    names = ["a\nb.png", '"quoted".png', "\udce4.png", "\u732b.png", " "]
    writer = feature_files.FeatureWriter(tmp_path / "f.npy", {"pool": "vector"})
    writer.add(names, np.ones((5, 2), np.float32))
    writer.finish([])
    assert read_features(tmp_path / "f.npy").names == tuple(names)


@pytest.mark.parametrize("damage", ["short", "pickle", "names", "record", "kind", "text"])
def test_broken_files_are_one_error(damage, tmp_path):
    writer = feature_files.FeatureWriter(tmp_path / "f.npy", {"pool": "vector"})
    writer.add(["a", "b"], np.ones((2, 3), np.float32))
    writer.finish([])
    path = tmp_path / "f.npy"
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "pickle":
        np.save(path, np.array([{}, {}]), allow_pickle=True)
    elif damage == "kind":
        np.save(path, np.ones((2, 3)))
    elif damage == "text":
        path.write_text("no array")
    elif damage == "names":
        (tmp_path / "f.names.txt").write_text("a\n")
    else:
        (tmp_path / "f.json").unlink()
    with pytest.raises(DataError, match=r"muntin embed"):
        read_features(path)
    with pytest.raises(DataError, match=r"nix\.npy.*not there"):
        read_features(tmp_path / "nix.npy")


def test_what_has_no_backbone_or_no_place(images, tmp_path):
    with pytest.raises(ConfigError, match=r"\.npy or \.parquet"):
        muntin.embed(small(), images, tmp_path / "f.csv")
    predictor = small()
    predictor.network = torch.nn.Identity()
    with pytest.raises(ConfigError, match="exported file"):
        muntin.embed(predictor, images)
