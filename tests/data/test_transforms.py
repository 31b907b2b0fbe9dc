# SPDX-License-Identifier: Apache-2.0
"""Fitting, normalising and augmenting, against slow twins and by their properties."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from muntin.data.batches import center_crop
from muntin.data.classification_transforms import BATCH_DRAWS, AugmentConfig
from muntin.data.randomness import draw_uniforms
from muntin.data.transforms import Preprocessing, Sample, normalise, to_tensor
from muntin.errors import ConfigError

STILL = AugmentConfig(crop_scale=1.0, crop_ratio=1.0, flip=0.0)


def pre(height=16, width=16, **changes):
    return Preprocessing(img_size=(height, width), mean=(0.5,) * 3, std=(0.25,) * 3, **changes)


def pixels(count=4, height=16, width=16):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def uniforms(count=4, seed=0):
    return draw_uniforms(seed, 0, np.arange(count), BATCH_DRAWS)


def test_nothing_asked_nothing_changed():
    images = pixels(4, 16, 24)
    assert STILL.augment_batch(images, uniforms(), pre(16, 24)).equal(images)


@pytest.mark.parametrize(("name", "axis"), [("flip", 3), ("flip_vertical", 2)])
def test_mirrors_are_exact(name, axis):
    images = pixels(4, 16, 24)
    config = AugmentConfig(**{"crop_scale": 1.0, "crop_ratio": 1.0, "flip": 0.0, name: 1.0})
    assert config.augment_batch(images, uniforms(), pre(16, 24)).equal(images.flip(axis))


def test_half_of_many_are_mirrored():
    images = torch.arange(16, dtype=torch.uint8).expand(400, 3, 16, 16)
    config = AugmentConfig(crop_scale=1.0, crop_ratio=1.0, flip=0.5)
    out = config.augment_batch(images, uniforms(400), pre())
    assert 150 < (out[:, 0, 0, 0] == 15).sum() < 250


FULL = AugmentConfig(crop_scale=0.3, flip=0.5, flip_vertical=0.5, erase=0.5)


@pytest.mark.parametrize("size", [(16, 16), (8, 12), (24, 32)])
def test_a_image_does_not_depend_on_its_batch(size):
    images, draws = pixels(9), uniforms(9)
    whole = FULL.augment_batch(images, draws, pre(*size))
    assert whole.shape == (9, 3, *size)
    assert whole.dtype == torch.uint8
    for rows in (slice(0, 1), slice(3, 5), slice(2, 9)):
        assert FULL.augment_batch(images[rows], draws[rows], pre(*size)).equal(whole[rows])
    assert not FULL.augment_batch(images, uniforms(9, seed=1), pre(*size)).equal(whole)


def test_crops_show_a_part_of_the_image():
    # Rows and columns count up, so a crop without mirrors keeps the order and stays in range.
    ramp = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    images = torch.stack([ramp, ramp.transpose(1, 2)] * 20)
    config = AugmentConfig(crop_scale=0.2, crop_ratio=1.5, flip=0.0)
    out = config.augment_batch(images, uniforms(40), pre(32, 32)).int()
    columns, rows = out[0::2, 0, 0], out[1::2, 0, :, 0]
    for line in (*columns, *rows):
        assert (line.diff() >= 0).all()
    spans = torch.cat([columns, rows])
    widths = spans[:, -1] - spans[:, 0]
    assert widths.min() < 20
    assert widths.max() > 22


def test_erased_boxes_have_the_mean_colour_and_a_fair_size():
    images = torch.zeros(300, 3, 32, 32, dtype=torch.uint8)
    config = AugmentConfig(crop_scale=1.0, crop_ratio=1.0, flip=0.0, erase=0.5)
    out = config.augment_batch(images, uniforms(300), pre(32, 32))
    assert set(out.unique().tolist()) == {0, 128}
    shares = (out[:, 0] > 0).float().mean((1, 2))
    assert 110 < (shares > 0).sum() < 190
    assert shares[shares > 0].min() > 0.005
    assert shares.max() < 0.4


ONE_BY_ONE = {
    "plain": AugmentConfig(),
    "randaugment": AugmentConfig(auto="randaugment", jitter=0.4, erase=0.5, flip_vertical=0.3),
    "trivialaugment": AugmentConfig(auto="trivialaugment", erase=1.0),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_image_by_its_seed(name, in_chans):
    means = {"mean": (0.5,) * in_chans, "std": (0.25,) * in_chans, "in_chans": in_chans}
    config, wanted = ONE_BY_ONE[name], Preprocessing(img_size=(12, 20), **means)
    sample = Sample(pixels(1, 30, 40)[0][:in_chans], (30, 40), None)
    before = torch.random.get_rng_state()
    out = config.augment(sample, wanted, 7).pixels
    assert torch.random.get_rng_state().equal(before)
    assert out.shape == (in_chans, 12, 20)
    assert out.dtype == torch.uint8
    torch.rand(3)
    assert config.augment(sample, wanted, 7).pixels.equal(out)
    assert any(not config.augment(sample, wanted, seed).pixels.equal(out) for seed in range(4))


@pytest.mark.parametrize("seed", range(40))
def test_crops_and_mirrors_have_the_bits_of_torchvision(seed):
    sizes = [(30, 40), (90, 7), (7, 90), (1, 60), (64, 64), (9, 9)]
    image = pixels(1, *sizes[seed % len(sizes)])[0]
    wanted = pre(12, 20, interpolation=("bicubic", "bilinear")[seed % 2])
    config = AugmentConfig(crop_scale=(0.08, 0.6)[seed % 2], flip_vertical=0.5 * (seed % 3))
    mode = InterpolationMode(wanted.interpolation)
    steps = [
        v2.RandomResizedCrop((12, 20), (config.crop_scale, 1.0), interpolation=mode),
        v2.RandomHorizontalFlip(),
        *[v2.RandomVerticalFlip(config.flip_vertical)] * (seed % 3 > 0),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = v2.Compose(steps)(image)
    assert config.augment(Sample(image, (1, 1), None), wanted, seed).pixels.equal(expected)


def test_threads_do_not_share_random_numbers():
    config, wanted = ONE_BY_ONE["randaugment"], pre(12, 20)
    samples = [Sample(image, (30, 40), None) for image in pixels(16, 30, 40)]

    def augment(number: int) -> torch.Tensor:
        return config.augment(samples[number], wanted, number).pixels

    alone = [augment(number) for number in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(augment, range(16)))
    assert all(map(torch.equal, alone, together))


def test_what_can_be_done_at_once():
    assert FULL.batch_transform is not None
    assert AugmentConfig(auto="randaugment").batch_transform is None
    assert AugmentConfig(jitter=0.1).batch_transform is None


def test_fitting():
    image = pixels(1, 20, 30)[0]
    assert center_crop(image, pre(20, 30)).equal(image)
    assert center_crop(image, pre(20, 20)).equal(image[:, :, 5:25])
    assert center_crop(image, pre(8, 14, crop_fraction=0.8)).shape == (3, 8, 14)
    assert center_crop(pixels(1, 1, 300)[0], pre(7, 9)).shape == (3, 7, 9)


def test_normalising():
    images = pixels()
    expected = (images.double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(normalise(images, pre()).double(), expected, rtol=1e-5, atol=1e-5)


def test_to_tensor():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    assert to_tensor(image).permute(1, 2, 0).numpy().tolist() == image.tolist()
    grey = to_tensor(image, 1)
    assert grey.shape == (1, 5, 7)
    expected = image @ np.array([0.2989, 0.587, 0.114])
    assert np.abs(grey[0].numpy() - expected).max() <= 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"crop_scale": 0.0}, "augment.crop_scale must be from 0.01 to 1, got 0.0"),
        ({"crop_ratio": 0.5}, "augment.crop_ratio must be from 1 to 10"),
        ({"flip": 1.5}, "augment.flip must be from 0 to 1"),
        ({"flip_vertical": -1.0}, "augment.flip_vertical must"),
        ({"erase": 2.0}, "augment.erase must be from 0 to 1"),
        ({"jitter": 2.0}, "augment.jitter must be from 0 to 1"),
        ({"magnitude": 31}, "augment.magnitude must be from 0 to 30"),
        ({"mixup": -1.0}, "augment.mixup must be"),
        ({"cutmix": -1.0}, "augment.cutmix must be"),
    ],
)
def test_wrong_augmentation(changes, text):
    with pytest.raises(ConfigError, match=text):
        AugmentConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"img_size": (0, 8)}, "preprocessing.img_size must be from 1"),
        ({"crop_fraction": 0.0}, "preprocessing.crop_fraction must be from 0.1"),
        ({"in_chans": 1}, "with one mean and std a channel, got in_chans=1"),
        ({"std": (0.5, 0.0, 0.5)}, "preprocessing.std must be from .*0.0"),
    ],
)
def test_wrong_preprocessing(changes, text):
    with pytest.raises(ConfigError, match=text):
        Preprocessing(**{"img_size": (8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, **changes})
