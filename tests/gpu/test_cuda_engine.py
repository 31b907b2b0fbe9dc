# SPDX-License-Identifier: Apache-2.0
"""The engine of GPUs on a GPU: compiled, recorded, with fused window attention.

Needs MUNTIN_NO_HOOK=1: executed annotations cannot be compiled.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import muntin
from muntin.engines.graphs import Graph
from muntin.engines.torch_engine import start_cuda
from muntin.inference.inference_network import FromPixels, build_inference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("MUNTIN_NO_HOOK"), reason="needs MUNTIN_NO_HOOK=1"),
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODELS = [
    ("swin_tiny_patch4_window7_224", (224, 224)),
    ("swin_tiny_patch4_window7_224", (250, 190)),  # padded windows
    ("swinv2_tiny_window8_256", (256, 256)),
    ("vit_small_patch16_224", (224, 224)),
]


def make(name, size):
    torch.manual_seed(0)
    network = muntin.create_model(name, num_classes=10).eval()

    def build(keeps_maps=False):
        built = build_inference(network, size, keeps_maps=keeps_maps)
        return FromPixels(built, MEAN, STD, size).eval()

    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    graph = Graph(
        module=build(), example=(images,), inputs=("images",), outputs=("logits",),
        fused=(lambda: build(True)) if "swin" in name else None,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, *size), dtype=np.uint8)
    with torch.no_grad():
        return graph, pixels, build().double()(torch.from_numpy(pixels)).numpy()


@pytest.mark.parametrize(("precision", "room"), [("fp32", 1e-3), ("bf16", 0.05)])
@pytest.mark.parametrize(("name", "size"), MODELS)
def test_it_agrees_with_float64(name, size, precision, room):
    graph, pixels, wanted = make(name, size)
    run = start_cuda(graph, precision)
    for count in (1, 3, 4, 1):
        (said,) = run([pixels[:count]])
        error = np.abs(said - wanted[:count]).max() / np.abs(wanted).max()
        assert error <= room


def test_replays_give_the_same_bits_in_any_thread():
    graph, pixels, _ = make(*MODELS[0])
    run = start_cuda(graph, "bf16")
    (first,) = run([pixels])
    with ThreadPoolExecutor(4) as pool:
        for (said,) in pool.map(run, [[pixels]] * 8):
            np.testing.assert_array_equal(said, first)
