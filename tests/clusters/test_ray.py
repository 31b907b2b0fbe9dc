# SPDX-License-Identifier: Apache-2.0
"""The same answers, figures and losses on a cluster, also where its processes are killed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest

from muntin.clusters.ray_cluster import check_address, connected
from muntin.clusters.ray_stages import Failed, Stage, run_stages
from muntin.errors import ClusterError, ConfigError, MissingExtra, MuntinWarning
from muntin.prediction.from_run import load
from muntin.runs import read_journal
from muntin.scoring.evaluation import evaluate
from tests.small import train_small, write_images

# Of Ray itself, in this process.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # With the processes of the test before, which take a moment to end.
    pytest.mark.filterwarnings("ignore:the cluster is busy"),
]
BROKEN = "ash/3.png"
MINUTES = 60
KILLED: list[int] = []


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("cluster") / "images", each=40)
    (folder / BROKEN).write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def run(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MuntinWarning)
        return train_small(images, images.parent / "run", epochs=1).path


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all tests, as starting one takes most of their time; kept by `connected`."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected("ray", cpus=2) as ray:
            yield ray


def paths_of(images):
    return sorted(images.rglob("*.png"))


def answers(results):
    return [json.dumps(one.to_dict()) for one in results]


@pytest.mark.parametrize("on", ["", "spark", "ray://", "ray://head", "ray:head:1", "RAY"])
def test_addresses_are_checked(on):
    with pytest.raises(ConfigError, match="ray://head:10001"):
        check_address(on)


def test_nobody_at_the_address():
    pytest.importorskip("ray")
    began = time.monotonic()
    with pytest.raises(ClusterError, match="ray://127"), connected("ray://127.0.0.1:9"):
        pass
    assert time.monotonic() - began < MINUTES


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match="muntin\\[ray\\]"), connected("ray"):
        pass


def test_what_is_no_work_for_a_cluster(run, images):
    predictor = load(run, on="ray")
    first = paths_of(images)[0]
    for inputs, options in (
        (np.zeros((8, 8, 3), np.uint8), {}),
        ([first, np.zeros((8, 8, 3), np.uint8)], {}),
        ("film.mp4", {}),
        (first, {"tile": 8}),
        (first, {"scales": (2.0,)}),
    ):
        with pytest.raises(ConfigError):
            predictor.stream(inputs, **options)
    with pytest.raises(ConfigError, match="auto"):
        load(run, on="ray", engine="auto")
    with pytest.raises(ConfigError, match="batch_size"):
        load(run, on="ray", batch_size=0)
    with pytest.raises(ConfigError):
        predictor.prepare([first])
    with pytest.raises(ConfigError, match="detector"):
        evaluate(run, images, on="ray", detector=run)
    assert list(predictor.stream([])) == []


@pytest.mark.slow
def test_same_answers(cluster, run, images):
    paths = paths_of(images)
    with pytest.warns(MuntinWarning, match=BROKEN):
        expected = answers(load(run).stream(paths, strict=False))
    with pytest.warns(MuntinWarning, match=BROKEN):
        found = answers(load(run, on="ray", batch_size=16).stream(paths, strict=False))
    assert found == expected
    assert len(found) == len(paths) - 1


@pytest.mark.slow
def test_same_figures(cluster, run, images):
    outcomes = []
    for on in ("", "ray"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MuntinWarning)
            figures = evaluate(run, images, pictures=False, batch_size=32, on=on)
        texts = {str(one.message) for one in caught if issubclass(one.category, MuntinWarning)}
        outcomes.append((figures, texts))
    assert outcomes[0] == outcomes[1]
    assert any(BROKEN in text for text in outcomes[0][1])


@pytest.mark.slow
def test_a_killed_process_loses_nothing(cluster, run, images):
    good = [path for path in paths_of(images) if BROKEN not in str(path)] * 5
    expected = answers(load(run).stream(good))
    found = []
    for number, result in enumerate(load(run, on="ray", batch_size=4).stream(good)):
        found.append(result)
        if number in (40, 300):
            assert kill_workers("MapWorker")
    assert answers(found) == expected


@pytest.mark.slow
def test_what_kills_each_of_its_processes_is_left_out(cluster):
    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found = [*run_stages("ray", range(6), [Stage(lambda: die_of_three)])]
    assert found == [0, 1, 4, Failed(3), 16, 25]


@pytest.mark.slow
def test_errors_of_a_process_are_errors_here(cluster, run, images):
    with pytest.raises(Exception, match=BROKEN) as caught:
        list(load(run, on="ray").stream(paths_of(images)))
    assert type(caught.value).__name__ == "DataError"


@pytest.mark.slow
def test_too_small(cluster):
    with pytest.raises(ClusterError, match="999"), connected("ray", cpus=999):
        pass


@pytest.mark.slow
def test_a_path_that_nodes_do_not_see(cluster, tmp_path):
    with (
        pytest.raises(ClusterError, match="absent"),
        connected("ray", paths=[str(tmp_path / "absent")]),
    ):
        pass


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_same_losses_though_a_process_is_killed(cluster, images, tmp_path):
    data, options = images, {"epochs": 8, "device": "cpu", "devices": 2}
    settings = {"data.strict": False}
    warnings.simplefilter("ignore", MuntinWarning)
    plain = train_small(data, tmp_path / "plain", settings=settings, **options)
    killer = threading.Thread(target=kill_in_training, args=(tmp_path / "there",), daemon=True)
    killer.start()
    there = train_small(data, tmp_path / "there", settings=settings, on="ray", **options)
    assert KILLED == [1]
    for name in ("train_loss", "val_loss"):
        expected, found = ([line[name] for line in read_journal(r.path)] for r in (plain, there))
        assert found == pytest.approx(expected, abs=1e-4)
    assert there.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-4)
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def die_of_three(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number**2


def kill_workers(name: str, most: int = 99) -> int:
    """Kill the processes of Ray of that name that this one's cluster has started."""
    killed = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if killed < most and process.cmdline()[:1] and name in process.cmdline()[0]:
                process.kill()
                killed += 1
    return killed


def kill_in_training(folder: Path) -> None:
    """Kill one process of a training when its first epoch is done."""
    for _ in range(600 * 20):
        if (folder / "journal.jsonl").exists() and (folder / "last.ckpt").exists():
            KILLED.append(kill_workers("RayTrainWorker", most=1))
            return
        time.sleep(0.05)
