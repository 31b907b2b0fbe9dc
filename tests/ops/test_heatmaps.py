# SPDX-License-Identifier: Apache-2.0
"""Keypoints to heatmaps and back: how exact, and beside the decoder that transformers ships."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.vitpose.image_processing_vitpose import (
    get_keypoint_predictions,
    post_dark_unbiased_data_processing,
)

from muntin.ops.keypoints import (
    draw_heatmaps,
    mirror_heatmaps,
    read_heatmaps,
    to_cells,
    to_pixels,
)

SIZE, SIGMA = (64, 48), 2.0


def random_points(count, margin, seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([margin, margin])
    high = torch.tensor([size[1] - 1 - margin, size[0] - 1 - margin])
    return low + (high - low) * torch.rand(1, count, 2, generator=generator)


def drawn(points, coding, size=SIZE, sigma=SIGMA):
    known = torch.ones(points.shape[:2], dtype=torch.bool)
    return draw_heatmaps(points, known, size, sigma=sigma, coding=coding)


@pytest.mark.parametrize(("coding", "most"), [("msra", 0.5), ("udp", 0.05)])
@pytest.mark.parametrize("sigma", [2.0, 3.0])
def test_there_and_back(coding, most, sigma):
    points = random_points(2000, 3 * sigma + 0.01)
    maps, useful = drawn(points, coding, sigma=sigma)
    peaks = read_heatmaps(maps, coding=coding)
    assert useful.all()
    assert (peaks.points - points).abs().max() <= most
    assert (peaks.scores > 0.9).all()


def published(maps):
    """The decoder of transformers with the kernel of 11 that it takes when nobody says."""
    coords, _ = get_keypoint_predictions(maps.numpy())
    return torch.from_numpy(post_dark_unbiased_data_processing(coords, maps.numpy(), kernel=11))


def blurred_published(maps):
    """The decoder of ViTPose's own repository, whose blur has a sigma of 2 and mirrors borders."""
    import scipy.ndimage

    array = maps.numpy()
    smooth = scipy.ndimage.gaussian_filter(
        array, (0, 0, 2.0, 2.0), radius=(0, 0, 5, 5), mode="mirror"
    )
    coords, _ = get_keypoint_predictions(array)
    log = np.log(np.clip(smooth, 0.001, 50))
    padded = np.pad(log, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    for row, (x, y) in enumerate(coords[0].astype(int)):
        v = padded[0, row, y : y + 3, x : x + 3]
        slope = np.array([(v[1, 2] - v[1, 0]) / 2, (v[2, 1] - v[0, 1]) / 2])
        dxy = (v[2, 2] - v[1, 2] - v[2, 1] + 2 * v[1, 1] - v[1, 0] - v[0, 1] + v[0, 0]) / 2
        bend = np.array(
            [[v[1, 2] - 2 * v[1, 1] + v[1, 0], dxy], [dxy, v[2, 1] - 2 * v[1, 1] + v[0, 1]]]
        )
        coords[0, row] -= np.linalg.inv(bend + np.finfo(np.float32).eps * np.eye(2)) @ slope
    return torch.from_numpy(coords)


@pytest.mark.parametrize("decoder", [published, blurred_published])
def test_near_the_border_never_worse_than_published_decoders(decoder):
    points = random_points(4000, 0.0, seed=3)
    limits = torch.tensor([SIZE[1] - 1, SIZE[0] - 1])
    near = ((points < 3 * SIGMA) | (points > limits - 3 * SIGMA)).any(dim=-1)[0]
    points = points[:, near]
    maps, _ = drawn(points, "udp")
    ours = (read_heatmaps(maps, coding="udp").points - points).norm(dim=-1)
    theirs = (decoder(maps) - points).norm(dim=-1)
    assert (ours <= theirs + 1e-3).all()
    assert ours.max() < 0.05


def test_equal_to_the_published_decoder_inside():
    maps, _ = drawn(random_points(300, 8.0, seed=4), "udp")
    generator = torch.Generator().manual_seed(5)
    maps = (maps + 0.02 * torch.rand(maps.shape, generator=generator)).clamp(min=0)
    ours = read_heatmaps(maps, coding="udp").points
    assert (ours - blurred_published(maps)).abs().max() < 2e-3


def test_partly_hidden():
    points = torch.tensor([[[10.0, 12.0], [20.0, 20.0], [-4.0, 5.0], [-40.0, 5.0]]])
    known = torch.tensor([[True, False, True, True]])
    maps, useful = draw_heatmaps(points, known, SIZE, sigma=SIGMA, coding="udp")
    assert useful.tolist() == [[True, False, True, False]], "what reaches the map is learnt"
    assert maps[0, 1].sum() == maps[0, 3].sum() == 0
    assert maps[0, 2].max() > 0
    strange = torch.where(known[..., None], points, torch.nan)
    again, _ = draw_heatmaps(strange, known, SIZE, sigma=SIGMA, coding="udp")
    assert torch.equal(again, maps), "what is not known may be anything"


@pytest.mark.parametrize("coding", ["msra", "udp"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (64, 1)])
def test_small_and_empty_maps(coding, size):
    flat = torch.zeros(2, 3, *size)
    peaks = read_heatmaps(flat, coding=coding)
    assert torch.equal(peaks.points, torch.zeros(2, 3, 2))
    assert torch.equal(peaks.scores, torch.zeros(2, 3))
    full = torch.ones(1, 2, *size)
    assert torch.isfinite(read_heatmaps(full, coding=coding).points).all()
    assert read_heatmaps(torch.zeros(0, 3, *size), coding=coding).points.shape == (0, 3, 2)


def test_noise_never_leads_far_away():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 17, *SIZE, generator=generator) - 0.5
    peaks = read_heatmaps(maps, coding="udp").points
    places = maps.flatten(2).argmax(dim=2)
    cells = torch.stack([places % SIZE[1], places // SIZE[1]], dim=-1)
    assert (peaks - cells).abs().max() <= 3


@pytest.mark.parametrize("coding", ["msra", "udp"])
def test_mirrored_maps_come_back(coding):
    """What a perfect network says of a mirrored image is what it says of the image."""
    image, partners = (256, 192), (0, 2, 1)
    pixels = torch.tensor([[[80.0, 100.0], [40.0, 60.0], [150.0, 200.0]]])
    cells = to_cells(pixels, image, SIZE, coding=coding)
    maps, _ = drawn(cells, coding)
    other = pixels.clone()
    other[..., 0] = image[1] - 1 - other[..., 0]
    other = other[:, list(partners)]
    mirrored, _ = drawn(to_cells(other, image, SIZE, coding=coding), coding)
    back = mirror_heatmaps(mirrored, partners, coding=coding)
    found = read_heatmaps((maps + back) / 2, coding=coding).points
    most = 0.05 if coding == "udp" else 0.76
    assert (found - cells).abs().max() <= most
    plain = mirrored[:, list(partners)].flip(3)
    if coding == "msra":  # without the shift of a cell it would be worse
        unshifted = read_heatmaps((maps + plain) / 2, coding=coding).points
        assert (found - cells).abs().mean() < (unshifted - cells).abs().mean()


@pytest.mark.parametrize("coding", ["msra", "udp"])
def test_cells_and_pixels(coding):
    points = torch.rand(5, 2) * 100
    there = to_cells(points, (256, 192), SIZE, coding=coding)
    assert torch.allclose(to_pixels(there, (256, 192), SIZE, coding=coding), points, atol=1e-4)
    last = torch.tensor([[191.0, 255.0]])
    wanted = [[47.0, 63.0]] if coding == "udp" else [[47.75, 63.75]]
    assert to_cells(last, (256, 192), SIZE, coding=coding).tolist() == wanted
