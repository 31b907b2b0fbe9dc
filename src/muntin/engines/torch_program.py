# SPDX-License-Identifier: Apache-2.0
"""Files of torch.export, run without PyTorch's loader, which unpickles and evaluates what they say.

The graph is read as JSON and its tensors as bytes; operators of a closed list are called in turn.
"""

from __future__ import annotations

import importlib
import io
import operator
import re
import sys
import zipfile
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muntin.ops.boxes import check_regions
from muntin.untrusted import check_budget, parse_json, read_regular

NOTE = "extra/muntin.json"

_SCHEMA = 8
"""Major version of the JSON; that of PyTorch 2.11 to 2.14."""

_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_STORED = {
    "parameter": "parameter_name", "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}  # fmt: skip

# No other operators: some open files, and few were made for hostile arguments.
_ATEN = frozenset(Path(__file__).with_name("torch_operators.txt").read_text().split())
_OPERATORS = {"aten": _ATEN, "torchvision": frozenset({"nms", "roi_align"})}
_COUNTED = ("torch.ops.aten.where.default", "torch.ops.torchvision.nms.default")
"""Operators with as many results as they find."""
_ARITHMETIC = (
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
)  # fmt: skip
_NUMBERS: Mapping[str, Callable[..., Any]] = {
    "torch.sym_max": max,
    "torch.sym_min": min,
    **{f"_operator.{call.__name__}": call for call in _ARITHMETIC},
}
_CPU, _META = torch.device("cpu"), torch.device("meta")


class _Name(str):
    """The name of a value in a graph."""

    __slots__ = ()


class _Step(NamedTuple):
    """A call of an operator, with inputs by position and by `names`; `last` is not used after."""

    name: str
    call: Callable[..., Any]
    names: list[str]
    inputs: tuple[list[Any], list[Any]]
    outputs: list[Any]
    last: list[str]


def read_program(path: Path) -> tuple[TorchProgram, str]:
    """Read a file of torch.export; returns its program and the metadata of muntin.

    Raises:
        ValueError, OSError: Or what else a hostile file makes parsers raise.
    """
    data = read_regular(path)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        names = [info.filename.partition("/")[2] for info in infos]
        unpacked = sum(info.file_size for info in infos)
        if unpacked > len(data):
            check_budget(unpacked, "what it unpacks to")
        parts = dict(zip(names, infos, strict=True))
        if len(parts) < len(infos):
            message = "two parts of one name"
            raise ValueError(message)

        def read(name: str) -> bytes:
            if name not in parts:
                message = f"its part {name!r:.80} is missing"
                raise ValueError(message)
            return archive.read(parts[name])

        if read("archive_version").strip() != b"0" or read("byteorder") != sys.byteorder.encode():
            message = "an archive of another version or byte order"
            raise ValueError(message)
        model = parse_json(read("models/model.json"), hook=_check_sizes)
        tensors = _read_tensors(read, "weights") | _read_tensors(read, "constants")
        note = read(NOTE).decode() if NOTE in parts else ""
    if model["schema_version"]["major"] != _SCHEMA:
        message = f"a graph of schema {model['schema_version']['major']!r}, not {_SCHEMA}"
        raise ValueError(message)
    module, stored = model["graph_module"], {}
    for spec in module["signature"]["input_specs"]:
        [(kind, value)] = spec.items()
        if kind != "user_input":
            stored[value["arg"]["name"]] = tensors[value[_STORED[kind]]]
    if any([*spec] != ["user_output"] for spec in module["signature"]["output_specs"]):
        message = "a graph that changes its weights or inputs"
        raise ValueError(message)
    return TorchProgram(module["graph"], stored), note


def _check_sizes(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse symbolic sizes that are code: nothing here needs them, other readers evaluate them."""
    text = values.get("expr_str", "")
    if not re.fullmatch(r"[\w ,()=<>'*/+-]*", text) or "__" in text:
        message = f"a size that is no formula, {text!r:.80}"
        raise ValueError(message)
    return values


def _read_tensors(read: Callable[[str], bytes], folder: str) -> dict[str, Tensor]:
    files: dict[str, Tensor] = {}
    tensors = {}
    config = parse_json(read(f"data/{folder}/model_{folder}_config.json"))["config"]
    for name, entry in config.items():
        place = entry["path_name"]
        if entry["use_pickle"] is not False:
            message = f"the pickled object {name!r:.80}"
            raise ValueError(message)
        if place not in files:
            data = bytearray(read(f"data/{folder}/{place}"))
            # Cloned, since kernels may round differently where memory is not aligned.
            files[place] = torch.frombuffer(data or bytearray(8), dtype=torch.uint8).clone()
        tensors[name] = _view(files[place], entry["tensor_meta"], name)
    return tensors


def _view(data: Tensor, meta: Mapping[str, Any], name: str) -> Tensor:
    dtype = _DTYPES[meta["dtype"]]
    values = data != 0 if dtype is torch.bool else data.view(dtype)
    sizes, strides = ([int(each["as_int"]) for each in meta[key]] for key in ("sizes", "strides"))
    offset = int(meta["storage_offset"]["as_int"])
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if min(0, offset, *sizes, *strides) < 0 or (all(sizes) and last >= len(values)):
        message = f"{name!r:.80} has a shape that its {len(data)} bytes cannot fill"
        raise ValueError(message)
    if values.is_floating_point() and bool(values.isnan().any()):
        message = f"{name!r:.80} contains NaN"
        raise ValueError(message)
    return torch.as_strided(values, sizes, strides, offset)


def _read_argument(argument: Mapping[str, Any]) -> Any:  # noqa: ANN401 (of any operator)
    [(kind, value)] = argument.items()
    if kind not in _ARGUMENTS:
        message = f"an argument of the kind {kind!r:.80}"
        raise ValueError(message)
    return _ARGUMENTS[kind](value)


def _read_arguments(values: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [_read_argument(value) for value in values]


# PyTorch checks numbers and texts itself, when its operators are called with them.
_ARGUMENTS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("as_int", "as_ints", "as_bool", "as_bools", "as_string"), lambda plain: plain),
    "as_none": lambda value: None,
    "as_float": float,  # infinities are words
    "as_floats": lambda values: [float(each) for each in values],
    "as_name": _Name,
    "as_tensor": lambda value: _Name(value["name"]),
    "as_tensors": lambda values: [_Name(each["name"]) for each in values],
    "as_device": lambda value: _CPU,
    "as_graph": lambda value: TorchProgram(value["graph"], {}),
    "as_scalar_type": _DTYPES.__getitem__,
    "as_layout": {7: torch.strided}.__getitem__,
    "as_memory_format": _MEMORY_FORMATS.__getitem__,
    **dict.fromkeys(("as_sym_int", "as_sym_bool", "as_sym_float"), _read_argument),
    **dict.fromkeys(("as_sym_ints", "as_sym_bools", "as_sym_floats"), _read_arguments),
    "as_optional_tensors": _read_arguments,
}


def _call_uncast(device: str, dtype: object, enabled: bool, kept: bool, *rest: Any) -> Any:  # noqa: ANN401
    """Call a graph that runs without autocast, as all do here."""
    if enabled is not False:
        message = "autocast in the graph"
        raise ValueError(message)
    graph, *inputs = rest
    return graph(*inputs)


def _find_operator(target: str) -> Callable[..., Any]:
    if target in _NUMBERS:
        return lambda *numbers: _limit(_NUMBERS[target](*map(_limit, numbers)))
    if target == "torch.ops.higher_order.wrap_with_autocast":
        return _call_uncast
    found = re.fullmatch(r"torch\.ops\.(aten|torchvision)\.(\w+)\.(\w+)", target)
    if found and _OPERATORS[found[1]].intersection((found[2], f"{found[2]}.{found[3]}")):
        if found[1] == "torchvision":
            importlib.import_module("torchvision")  # shapes and derivatives of its operators
        packet = getattr(getattr(torch.ops, found[1]), found[2])
        if found[3] in packet.overloads():
            return getattr(packet, found[3])
    message = f"the operator {target!r:.80}, which is none of those that muntin runs"
    raise ValueError(message)


def _limit(value: Any) -> Any:  # noqa: ANN401 (a number)
    if not isinstance(value, int | float) or not abs(value) <= 2**63:
        message = f"{value!r:.80} in place of a size"
        raise ValueError(message)
    return value


def _read_step(node: Mapping[str, Any]) -> _Step:
    named = {each["name"]: each["arg"] for each in node["inputs"] if each["kind"] == 2}
    rest = [each["arg"] for each in node["inputs"] if each["kind"] != 2]
    inputs = _read_arguments(rest), _read_arguments([*named.values()])
    outputs = _read_arguments(node["outputs"])
    return _Step(node["target"], _find_operator(node["target"]), [*named], inputs, outputs, [])


def _walk(value: Any, kind: type) -> Iterator[Any]:  # noqa: ANN401 (arguments or results)
    if isinstance(value, list | tuple):
        for each in value:
            yield from _walk(each, kind)
    elif isinstance(value, kind):
        yield value


def _change(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_change(each, kind, change) for each in value]
    return change(value) if isinstance(value, kind) else value


class TorchProgram:
    """A graph of operators, called with the tensors of its inputs that are not `stored`.

    The first call compares what each operator needs with the budget of memory before it runs.
    """

    def __init__(self, graph: Mapping[str, Any], stored: Mapping[str, Tensor]) -> None:
        self._stored = dict(stored)
        self._inputs: dict[str, tuple[torch.dtype, list[int | None]]] = {}
        for name in map(_read_argument, graph["inputs"]):
            meta = graph["tensor_values"][name]
            sizes = [each.get("as_int") for each in meta["sizes"]]
            if name not in stored:
                self._inputs[name] = _DTYPES[meta["dtype"]], sizes
        self._outputs = _read_arguments(graph["outputs"])
        self._steps = [_read_step(node) for node in graph["nodes"]]
        last: dict[str, _Step] = {}
        for step in self._steps:
            last.update(dict.fromkeys(_walk([step.inputs, step.outputs], _Name), step))
        for name in last.keys() - {*self._outputs}:
            last[name].last.append(name)
        self.tried = False

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Compute the outputs.

        Raises:
            ValueError: Inputs have other shapes than the graph, or it needs too much memory.
        """
        live: dict[str, Any] = {}
        for (name, (dtype, sizes)), value in zip(self._inputs.items(), inputs, strict=True):
            fits = len(sizes) == value.ndim and value.dtype == dtype
            if not fits or any(n not in (None, m) for n, m in zip(sizes, value.shape, strict=True)):
                message = f"{name} must be {dtype} of {sizes}, got {value.dtype} of {value.shape}"
                raise ValueError(message)
            live[name] = value
        values = ChainMap(live, self._stored)
        for step in self._steps:
            args, kwargs = (_change(each, _Name, values.__getitem__) for each in step.inputs)
            call = partial(step.call, **dict(zip(step.names, kwargs, strict=True)))
            if not self.tried:
                _check_need(step, args, kwargs, live)
            if step.name.startswith("torch.ops.torchvision.roi_align"):
                check_regions(*args)
            result = call(*args)
            places = [*_walk(step.outputs, _Name)]
            found = [each for each in _walk([result], object) if each is not None]
            live.update(zip(places, found, strict=bool(places)))
            for name in step.last:
                live.pop(name, None)
        self.tried = True
        return [values[name] for name in self._outputs]


def _check_need(step: _Step, args: list[Any], kwargs: list[Any], live: Mapping[str, Any]) -> None:
    """Compare with the budget what an operator makes, by its shapes, and what is kept."""
    schema = getattr(step.call, "_schema", None)
    if schema is None:  # of numbers
        return
    if step.name in _COUNTED:
        need = 8 * args[0].ndim * args[0].numel()
    else:
        if schema.name.startswith("aten::index_put") or schema.name == "aten::index":
            masks = [
                m.nonzero(as_tuple=True) if m is not None and m.dtype is torch.bool else m
                for m in args[1]
            ]
            args = [args[0], [*_walk(masks, object)], *args[2:]]
        names = [each.name for each in schema.arguments]
        more = dict(zip(step.names, _change(kwargs, object, _shadow), strict=True))
        if "device" in names[len(args) :]:
            more["device"] = _META
        made = step.call(*_change(args, object, _shadow), **more)
        need = sum(each.untyped_storage().nbytes() for each in _walk([made], Tensor))
    storages = [each.untyped_storage() for each in _walk([*live.values()], Tensor)]
    kept = {each.data_ptr(): each.nbytes() for each in storages}
    check_budget(need + sum(kept.values()), f"the operator {step.name}")


def _shadow(value: Any) -> Any:  # noqa: ANN401 (any argument)
    if isinstance(value, torch.device):
        return _META
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_META)
