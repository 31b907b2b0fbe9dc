# SPDX-License-Identifier: Apache-2.0
"""Sharded training: each process keeps some rows of every parameter, gradient and moment.

Source:
    FSDP2 of PyTorch (`torch.distributed.fsdp.fully_shard`), which splits every tensor along its
    first dimension. The global gradient norm, the rows of matrices for muon and checkpoints are
    made here (docs/adr/0037).
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from muntin.collectives import agree
from muntin.errors import ConfigError
from muntin.features import name_blocks
from muntin.heads.network import Network
from muntin.objectives.objective import TrainingStep
from muntin.shapes import Float
from muntin.train_config import MachineConfig, TrainConfig


def check_sharding(train: TrainConfig, machine: MachineConfig) -> list[str]:
    """Refuse what does not work together with shards; give notes of what has no effect.

    Raises:
        ConfigError: Steps are compiled, the loss is scaled, or the device has no collectives.
    """
    if not train.shard:
        return []
    wrong = {
        "machine.compile=off": machine.compile == "on" and "machine.compile=on",
        "precision bf16 or fp32": machine.precision == "fp16" and "fp16",
        "device cuda or cpu": machine.device == "mps" and "mps",
    }
    for needed, got in wrong.items():
        if got:
            message = f"train.shard=true needs {needed}, got {got}. Change it, or omit train.shard."
            raise ConfigError(message)
    alone = machine.devices * machine.nodes == 1
    return ["train.shard has no effect on one device (--devices)"] if alone else []


def shard_step(step: TrainingStep) -> None:
    """Shard network and auxiliary module of a step in place: a unit a block, the rest another one.

    A unit is whole while it computes. Values are those of the first process; names stay.
    """
    for tensor in (*step.parameters(), *step.buffers()):
        dist.broadcast(tensor.detach(), 0)
    parameter = next(step.parameters())
    mesh = init_device_mesh(parameter.device.type, (dist.get_world_size(),))
    backbone = step.network.backbone
    blocks = [backbone.get_submodule(name) for name in name_blocks(backbone)]
    try:
        for module in (*blocks, step):
            # Before that of FSDP, whose place in the backward pass a change of a view would lose.
            module.register_forward_hook(lambda _, __, output: _copy_views(output))
            fully_shard(module, mesh=mesh)
    except ValueError as error:
        message = f"train.shard=true needs a model that can be sharded, but {error}. Turn it off."
        raise ConfigError(message) from error


def _copy_views(output: Any) -> Any:  # noqa: ANN401 (of any block)
    """The same tensors, without those that share the memory of another one."""
    if isinstance(output, Tensor):
        return output.clone() if output._is_view() else output
    if isinstance(output, dict):
        return {name: _copy_views(each) for name, each in output.items()}
    if type(output) in (list, tuple):
        return type(output)(map(_copy_views, output))
    return output


def join_unused(loss: Tensor, step: nn.Module) -> Tensor:
    """Give parameters that only other processes use a gradient of zero; call it in all of them.

    The branch of masks has no part in the loss of images without objects: sums of gradients need
    the same parameters everywhere. Those of blocks are always used.
    """
    whole = [p for p in step.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    used = _leaves(loss)
    flags = torch.tensor([id(p) in used for p in whole], device=loss.device, dtype=torch.uint8)
    everywhere = flags.clone()
    dist.all_reduce(everywhere, dist.ReduceOp.MAX)
    lacking = (everywhere > flags).tolist()
    # Sums of nothing: values that are not finite change nothing.
    parts = [p.flatten()[:0].sum() for p, lacks in zip(whole, lacking, strict=True) if lacks]
    return loss + torch.stack(parts).sum() if parts else loss


def _leaves(loss: Tensor) -> set[int]:
    """Ids of the parameters that a loss depends on."""
    seen, rest, found = set(), [loss.grad_fn], set()
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        rest += [each for each, _ in node.next_functions]
    return found


def own_part(tensor: Tensor) -> Tensor:
    """Rows that this process keeps of a sharded tensor, which share its memory; else the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def take_rows(stored: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor, of which only the rows of this process are read, as another one is."""
    if not isinstance(like, DTensor):
        return stored
    start, stop = rows_of(len(stored), dist.get_rank(), dist.get_world_size())
    # A copy: the file is mapped into memory, and what it maps is replaced by the next checkpoint.
    return DTensor.from_local(
        stored[start:stop].to(like.device, copy=True), like.device_mesh, like.placements,
        run_check=False, shape=stored.shape, stride=stored.stride(),
    )  # fmt: skip


def rows_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """First row, and the one after the last, that a process keeps of `count` rows."""
    most = -(-count // size)  # as torch.chunk: the last ones may have fewer, or none
    return min(rank * most, count), min((rank + 1) * most, count)


def take_moments(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Shard a saved state of an optimizer as its parameters are."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    places = [place for group in saved["param_groups"] for place in group["params"]]
    like = dict(zip(places, parameters, strict=True))
    state = {
        place: {
            name: take_rows(value, like[place]) if value.shape == like[place].shape else value
            for name, value in row.items()
        }
        for place, row in saved["state"].items()
    }
    return {**saved, "state": state}


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm of all values together, of sharded gradients those of all processes."""
    if not gradients:
        return 0.0
    norm = torch.stack(torch._foreach_norm([own_part(each) for each in gradients])).norm()
    if isinstance(gradients[0], DTensor):
        # Not by the norm of a DTensor, which may be that of one process (pytorch/pytorch#170862).
        square = norm.double().square()
        dist.all_reduce(square)
        norm = square.sqrt()
    return float(norm)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Scale sharded gradients to a global norm of at most `most`, as `clip_grad_norm_` does."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    factor = most / (gradient_norm(gradients) + 1e-6)
    if factor < 1 and math.isfinite(factor):
        torch._foreach_mul_([own_part(each) for each in gradients], factor)


class ShardedMuon(torch.optim.Muon):
    """Muon for rows of matrices: each process makes whole updates of some of the matrices.

    In each turn, as many matrices as there are processes are exchanged: every process gets the
    rows of one of them, orthogonalises it, and returns the rows. The state is that of `Muon`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients; `closure` is not used."""
        rows = [(group, p) for group in self.param_groups for p in group["params"]]
        rows = [(group, p) for group, p in rows if p.grad is not None]
        size = dist.get_world_size()
        for first in range(0, len(rows), size):
            turn = rows[first : first + size]
            updates = self._exchange(turn, [self._update(group, p) for group, p in turn])
            for (group, parameter), update in zip(turn, updates, strict=True):
                own_part(parameter).mul_(1 - group["lr"] * group["weight_decay"]).add_(update)

    def _update(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """Own rows of the gradient with momentum."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer, own = own_part(state["momentum_buffer"]), own_part(gradient)
        buffer.lerp_(own, 1 - group["momentum"])
        return own.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer

    def _exchange(
        self, turn: Sequence[tuple[dict[str, Any], Tensor]], updates: Sequence[Tensor]
    ) -> list[Tensor]:
        """Own rows of what is added to the matrices."""
        rank, size = dist.get_rank(), dist.get_world_size()
        sent = [update.numel() for update in updates] + [0] * (size - len(turn))
        # As one exchange of rows of different lengths: gloo has no other, and it is the fewest.
        flat = torch.cat([update.flatten() for update in updates])
        own = turn[rank] if rank < len(turn) else None
        got = [0] * size
        if own is not None:
            bounds = (rows_of(len(own[1]), each, size) for each in range(size))
            got = [(stop - start) * own[1].shape[1] for start, stop in bounds]
        change = flat.new_empty(sum(got))
        dist.all_to_all_single(change, flat, got, sent)
        if own is not None:
            change = _orthogonalize(change.view(own[1].shape), own[0]).flatten()
        returned = torch.empty_like(flat)
        dist.all_to_all_single(returned, change, sent, got)
        pieces = zip(returned.split(sent[: len(turn)]), updates, strict=True)
        return [piece.view(update.shape) for piece, update in pieces]


def _orthogonalize(update: Float[Tensor, "R C"], group: Mapping[str, Any]) -> Float[Tensor, "R C"]:
    """What muon adds to a matrix whose gradient with momentum is `update`."""
    change = nn.Parameter(torch.zeros_like(update))
    change.grad = update
    names = ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    options = {name: group[name] for name in names}
    # Without momentum and decay, of zeros: the step is the change itself.
    torch.optim.Muon([change], weight_decay=0, momentum=0, nesterov=False, **options).step()
    return change.detach()


class FullNetwork:
    """A network of whole parameters, beside a sharded one, for what reads all of it.

    Validation, drawing and saving do, with images of each process's own; between them the
    parameters are empty. Make it before the network is sharded, and let all processes fill it.
    """

    def __init__(self, network: Network) -> None:
        empty = {id(each): _frozen(each.detach().to("meta")) for each in network.parameters()}
        self._network: Network = copy.deepcopy(network, dict[int, Any](empty))
        self._filled = False

    def filled(self, source: nn.Module) -> Network:
        """Gather the parameters of a sharded network of the same modules, one after another."""
        if not self._filled:
            for own, buffer in zip(self._network.buffers(), source.buffers(), strict=True):
                own.copy_(buffer)
                if own.is_floating_point():  # running statistics: those of the first process
                    dist.broadcast(own, 0)
            _replace(self._network, source, lambda each: each.full_tensor())
            self._filled = True
        return self._network

    def average(self, network: Network, update: Callable[..., Any]) -> AveragedModel:
        """An average of a sharded network of the same modules, which is sharded as it is."""
        averaged = AveragedModel(self._network, multi_avg_fn=update)
        _replace(averaged.module, network, lambda each: each.clone())
        return averaged

    def empty(self) -> None:
        """Give the memory of the parameters back."""
        if self._filled:
            _replace(self._network, self._network, lambda each: each.to("meta"))
            self._filled = False


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _replace(module: nn.Module, source: nn.Module, make: Callable[[Any], Tensor]) -> None:
    """Replace the parameters of a module by what is made of those of another one."""
    made: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for name, parameter in [*source.named_parameters(remove_duplicate=False)]:
        if id(parameter) not in made:
            made[id(parameter)] = _frozen(make(parameter.detach()))
        parent, _, leaf = name.rpartition(".")
        module.get_submodule(parent).register_parameter(leaf, made[id(parameter)])


_TYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_rows(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file together: each process its rows, the first one whole tensors.

    Rows of a tensor lie behind one another in that format, so nothing is gathered, and the file is
    that of `safetensors.torch.save_file`. All processes must see the same folder.

    Raises:
        OSError: In every process, if one of them cannot write.
    """
    # The order of the library: large types first, so that each is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, places, end = {}, {}, 0
    for name in names:
        tensor = tensors[name]
        places[name], end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype], "shape": [*tensor.shape],
            "data_offsets": [places[name], end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8 bytes
    start, first = 8 + len(text), dist.get_rank() == 0

    def create() -> None:
        if first:
            with path.open("xb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(start + end)

    def write() -> None:
        with path.open("r+b") as file:
            for name in names:
                _write_own(file, tensors[name], start + places[name])
            file.flush()  # each process its part: the first cannot flush what others wrote
            os.fsync(file.fileno())

    agree(create)  # what fails in one process, fails in all
    agree(write)


def _write_own(file: BinaryIO, tensor: Tensor, place: int) -> None:
    """Write the rows of this process of a tensor that begins at `place`."""
    row = tensor.element_size() * math.prod(tensor.shape[1:])
    first = 0
    if isinstance(tensor, DTensor):
        first, _ = rows_of(len(tensor), dist.get_rank(), dist.get_world_size())
    elif dist.get_rank():
        return
    values = own_part(tensor.detach()).cpu().contiguous()
    file.seek(place + first * row)
    file.write(values.view(-1).view(torch.uint8).numpy().data if values.numel() else b"")
