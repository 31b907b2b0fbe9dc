# SPDX-License-Identifier: Apache-2.0
"""Worker processes: how batches leave them, and what happens when one ends or hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from muntin.data.batches import Batch
from muntin.data.loading import describe_failure
from muntin.data.shared_samples import pack, unpack
from muntin.targets import BoxTargets, LabelMap
from tests.small import write_images

ROOT = Path(__file__).resolve().parents[2]


def batch_of(side: int, targets=None) -> Batch:
    ones = torch.ones(2, 2, dtype=torch.long)
    return Batch(
        images=torch.zeros(2, 3, side, side, dtype=torch.uint8), sizes=ones, originals=ones,
        indices=torch.arange(2), weights=torch.ones(2), num_real=2, targets=targets,
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory without a name is of Linux")
def test_a_batch_is_the_same_in_one_memory():
    labels = LabelMap(torch.arange(6, dtype=torch.int16).view(2, 3).t())
    boxes = BoxTargets.empty((5, 5))
    given = replace(batch_of(4, (labels, boxes)), indices=torch.tensor([7, 8]))
    given.images[1, 2, 3, 1] = 9
    batch = unpack(pack(given))
    assert batch.indices.tolist() == [7, 8]
    assert (batch.num_real, batch.pad_to) == (given.num_real, given.pad_to)
    assert batch.images.equal(given.images)
    assert batch.targets[0].labels.equal(labels.labels)
    assert batch.targets[1].points is None
    assert batch.targets[1].boxes.shape == boxes.boxes.shape
    batch.images.zero_()
    assert int(given.images.sum()) == 9
    assert batch.weights.tolist() == [1, 1]


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs a file system of its own")
def test_batches_do_not_need_shared_memory_of_a_container(tmp_path):
    """Docker gives 64 MiB by default; here are 256 KiB for batches of 700."""
    script = tmp_path / "script.py"
    script.write_text(IN_A_CONTAINER)
    data = write_images(tmp_path / "trees", each=6)
    command = f"mount -t tmpfs -o size=256k none /dev/shm && exec {sys.executable} {script} {data}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", command],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("nobody may mount here")
    assert done.stdout.split() == ["6"] * 3, done.stderr


IN_A_CONTAINER = """
import sys
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.listing import list_classify
from muntin.data.loading import EvalLoader, Processes
from muntin.data.transforms import Preprocessing

if __name__ == "__main__":
    pre = Preprocessing(img_size=(200, 200), mean=(0.5,) * 3, std=(0.25,) * 3)
    store = ImageCache(list_classify(sys.argv[1]).train, pre, DataConfig(cache_mib=0))
    for batch in EvalLoader(store, batch_size=6, processes=Processes(workers=1)):
        print(len(batch.images))
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("DataLoader worker (pid 5) is killed by signal: Bus error. It is possible", True),
        ("DataLoader worker (pid(s) 5, 6) exited unexpectedly", True),
        ("Caught RuntimeError in DataLoader worker process 0.\nTraceback\nRuntimeError: unable to "
         "allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)", True),
        ("unable to open shared memory object </torch_1> in read-write mode: Too many", True),
        ("Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: a bug", False),
        ("shapes cannot be multiplied", False),
    ],
)  # fmt: skip
def test_failures_are_told_in_one_line(text, told):
    line = describe_failure(RuntimeError(text))
    assert bool(line) == told
    assert "\n" not in line
    if told:
        assert "machine.workers=0" in line


# A training whose workers end, or hang, in the second epoch.
SCRIPT = """
import os, signal, sys, time
from dataclasses import dataclass
from muntin.data.classification_transforms import AugmentConfig
from muntin.errors import MuntinError
from muntin.training import session
from torch.utils.data import get_worker_info

data, out, what = sys.argv[1:]
pid = os.getpid()


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoiled(AugmentConfig):
    def augment(self, sample, pre, seed, skeleton=None):
        if os.getpid() != pid and os.path.exists(out + "/results.json"):
            if what == "end":
                os.kill(os.getpid(), signal.SIGKILL)
            print("hangs", flush=True)
            time.sleep(1000)
        return AugmentConfig.augment(self, sample, pre, seed, skeleton)


if __name__ == "__main__":
    from muntin.training.loop import Loop
    from muntin.training.progress import Reporter
    from muntin.training.machine import build_fabric, choose_machine
    from muntin.training.request import Request
    from muntin.training.setup import prepare
    from muntin.training.run_objective import build_objective
    from dataclasses import replace
    from tests.small import MODEL, SETTINGS

    rows = {**SETTINGS, "machine.workers": 1, "train.start_size": 1, "data.cache_mib": 0}
    request = Request(
        task="classify", data=data, out=out, model=MODEL, img_size=(16, 16), epochs=3,
        batch_size=4, weights="none", machine=choose_machine(None, "fp32", "cpu", 1),
        settings=tuple((name, str(value)) for name, value in rows.items()),
    )
    prepared = prepare(request)
    prepared.run.write()
    config = replace(prepared.run.config, augment=Spoiled(auto="trivialaugment"))
    prepared = replace(prepared, run=replace(prepared.run, config=config))
    fabric = build_fabric(config.machine, 1)
    objective = build_objective(prepared.run, prepared.train, fabric.device, prepared.network)
    try:
        fitted = Loop(fabric, prepared, objective, Reporter(None)).fit(started=time.monotonic())
        print("interrupted", fitted.interrupted, fitted.epochs, flush=True)
    except MuntinError as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"# a test\n{SCRIPT}")
    data = write_images(tmp_path / "trees", each=6)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "MUNTIN_NO_HOOK": "1"}
    env["CUDA_VISIBLE_DEVICES"] = ""

    def run(what: str) -> subprocess.Popen[str]:
        command = [sys.executable, script, data, tmp_path / "run", what]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    return run


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals of Linux")
def test_a_worker_that_ends_is_one_line(start):
    said, _ = start("end").communicate(timeout=200)
    assert said.strip().splitlines()[-1].startswith("TrainingError the processes that read images")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals of Linux")
# tests/training/test_interruption.py holds that both signals end a wait.
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_wait_for_a_worker_that_hangs(start, tmp_path, number):
    process = start("hang")
    assert process.stdout is not None
    while "hangs" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert said.strip().splitlines()[-1] == "interrupted True 1"
    state = json.loads((tmp_path / "run" / "last.ckpt" / "state.json").read_text())
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 0)
