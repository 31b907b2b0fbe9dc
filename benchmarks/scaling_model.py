# SPDX-License-Identifier: Apache-2.0
"""What a training step of N processes costs: predicted from measured parts, compared, extrapolated.

Parts of the model, of which all but the last are measured here, with gloo:

- computing: the step of one process alone, with its share of the batch, in the same wrapper,
- cores: how much slower it is while as many processes as cores compute, times processes a core,
- bytes: each process sends 2 (N - 1) / N times the gradients for DDP; with `train.shard` the
  parameters of blocks twice and the others once, and the gradients once, or twice by gloo, whose
  reduce-scatter is an all-reduce,
- link: seconds an exchange and bytes a second, from all-reduces of two processes,
- a cluster: the assumptions in `Cluster`, each of which is an option.

``python benchmarks/scaling_model.py link swin_nano_alone swin_nano_together disk`` measures those
parts, and compares predicted steps of 2 and 4 processes with measured ones; parts that are left out
are kept from the result of the same commit and day. ``tables`` measures nothing and prints
docs/scaling.md's tables from the newest result.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process is a core
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import record
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import muntin
from muntin.features import name_blocks
from muntin.training.processes import free_port
from muntin.training.sharding import shard_step

MIB = 2**20
BATCH = 8  # of all processes together
SIDES = {"swin_nano": 64, "swin_tiny": 64}
WORLDS = (2, 4)
STEPS = {"swin_nano": 7, "swin_tiny": 3}
WAYS = ("ddp", "shard")
LINK_SIZES = (4, 64)  # MiB
KINDS = ("alone", "together")
PARTS = ("link", *(f"{name}_{kind}" for name in SIDES for kind in KINDS), "disk", "tables")

Json = dict[str, Any]


def run(world: int, work: Callable[..., Any], *arguments: object) -> list[Any]:
    """Call `work` in processes of a group of gloo; they are forked: nothing is imported again."""
    context, port = multiprocessing.get_context("fork"), free_port()
    pipes, started = [], []
    for rank in range(world):
        mine, theirs = context.Pipe(duplex=False)
        values = (rank, world, port, theirs, work, arguments)
        process = context.Process(target=_enter, args=values, daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        started.append(process)
    told = [pipe.recv() for pipe in pipes]
    for process in started:
        process.join()
    return told


def _enter(
    rank: int,
    world: int,
    port: int,
    pipe: Connection,
    work: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    pipe.send(work(*arguments))
    dist.barrier()
    os._exit(0)


class Step(nn.Module):
    """Network and loss, as the step that training distributes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = {"img_size": SIDES[name]} if name == "swin_nano" else {}
        self.network = muntin.create_model(name, num_classes=10, **size)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Give the mean loss of a batch."""
        return F.cross_entropy(self.network(images), labels)


def wire_bytes() -> int:
    """Bytes that were sent to this machine itself."""
    rows = Path("/proc/net/dev").read_text().splitlines()
    found = next(row.split(":")[1].split() for row in rows if row.strip().startswith("lo:"))
    return int(found[8])


def measure_steps(name: str, batch: int, way: str) -> Json:
    """Seconds of steps of this process with `batch` images; `way` is one of `WAYS` or "plain"."""
    step: Any = Step(name)
    counted = [0]
    if way == "ddp":
        # As training sets it: what a process has no use for in a step may differ.
        step = DistributedDataParallel(step, find_unused_parameters=True)

        # Without annotations, which PyTorch compares with types, and which are texts here.
        def count(_, bucket):  # noqa: ANN001, ANN202
            counted[0] += bucket.buffer().nbytes
            return allreduce_hook(dist.group.WORLD, bucket)

        step.register_comm_hook(None, count)
    if way == "shard":
        shard_step(step)
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-4)
    images = torch.randn(batch, 3, SIDES[name], SIDES[name])
    labels = torch.arange(batch) % 10
    seconds = []
    for number in range(STEPS[name] + 1):
        dist.barrier()
        if number == 1:  # the one before builds buckets, moments and buffers
            sent, counted[0] = wire_bytes(), 0
        begun = time.perf_counter()
        step(images, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    dist.barrier()
    return {
        "seconds": statistics.median(seconds[1:]),
        "wire_mb": (wire_bytes() - sent) / STEPS[name] / 1e6,
        "bucket_mb": counted[0] / STEPS[name] / 1e6,
    }


def measure_link(mib: int) -> float:
    """Seconds of an all-reduce."""
    values = torch.ones(mib * MIB // 4)
    seconds = []
    for _ in range(6):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def link() -> Json:
    """Seconds an exchange, and bytes a second that cross the machine, from two processes."""
    small, large = (statistics.median(run(2, measure_link, mib)) for mib in LINK_SIZES)
    # Two processes send 2 (N - 1) / N = 1 times the bytes each.
    rate = 2 * (LINK_SIZES[1] - LINK_SIZES[0]) * MIB / (large - small)
    return {
        "all_reduce_s": dict(zip(map(str, LINK_SIZES), (small, large), strict=True)),
        "bytes_per_s": rate,
        "latency_s": max(0.0, small - 2 * LINK_SIZES[0] * MIB / rate),
    }


def alone(name: str) -> Json:
    """Steps of one process, and of one while all cores are busy."""
    cores = len(os.sched_getaffinity(0))
    shares = [BATCH // world for world in (1, *WORLDS)]
    found = {
        way: {str(n): run(1, measure_steps, name, n, way)[0]["seconds"] for n in shares}
        for way in ("plain", *WAYS)
    }
    busy = run(cores, measure_steps, name, BATCH // cores, "plain")
    return {
        "img_size": SIDES[name],
        **describe(name),
        "alone_s": found,
        "busy_s": statistics.median(each["seconds"] for each in busy),
    }


def together(name: str) -> list[Json]:
    """Steps of several processes, and what moves between them."""
    return [
        {"world": world, "way": way, **run(world, measure_steps, name, BATCH // world, way)[0]}
        for world in WORLDS
        for way in WAYS
    ]


def describe(name: str) -> Json:
    """Parameters of a model: all, and those of blocks, which are sharded one by one."""
    step = Step(name)
    backbone = step.network.backbone
    blocks = [backbone.get_submodule(one) for one in name_blocks(backbone)]
    inside = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    total = sum(parameter.numel() for parameter in step.parameters())
    return {"parameters": total, "in_blocks": inside, "blocks": len(blocks)}


def sent_bytes(model: Json, world: int, way: str, *, gloo: bool = True) -> float:
    """Bytes that each process sends in a step."""
    part, total = 4 * (world - 1) / world, model["parameters"]
    if way == "ddp":
        return float(2 * part * total)
    return float(part * (total + model["in_blocks"] + total * (2 if gloo else 1)))


def exchanges(model: Json, way: str) -> int:
    """Collective calls of a step."""
    if way == "ddp":
        return math.ceil(4 * model["parameters"] / (25 * MIB)) + 1  # buckets, and unused parameters
    return int(3 * model["blocks"]) + 2


def predict(model: Json, link: Json, cores: int, world: int, way: str) -> float:
    """Seconds of a step of processes that share this machine, which compute or send in turns."""
    slower = max(1.0, model["busy_s"] / model["alone_s"]["plain"][str(BATCH // cores)])
    crowd = slower * max(1.0, world / cores)
    computing = model["alone_s"][way][str(BATCH // world)] * crowd
    moved = world * sent_bytes(model, world, way) / link["bytes_per_s"]
    return float(computing + moved + exchanges(model, way) * link["latency_s"] * world / 2)


def compare(content: Json) -> list[Json]:
    """Predicted beside measured steps."""
    rows = []
    for name in SIDES:
        model = content.get(f"{name}_alone")
        for measured in content.get(f"{name}_together", []) if model else []:
            world, way = measured["world"], measured["way"]
            seconds = predict(model, content["link"], content["cores"], world, way)
            rows.append({
                "model": name, "way": way, "world": world, "measured_s": measured["seconds"],
                "predicted_s": seconds, "error": seconds / measured["seconds"] - 1,
                "computed_mb": world * sent_bytes(model, world, way) / 1e6,
                "wire_mb": measured["wire_mb"],
            })  # fmt: skip
    return rows


def disk() -> Json:
    """Size and seconds of a checkpoint: weights, two moments and an average, on the disk."""
    found = {}
    for name in SIDES:
        weights = Step(name).state_dict()
        tensors = {f"{kind}.{key}": torch.randn(value.shape) for kind in "wmva"
                   for key, value in weights.items()}  # fmt: skip
        seconds = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state.safetensors")
            for _ in range(3):
                begun = time.perf_counter()
                save_file(tensors, path)
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                seconds.append(time.perf_counter() - begun)
            size = path.stat().st_size
        found[name] = {"mb": size / 1e6, "seconds": statistics.median(seconds)}
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Assumptions; none of them is measured.

    `gpu_images` are images a second of a GPU, `crowded` the batch of a GPU below which it is not
    faster; `link_gb` is GB a second of a GPU's link between machines; `overlap` is the part of
    computing behind which sending hides; `image_kb`, `side` of stored images; `disk_gb` GB a
    second of the storage; `cores` and `core_images` are those of a machine of 8 GPUs;
    `gpu_days` is the mean time between failures of a GPU with its share of a machine;
    `restart_s` is from a failure to the next step.
    """

    gpu_images: float
    parameters: float
    crowded: int = 16
    link_gb: float = 40.0
    latency_us: float = 30.0
    overlap: float = 0.5
    image_kb: float = 115.0
    disk_gb: float = 2.0
    cores: int = 96
    core_images: float = 150.0
    gpu_days: float = 2100.0
    restart_s: float = 600.0


MODELS = {
    "swin_tiny": Cluster(gpu_images=1500, parameters=28.3e6),
    "vit_large": Cluster(gpu_images=400, parameters=304.3e6),
}
SETS = {"ImageNet-21k": 14.2e6, "a billion": 1e9}


def cluster_step(cluster: Cluster, gpus: int, batch: int) -> Json:
    """Seconds of a step of GPUs that each send over their own link, and what it needs."""
    share = batch / gpus
    computing = max(share, cluster.crowded) / cluster.gpu_images
    sent = 2 * (gpus - 1) / gpus * 4 * cluster.parameters
    waits = math.log2(gpus) * 2 * cluster.latency_us * 1e-6
    sending = sent / (cluster.link_gb * 1e9) + waits
    seconds = computing + max(0.0, sending - cluster.overlap * computing)
    rate = batch / seconds
    return {
        "share": share, "computing_ms": 1e3 * computing, "sending_ms": 1e3 * sending,
        "step_ms": 1e3 * seconds, "images_per_s": rate,
        "efficiency": rate / (gpus * cluster.gpu_images),
        "read_gb_per_s": rate * cluster.image_kb / 1e6,
        "cores_per_node": rate / cluster.core_images / max(1, gpus / 8),
    }  # fmt: skip


def failures(cluster: Cluster, gpus: int) -> Json:
    """Failures a day, a checkpoint's seconds, and the interval that loses least (Young 1974)."""
    writing = 16 * cluster.parameters / (cluster.disk_gb * 1e9)
    between = 86400 * cluster.gpu_days / gpus
    interval = math.sqrt(2 * writing * between)
    lost = writing / interval + (interval / 2 + cluster.restart_s) / between
    return {
        "failures_per_day": gpus / cluster.gpu_days, "checkpoint_s": writing,
        "interval_min": interval / 60, "lost": lost,
    }  # fmt: skip


def show(rows: list[Json]) -> None:
    """Print rows as a table of Markdown, numbers with three digits."""
    print("\n| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        cells = (f"{each:.3g}" if isinstance(each, float) else str(each) for each in row.values())
        print("| " + " | ".join(cells) + " |")


def tables(given: Json) -> None:
    """Print what follows for 8, 64 and 1,024 GPUs; `given` replaces assumptions."""
    clusters = {name: replace(one, **given) for name, one in MODELS.items()}
    pairs = [(8, 1024), (64, 4096), (1024, 4096), (1024, 16384)]
    epochs = []
    for name, cluster in clusters.items():
        record.log(f"{name}: {cluster}")
        steps = [{"GPUs": n, "batch": b, **cluster_step(cluster, n, b)} for n, b in pairs]
        show(steps)
        show([{"GPUs": n, **failures(cluster, n)} for n in (8, 64, 1024)])
        for images, count in SETS.items():
            hours = (f"{count / step['images_per_s'] / 3600:.2f}" for step in steps)
            size = count * cluster.image_kb / 1e9
            titles = (f"{n} GPUs, batch {b}" for n, b in pairs)
            row = {"model": name, "images": images, "TB": size}
            epochs.append(row | dict(zip(titles, hours, strict=True)))
    show(epochs)


def kept(commit: str, date: str) -> Json:
    """Parts that were measured before, of the same commit and day."""
    found = sorted(record.RESULTS.glob(f"{date}_*_scaling_model.json"))
    content = json.loads(found[-1].read_text()) if found else {}
    same = content.get("commit") == commit
    return {part: content[part] for part in PARTS if part in content} if same else {}


def main() -> None:
    """Measure the parts that are named, and write the result."""
    numbers = dict.fromkeys(("gpu_images", "link_gb", "image_kb", "disk_gb", "gpu_days"), 0.0)
    options = record.options(__doc__, parts=PARTS, **numbers)
    given = {name: value for name in numbers if (value := getattr(options, name))}
    content = {"cores": len(os.sched_getaffinity(0)), "batch": BATCH, "steps": STEPS}
    now = record.environment()
    content |= kept(now["commit"], now["date"])
    for part in options.parts:
        if part == "tables":
            tables(given)
            continue
        record.log(part)
        name, _, kind = part.rpartition("_")
        work = {"link": link, "disk": disk, "alone": alone, "together": together}[kind]
        content[part] = work(name) if name else work()
    if {*options.parts} == {"tables"}:
        return
    if "link" in content:
        content["compared"] = compare(content)
    record.save("scaling_model", {"what": "steps of several processes, predicted", **content})


if __name__ == "__main__":
    main()
