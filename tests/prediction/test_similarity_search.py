# SPDX-License-Identifier: Apache-2.0
"""Neighbours and near-duplicates are those that brute force finds; the model must be the same."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import muntin
from muntin.commands import main
from muntin.errors import ConfigError, DataError
from muntin.prediction.feature_files import FeatureTable, read_features
from muntin.prediction.similarity_search import cosines, find_duplicates
from tests.golden.material import DATA, OLD

IMAGES = DATA / "classify"


def make_table(rows, record=None):
    rows = np.asarray(rows, np.float32)
    names = tuple(f"{number}.png" for number in range(len(rows)))
    return FeatureTable(rows=rows, names=names, record=record or {})


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "f.npy"
    muntin.embed(OLD / "classify", IMAGES, out, device="cpu")
    return out


def brute_force(rows, query):
    rows, query = rows.astype(np.float64), query.astype(np.float64)
    return rows @ query / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query))


def test_neighbours_are_those_of_brute_force(features):
    table = read_features(features)
    path = sorted((IMAGES / "val").rglob("*.png"))[2]
    inside = muntin.search(features, path, top=4)
    own = table.names.index(str(path))
    wanted = brute_force(table.rows, table.rows[own])
    order = [place for place in np.argsort(-wanted, kind="stable") if place != own][:4]
    assert [match.similarity for match in inside] == pytest.approx(wanted[order], abs=1e-5)
    assert str(path) not in [match.path for match in inside]
    # The same pixels, which are not known by a path, find the image itself first.
    outside = muntin.search(features, np.asarray(Image.open(path).convert("RGB")), device="cpu")
    assert len(outside) == 10
    assert outside[0].similarity == pytest.approx(1, abs=1e-5)
    rest = [match.similarity for match in outside[1:]]
    assert rest == sorted(rest, reverse=True)


def test_tables_of_more_rows_than_are_in_memory():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 5)).astype(np.float32)
    rows[11] = 0
    found = cosines(rows, rows[3], at_once=7)
    wanted = np.nan_to_num(brute_force(np.where(rows.any(1, keepdims=True), rows, 1), rows[3]))
    assert found[11] == 0
    np.testing.assert_allclose(np.delete(found, 11), np.delete(wanted, 11), atol=1e-5)
    rows = np.repeat(rng.normal(size=(12, 3)), 4, axis=0) + rng.normal(0, 0.05, (48, 3))
    rows = rows[rng.permutation(48)]
    found = find_duplicates(make_table(rows), 0.99, at_once=7)
    # One pair after the other, in double precision, with a margin from the threshold.
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(rows @ rows.T - 0.99).min() > 1e-6
    taken, groups = set(), []
    for leader in range(48):
        others = [] if leader in taken else [
            other for other in range(leader + 1, 48)
            if other not in taken and rows[leader] @ rows[other] >= 0.99
        ]  # fmt: skip
        taken.update(others)
        groups += [[f"{number}.png" for number in (leader, *others)]] if others else []
    assert len(groups) > 3
    assert [[match.path for match in group] for group in found] == groups


def test_equal_images_are_duplicates_at_the_highest_threshold():
    rows = [[0.1, 0.7, 0.3], [1, 0, 0], [0.2, 1.4, 0.6], [0, 0, 0], [0, 0, 0]]
    (group,) = find_duplicates(make_table(rows), 1.0)
    assert [match.path for match in group] == ["0.png", "2.png"]
    assert find_duplicates(make_table(np.zeros((0, 3)))) == []
    with pytest.raises(ConfigError, match="threshold"):
        find_duplicates(make_table(rows), 1.5)


def test_another_model_is_refused(features, tmp_path):
    pixels = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ConfigError, match="SHA-256"):
        muntin.search(features, pixels, model=OLD / "several", device="cpu")
    assert muntin.search(features, pixels, model=muntin.load(OLD / "classify", device="cpu"))
    table = read_features(features)
    with pytest.raises(ConfigError, match="--model"):
        muntin.search(replace(table, record={}), pixels)
    with pytest.raises(DataError, match="pool vector"):
        muntin.search(make_table(np.ones((2, 3, 4)), {"pool": "tokens"}), pixels)
    with pytest.raises(DataError, match="not there"):
        muntin.search(tmp_path / "f.npy", pixels)


def call(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("warnings.showwarning", None)
    out, image = tmp_path / "f.npy", sorted(IMAGES.rglob("*.png"))[0]
    words = ("embed", OLD / "classify", IMAGES, "--out", out, "--device", "cpu")
    assert "12 images, 16 float32" in call(capsys, *words)[1]
    assert "--force" in call(capsys, *words)[2]
    code, text, _ = call(capsys, "search", out, image, "--top", 2)
    assert code == 0
    assert len(text.splitlines()) == 2
    code, text, _ = call(capsys, "search", out, image, "--top", 2, "--json")
    assert [sorted(row) for row in json.loads(text)] == [["path", "similarity"]] * 2
    code, text, _ = call(capsys, "search", out, "--duplicates", "--threshold", 0.9999)
    assert code == 0
    assert "of near-duplicates (cosine >= 0.9999)" in text
    assert call(capsys, "search", out)[0] == 2
    assert call(capsys, "search", out, image, "--threshold", 0.5)[0] == 2
