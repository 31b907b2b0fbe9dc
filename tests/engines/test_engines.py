# SPDX-License-Identifier: Apache-2.0
"""Every engine says what PyTorch says; the fastest is found once."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import muntin
from muntin.devices import has_compiler
from muntin.engines.engine_network import EngineNetwork, HeadInfo, canvases_of, make_graph
from muntin.engines.engine_table import ENGINES, cache_file, find_engine, find_format, start_fastest
from muntin.engines.graphs import Graph
from muntin.engines.openvino_engine import shared_core
from muntin.engines.torch_engine import BUCKETS, start_recorded
from muntin.errors import ConfigError, RunError, ShapeError
from tests.exporting.runs import write_run

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def images(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, 256, (75, 90, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "compile"])
def test_engines_agree(tmp_path, engine):
    run = write_run(tmp_path / "run", "classify")
    truth = muntin.load(run.path, device="cpu")(images(10))
    compare(muntin.load(run.path, engine=engine)(images(10)), truth)


def compare(said, truth):
    for one, other in zip(said, truth, strict=True):
        assert one.class_ids.tolist() == other.class_ids.tolist()
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


@pytest.mark.slow
def test_a_detector_in_an_engine(tmp_path):
    run = write_run(tmp_path / "run", "fcos_small", side=96)
    lying = np.resize(images(1)[0], (96, 128, 3))
    truth = muntin.load(run.path, device="cpu")([lying, lying.transpose(1, 0, 2).copy()])
    said = muntin.load(run.path, engine="openvino")([lying, lying.transpose(1, 0, 2).copy()])
    for one, other in zip(said, truth, strict=True):
        assert len(one.scores) == len(other.scores) > 0
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)


def test_openvino_agrees_and_leaves_signals_alone(tmp_path):
    """Each core brings a stack for signals; a stack that is gone kills at the next signal."""
    run = write_run(tmp_path / "run", "classify")
    truth = muntin.load(run.path, device="cpu")(images(10))
    first = muntin.load(run.path, engine="openvino")
    second = muntin.load(run.path, engine="openvino")
    for predictor in (first, second):
        compare(predictor(images(10)), truth)
    del predictor, first
    gc.collect()
    del second
    gc.collect()
    if not hasattr(signal, "SIGCHLD"):
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: heard.append(number))
    try:
        os.kill(os.getpid(), signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert heard == [signal.SIGCHLD]


def test_openvino_reports_nothing():
    shared_core()
    assert sys.modules["openvino_telemetry"] is None


def test_bf16_is_near(tmp_path):
    run = write_run(tmp_path / "run", "classify")
    truth = muntin.load(run.path, device="cpu")(images(2))
    said = muntin.load(run.path, engine="eager", precision="bf16")(images(2))
    for one, other in zip(said, truth, strict=True):
        left, right = (each.scores[np.argsort(each.class_ids)] for each in (one, other))
        assert 0 < np.abs(left - right).max() < 0.1 * np.ptp(right)


def test_the_fastest_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = write_run(tmp_path / "run", "classify")
    network = run.load_network()
    graph = make_graph(network, run.task, run.classes, run.preprocessing, (64, 64))
    asked = []
    # Only the choice is looked at here, and the other engine takes seconds to start.
    other = replace(ENGINES["eager"], name="onnxruntime")
    engines = {"eager": ENGINES["eager"], "onnxruntime": other}

    def measure(graph, runners):
        asked.append(sorted(runners))
        return {"eager": 2.0, "onnxruntime": 1.0}

    told: list[str] = []
    for _ in range(2):
        runner = start_fastest(
            graph, "fp32", "a model", engines=engines, measure=measure, say=told.append
        )
        logits = runner([part.numpy() for part in graph.example])[0]
        assert logits.shape == (2, 3)
    assert asked == [["eager", "onnxruntime"]]
    what = "64x64 pixels, batch 2"
    assert told == [
        f"engine auto: measuring eager, onnxruntime once for {what}",
        "engine auto: onnxruntime (ms: onnxruntime 1e+03, eager 2e+03)",
        f"engine auto: onnxruntime for {what}, as measured before",
    ]
    assert "onnxruntime" in cache_file().read_text()
    start_fastest(graph, "fp32", "another model", engines=engines, measure=measure)
    assert len(asked) == 2


def test_images_are_grouped_and_padded():
    seen = []

    def start(canvas, count):
        def run(inputs):
            seen.append((canvas, inputs[0].shape))
            maps = inputs[0][:, :1, ::4, ::4].astype(np.float32)
            return [maps]

        return run

    network = EngineNetwork(start, [(32, 64), (64, 32)], HeadInfo(stride=4), finds=False)
    images = torch.randint(0, 256, (10, 3, 30, 40), dtype=torch.uint8)
    found = network(images)
    assert [shape[0] for _, shape in seen] == [8, 1, 1]
    assert {canvas for canvas, _ in seen} == {(32, 64)}
    assert found.equal(images[:, :1, ::4, ::4].float())
    with pytest.raises(ShapeError, match=r"32x64 or 64x32.*33x64"):
        network(torch.zeros(1, 3, 33, 64, dtype=torch.uint8))


def test_what_is_refused(tmp_path):
    run = write_run(tmp_path / "run", "classify")
    with pytest.raises(ConfigError, match=r"'openvin'.*'openvino'"):
        find_engine("openvin")
    with pytest.raises(ConfigError, match=r"precision.*fp32.*onnxruntime"):
        muntin.load(run.path, engine="onnxruntime", precision="bf16")
    assert find_format("a/run") is None
    assert find_format("a.XML").name == "openvino"


def test_canvases_hold_lying_and_standing_images(tmp_path):
    run = write_run(tmp_path / "run", "fcos_small", side=96)
    assert canvases_of(run.preprocessing) == [(96, 128), (128, 96)]


def test_an_operator_that_onnx_lacks(tmp_path):
    from muntin.engines.onnx_engine import write_onnx

    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    graph = Graph(module=Odd(), example=(torch.ones(2, 3),), inputs=("images",), outputs=("out",))
    with pytest.raises(ConfigError, match="ONNX"):
        write_onnx(graph, tmp_path / "a.onnx", "")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_says_what_the_machine_lacks():
    if torch.cuda.is_available():
        assert find_engine("cuda").installed
        return
    assert not ENGINES["cuda"].installed
    with pytest.raises(ConfigError, match=r"cuda.*GPU.*auto, eager, co"):
        find_engine("cuda")


def start(tmp_path, task, precision, compiler=lambda module: module):
    """A run in the engine of GPUs, but on this CPU: its runner, and what eager PyTorch says."""
    run = write_run(tmp_path / "run", task, side=64)
    network, canvas = run.load_network(), canvases_of(run.preprocessing)[0]
    graph = make_graph(network, run.task, run.classes, run.preprocessing, canvas, count=3)
    runner = start_recorded(graph, precision, torch.device("cpu"), compiler)
    inputs = [part.numpy() for part in graph.example]
    return runner, inputs, ENGINES["eager"].start(graph, precision)(inputs)


def agree(said, wanted, room):
    for one, other in zip(said, wanted, strict=True):
        assert np.ptp(other) > 0
        np.testing.assert_allclose(one, other, rtol=0, atol=room * np.abs(other).max())


@pytest.mark.parametrize(
    ("task", "precision"),
    [("classify", "fp32"), ("classify", "bf16"), ("semantic", "fp32"), ("fcos_small", "fp32")],
)
def test_the_network_for_gpus_agrees(tmp_path, task, precision):
    runner, inputs, wanted = start(tmp_path, task, precision)
    agree(runner(inputs), wanted, 1e-4 if precision == "fp32" else 0.05)


COMPILED = """
import warnings; warnings.simplefilter("ignore")
import sys
from pathlib import Path
from muntin.engines.torch_engine import compile_recorded
from tests.engines.test_engines import agree, start
runner, inputs, wanted = start(Path(sys.argv[1]), "classify", "fp32", compile_recorded)
for count in (3, 4, 1):
    agree(runner([part[:count] for part in inputs]), [part[:count] for part in wanted], 1e-4)
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_it_agrees_compiled(tmp_path):
    """In a process of its own: executed annotations cannot be compiled."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "MUNTIN_NO_HOOK": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 64, 70])
def test_batches_are_filled_up_to_few_sizes(count):
    seen = []

    class Double(torch.nn.Module):
        def forward(self, images, sizes):
            seen.append(len(images))
            assert bool((sizes > 0).all())
            return images * 2, sizes

    graph = Graph(module=Double(), example=(), inputs=("images", "sizes"), outputs=("a", "b"))
    runner = start_recorded(graph, "fp32", torch.device("cpu"), lambda module: module)
    images, sizes = np.arange(count * 2.0).reshape(count, 2), np.arange(1, count + 1)
    doubled, same = runner([images, sizes])
    np.testing.assert_array_equal(doubled, images * 2)
    np.testing.assert_array_equal(same, sizes)
    assert set(seen) <= {*BUCKETS}
    assert len(seen) == -(-count // BUCKETS[-1])


def test_calls_of_many_threads_come_from_one():
    threads = set()

    class Note(torch.nn.Module):
        def forward(self, images):
            threads.add(threading.get_ident())
            return images

    graph = Graph(module=Note(), example=(), inputs=("images",), outputs=("same",))
    runner = start_recorded(graph, "fp32", torch.device("cpu"), lambda module: module)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda value: runner([np.full((2, 1), value)])[0][0, 0], range(8)))
    assert found == list(range(8))
    assert len(threads) == 1


def test_too_little_memory_names_the_batch():
    class Greedy(torch.nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    graph = Graph(module=Greedy(), example=(), inputs=("images",), outputs=("none",))
    runner = start_recorded(graph, "fp32", torch.device("cpu"), lambda module: module)
    with pytest.raises(RunError, match=r"\b4\b.*cpu.*2 GiB"):
        runner([np.zeros((3, 1))])


@pytest.mark.parametrize("name", [None, 5])
def test_an_engine_that_is_no_text(name):
    with pytest.raises(ConfigError, match=rf"{name}.*auto, compile, cuda, eager"):
        find_engine(name)
