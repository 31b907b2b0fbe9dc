# SPDX-License-Identifier: Apache-2.0
"""Principal components of feature maps, and retrieval and embeddings of a folder."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from muntin.data.batches import center_crop
from muntin.data.decoding import open_image
from muntin.data.transforms import normalise, to_tensor
from muntin.errors import DataError, MuntinWarning
from muntin.explaining.feature_maps import (
    find_components,
    project_rows,
    show_features,
    title_maps,
)
from muntin.explaining.figures import MissingFigure
from muntin.explaining.retrieval import (
    embed_folder,
    query_gallery,
    show_embeddings,
    show_neighbours,
    show_retrieval,
)
from tests.explaining.small_networks import FAMILIES, build, in_engine, make_context
from tests.small import image, write_images

# Maps in colours.


@pytest.mark.parametrize("shape", [(16, 6, 9), (40, 3, 4), (2, 5, 5)])
def test_components_match_scikit_learn(shape: tuple[int, int, int]) -> None:
    cells = torch.randn(shape)
    found = find_components(cells)
    count = min(3, shape[0])
    peer = PCA(count).fit(cells.flatten(1).T.numpy())
    wanted = peer.transform(cells.flatten(1).T.numpy())
    np.testing.assert_allclose(found.shares[:count], peer.explained_variance_ratio_, rtol=1e-4)
    np.testing.assert_allclose(
        np.abs(found.values.reshape(-1, 3)[:, :count]), np.abs(wanted), rtol=1e-3, atol=1e-4
    )
    assert not found.values[..., count:].any()
    # The sign is that of the largest loading, whatever sign the decomposition had.
    loadings = np.linalg.pinv(found.values.reshape(-1, 3)[:, :count]) @ cells.flatten(1).T.numpy()
    assert (loadings[np.arange(count), np.abs(loadings).argmax(axis=1)] > 0).all()


def test_colours_are_robust_and_in_range() -> None:
    cells = torch.randn(8, 20, 20)
    cells[:, 0, 0] = 1e4  # one cell must not make all others alike
    colours = find_components(cells).colours
    assert 0 <= colours.min() <= colours.max() <= 1
    assert colours[1:, 1:, 1].std() > 0.1


def test_one_cell_is_grey() -> None:
    assert np.array_equal(find_components(torch.randn(8, 1, 1)).colours, np.full((1, 1, 3), 0.5))
    same = torch.randn(8, 1, 1).expand(8, 3, 4)
    assert np.array_equal(find_components(same).colours, np.full((3, 4, 3), 0.5))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    context = make_context(build(family), size=(50, 70))
    (result,) = show_features(context)
    spec = context.backbone.spec
    assert result.facts["strides"] == list(spec.strides)
    assert len(result.arrays) == len(spec.strides)
    assert len(result.figure.axes) == 2 * (1 + len(spec.strides))


def test_padding_is_not_shown() -> None:
    context = make_context(build("swin"), size=(50, 70), fit="letterbox")
    assert context.images.shape[2:] == (64, 96)
    assert show_features(context)[0].facts["grids"] == [[13, 18], [7, 9], [4, 5]]


def test_maps_of_one_stride_are_named_by_their_blocks() -> None:
    assert title_maps(build("vit_mean").backbone) == [f"block {n}, stride 8" for n in (1, 2, 3)]
    assert title_maps(build("swin").backbone) == ["stride 4", "stride 8", "stride 16"]


@pytest.mark.parametrize("in_chans", [1, 13])
def test_other_channels(in_chans: int) -> None:
    context = make_context(build("swin", in_chans=in_chans), in_chans=in_chans, size=(16, 19))
    assert show_features(context)[0].figure.axes


def test_exported_files_have_no_feature_maps() -> None:
    context = make_context(build("swin"))
    engine = in_engine(context.network, context.pre, (64, 96), finds=False)
    context = replace(context, network=engine)
    missing = [*show_features(context), *show_retrieval(context, None)]
    assert len(missing) == 3
    assert all(isinstance(one, MissingFigure) for one in missing)


# An image among others.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "trees", each=5, side=40)


def test_vectors_match_the_backbone(folder: Path) -> None:
    context = make_context(build("swin"), size=(48, 64))
    found = query_gallery(context, embed_folder(context, folder))
    assert len(found) == 15
    assert found.class_names == ("ash", "birch", "cedar")
    assert found.class_ids.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    for number in (0, 7):
        seen = center_crop(to_tensor(open_image(Path(found.paths[number]))), context.pre)
        with torch.no_grad():
            vector = context.backbone.embed(normalise(seen[None], context.pre))[0].numpy()
        np.testing.assert_allclose(
            found.vectors[number], vector / np.linalg.norm(vector), atol=1e-5
        )


def test_nearest_match_scikit_learn(folder: Path) -> None:
    context = make_context(build("swin"), size=(48, 64))
    found = query_gallery(context, embed_folder(context, folder))
    result = show_neighbours(context, found)
    peer = NearestNeighbors(n_neighbors=9, metric="cosine").fit(found.vectors)
    distances, places = peer.kneighbors(found.query[None])
    nearest = result.facts["nearest"]
    assert [row["path"] for row in nearest] == [found.paths[i] for i in places[0]]
    assert [row["similarity"] for row in nearest] == pytest.approx(1 - distances[0], abs=1e-5)


def test_explained_image_is_removed_from_the_gallery(folder: Path) -> None:
    own = folder / "birch" / "2.png"
    Image.open(own).save(folder / "cedar" / "copy.png")
    pixels = open_image(own)
    network = build("swin")
    context = make_context(network, size=(40, 40))
    shown = to_tensor(pixels)
    values = {name: getattr(context, name) for name in context.__dataclass_fields__}
    images = normalise(shown[None], context.pre)
    context = type(context)(
        **{**values, "pixels": pixels, "shown": shown, "images": images, "path": str(own)}
    )
    result = show_neighbours(context, query_gallery(context, embed_folder(context, folder)))
    first = result.facts["nearest"][0]
    assert Path(first["path"]).name == "copy.png"
    assert first["similarity"] == pytest.approx(1, abs=1e-5)
    assert str(own) not in [row["path"] for row in result.facts["nearest"]]


def test_a_folder_without_classes(tmp_path: Path) -> None:
    for number in range(5):
        image(0, number, 30 + number).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    context = make_context(build("vit"), size=(48, 64), fit="letterbox")
    with pytest.warns(MuntinWarning, match=r"broken\.png"):
        found = query_gallery(context, embed_folder(context, tmp_path))
    assert found.class_ids.tolist() == [-1] * 5
    assert show_neighbours(context, found).facts["num_images"] == 5
    (result,) = show_embeddings(context, found)
    assert result.arrays["components"].shape == (6, 2)


def test_limit_takes_evenly_spaced_images(folder: Path) -> None:
    context = make_context(build("swin"), size=(48, 64))
    found = query_gallery(context, embed_folder(context, folder, limit=6))
    assert len(found) == 6
    assert set(found.class_ids.tolist()) == {0, 1, 2}
    text = show_neighbours(context, found).text
    assert "6 of 15" in text


def test_an_empty_folder(tmp_path: Path) -> None:
    context = make_context(build("swin"))
    with pytest.raises(DataError):
        embed_folder(context, tmp_path)


def test_positions_match_scikit_learn(folder: Path) -> None:
    vectors = embed_folder(make_context(build("swin")), folder).vectors
    flat, shares = project_rows(torch.from_numpy(vectors), 2)
    peer = PCA(2).fit(vectors)
    np.testing.assert_allclose(np.abs(flat), np.abs(peer.transform(vectors)), atol=1e-5)
    np.testing.assert_allclose(shares, peer.explained_variance_ratio_, rtol=1e-4)


def test_the_map_of_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(build("swin"), size=(48, 64))
    found = query_gallery(context, embed_folder(context, folder))
    (result,) = show_embeddings(context, found)
    again = show_embeddings(context, found)[0]
    assert result.arrays["neighbours"].shape == (16, 2)
    assert np.array_equal(result.arrays["neighbours"], again.arrays["neighbours"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result, missing = show_embeddings(context, found)
    assert "neighbours" not in result.arrays
    assert isinstance(missing, MissingFigure)
    assert "muntin[explain]" in missing.reason


def test_too_few_for_a_map(tmp_path: Path) -> None:
    for number in range(2):
        image(0, number).save(tmp_path / f"{number}.png")
    context = make_context(build("swin"))
    (missing,) = show_embeddings(context, query_gallery(context, embed_folder(context, tmp_path)))
    assert isinstance(missing, MissingFigure)
    assert "3" in missing.reason
