# SPDX-License-Identifier: Apache-2.0
"""Weights of every container, and folders of published models, that lie about what they hold."""

from __future__ import annotations

import functools
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

import muntin
from tests.hostile import mutations
from tests.hostile.harness import CANARY, Case, Place

MODEL = "swin_nano_patch4_window4_64"
FIELDS = {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "img_size": (32, 32)}
SETTINGS = ["--set=embed_dim=8", "--set=depths=2,1", "--set=num_heads=1,2", "--set=img_size=32",
            "--set=out_indices=0,1"]  # fmt: skip
LONGEST_CELL = "layers.0.blocks.0.norm1.weight"


@functools.cache
def _state(dialect: str = "timm") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = muntin.create_model(MODEL, num_classes=3, out_indices=(0, 1), **FIELDS)
    return {name: value.clone() for name, value in muntin.to_dialect(model, dialect).items()}


def _arrays() -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in _state().items()}


def _safetensors() -> bytes:
    return save(_state())


def _pth(*, new: bool = True) -> bytes:
    data = io.BytesIO()
    torch.save(_state(), data, _use_new_zipfile_serialization=new)
    return data.getvalue()


def _npz() -> bytes:
    data = io.BytesIO()
    np.savez(data, **_arrays())
    return data.getvalue()


CONTAINERS: dict[str, tuple[str, mutations.Make]] = {
    "safetensors": (".safetensors", _safetensors),
    "pth": (".pth", _pth),
    "legacy pth": (".pth", partial(_pth, new=False)),
    "npz": (".npz", _npz),
    "pkl": (".pkl", lambda: pickle.dumps({"model": _arrays(), "__author__": "timm"})),
}


def weight_cases() -> Iterator[Case]:
    """Files of weights: as they are, bytes, headers, members and pickles made hostile."""
    for kind, (suffix, load) in CONTAINERS.items():
        plain = "accept" if kind not in ("pkl", "npz") else "either"
        yield _case(kind, "plain", suffix, load, plain)
        for label, make in mutations.byte_mutations(kind, load, flips=20):
            wrong = label.startswith(("cut", "no-", "one-", "zeros", "ones", "noise"))
            yield _case(kind, label, suffix, make, "refuse" if wrong else "either")
        for place in ("folder", "pipe", "device", "nothing", "sparse"):
            yield _case(kind, place, suffix, None, "refuse")
    for label, make in mutations.json_mutations(_header()[0], 0):
        yield _case("safetensors", f"header/{label}", ".safetensors", partial(_with_header, make))
    for length in (0, 1, 10**6, 2**40, 2**63, 2**64 - 1):
        make = partial(_with_length, length)
        yield _case("safetensors", f"length/{length}", ".safetensors", make, "refuse")
    for label, change in TENSORS.items():
        yield _case("safetensors", f"tensor/{label}", ".safetensors", partial(_changed, change))
    yield from _pickle_cases()
    yield from _npz_cases()


def _case(
    kind: str, label: str, suffix: str, make: mutations.Make | None, expect: str = "either"
) -> Case:
    def build(place: Place) -> list[str]:
        path = place.source / f"weights{suffix}"
        if make is None:
            _place(path, label)
        else:
            path.write_bytes(mutations.settle(make(), str(place.outside)))
        target = str(place.out / "converted.safetensors")
        return ["convert", str(path), target, "--model", MODEL, "--to", "timm", *SETTINGS]

    return Case(name=f"weights/{kind}/{label}", kind=kind, build=build, expect=expect)


def _place(path: Path, label: str) -> None:
    if label == "folder":
        path.mkdir()
    elif label == "sparse":
        with path.open("wb") as file:
            file.write(_safetensors()[:100])
            file.truncate(2**40)
    else:
        path.symlink_to({"pipe": "../outside/pipe", "device": "/dev/zero"}.get(label, "nothing"))


def _header() -> tuple[dict[str, Any], bytes]:
    """A header with few tensors, so that each value of it can be tried, and its data."""
    header = {
        "__metadata__": {"dialect": "timm", "class_names": '["a", "b", "c"]', "license": "MIT"},
        LONGEST_CELL: {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
        "layers.0.blocks.0.norm1.bias": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]},
    }
    return header, bytes(64)


def _with_header(make: mutations.Make) -> bytes:
    text = make()
    return struct.pack("<Q", len(text)) + text + _header()[1]


def _with_length(length: int) -> bytes:
    header, data = _header()
    return struct.pack("<Q", length) + json.dumps(header).encode() + data


def _changed(change: Callable[[torch.Tensor], torch.Tensor | None]) -> bytes:
    state = dict(_state())
    value = change(state.pop(LONGEST_CELL))
    return save(state if value is None else {**state, LONGEST_CELL: value})


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "removed": lambda value: None,
    "nan": lambda value: value * float("nan"),
    "infinite": lambda value: value / 0,
    "longer": lambda value: torch.ones(9),
    "empty": lambda value: torch.ones(0),
    "no-sides": lambda value: torch.tensor(1.0),
    "many-sides": lambda value: value.reshape(1, 1, 1, 1, 1, 8, 1, 1, 1, 1),
    **{str(one).removeprefix("torch."): lambda value, one=one: value.to(one) for one in (
        torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool,
        torch.float8_e4m3fn, torch.complex64)},
}  # fmt: skip


class _Command:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {mutations.OUTSIDE}/{CANARY}",)


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _call(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02}X\1\0\0\0a" + _name(module, name) + arguments + b"Rs."


_TOUCH = f"S'touch {mutations.OUTSIDE}/{CANARY}'\n".encode()
PICKLES: dict[str, bytes] = {
    "system": b"cos\nsystem\n(" + _TOUCH + b"tR.",
    "nested-system": b"\x80\x02}X\1\0\0\0acos\nsystem\n(" + _TOUCH + b"tRs.",
    "eval": b"cbuiltins\neval\n(S'__import__(\"os\").system(\"touch " + (
        f"{mutations.OUTSIDE}/{CANARY}\")'\ntR.".encode()),
    "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR" + _TOUCH + b"\x85R.",
    "attribute": b"\x80\x04\x8c\x05torch\x8c\x0fserialization.os\x93.",
    "instance": b"(i__main__\nCommand\n.", "object": b"(cos\nsystem\n" + _TOUCH + b"o.",
    "newobj": b"\x80\x02cos\nsystem\n(" + _TOUCH + b"t\x81.",
    "build-slots": b"\x80\x02ccollections\nOrderedDict\n)R}X\7\0\0\0__len__K\1sb.",
    "stack-global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + _TOUCH + b"\x85R.",
    "extension": b"\x80\x02\x82\x01.", "persistent": b"\x80\x02Pabc\n.",
    "persistent-odd": b"\x80\x02]Q.", "itself": b"\x80\x02}q\0X\5\0\0\0modelh\0s.",
    "list-of-itself": b"\x80\x02]q\0h\0a.", "deep-lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (
        10**5 - 1) + b".",
    "deep-objects": b"\x80\x02" + b"}X\5\0\0\0model" * 10**5 + b"}" + b"s" * 10**5 + b".",
    "doubling": b"\x80\x02" + b"]q\0" + b"".join(
        b"]" + b"h" + bytes([n]) + b"ah" + bytes([n]) + b"aq" + bytes([n + 1]) for n in range(60)
    ) + b".",
    "length-62-bits": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "frame-62-bits": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "length-minus": b"\x80\x02T\xff\xff\xff\xff.", "long-minus": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "memo-31-bits": b"\x80\x02Nr\xff\xff\xff\x7f.", "memo-nothing": b"\x80\x02j\xff\xff\xff\x7f.",
    "empty-stack": b"\x80\x02R.", "no-mark": b"\x80\x02t.", "no-stop": b"\x80\x02}",
    "digits-100000": b"I" + b"9" * 100_000 + b"\n.", "long-100000": b"L" + b"9" * 100_000 + b"L\n.",
    "not-utf-8": b"\x80\x02X\2\0\0\0\xff\xfe.",
    "odd-string": b"S'abc\n.", "odd-float": b"Fa\n.",
    "item-of-number": b"\x80\x02K\5K\1K\2s.",
    "append-to-number": b"\x80\x02K\5K\1a.",
    "build-number": b"\x80\x02K\5}b.", "key-is-list": b"\x80\x02}]K\1s.",
    "protocol-9": b"\x80\x09.",
    "next-buffer": b"\x80\x05\x97.", "number": b"\x80\x02K\5.", "nothing": b"\x80\x02N.",
    "array-no-arguments": _call("numpy", "ndarray", b")"),
    "array-40-bits": _call("numpy", "ndarray", b"\x8a\x06" + (2**40).to_bytes(6, "little") + (
        b"\x85\x85")),
    "array-minus": _call("numpy", "ndarray", b"J\xff\xff\xff\xff\x85\x85"),
    "array-objects": _call("numpy", "ndarray", b"K\3\x85X\1\0\0\0O\x86"),
    "type-word": _call("numpy", "dtype", b"X\7\0\0\0klingon\x85"),
    "type-objects": _call("numpy", "dtype", b"X\1\0\0\0O\x89\x88\x87"),
    "type-void": _call("numpy", "dtype", b"X\x0b\0\0\0V2147483647\0\x89\x88\x87"),
    "scalar": _call("numpy._core.multiarray", "scalar", b")"),
    "rebuild": _call("torch._utils", "_rebuild_tensor_v2", b")"),
    "rebuild-words": _call("torch._utils", "_rebuild_tensor_v2", b"K\1K\2K\3\x87\x85"),
    "encode-unknown": _call("_codecs", "encode", b"X\1\0\0\0aX\7\0\0\0klingon\x86"),
    "ordered-number": _call("collections", "OrderedDict", b"K\5\x85"),
}  # fmt: skip


def _array_state(type_state: tuple[Any, ...] | None, state: tuple[Any, ...], kind: bytes) -> bytes:
    """An array whose type and content are given by states, as pickles of numpy do."""
    version, shape, content = (pickle.dumps(value, 2)[2:-1] for value in state)
    parts = b"\x80\x02}X\1\0\0\0a" + _name("numpy._core.multiarray", "_reconstruct")
    parts += _name("numpy", "ndarray") + b"K\0\x85C\1b\x87R(" + version + shape
    parts += _name("numpy", "dtype") + b"X" + struct.pack("<I", len(kind)) + kind + b"\x89\x88\x87R"
    if type_state is not None:
        parts += pickle.dumps(type_state, 2)[2:-1] + b"b"
    return parts + b"\x89" + content + b"tbs."


_VOID = (3, "|", None, None, None, 8, 1, 0)
STATES: dict[str, bytes] = {
    "state-short": _array_state(None, (1, (100,), "abcd"), b"f8"),
    "state-objects": _array_state(None, (1, (2,), "A" * 16), b"O"),
    "state-flags": _array_state(
        (3, "|", None, ("x",), {"x": (np.dtype("O"), 0)}, 8, 8, 0), (1, (2,), "A" * 16), b"V8"),
    "state-30-bits": _array_state((*_VOID[:5], 2**30, 1, 0), (1, (4,), "A" * 16), b"V8"),
    "state-minus": _array_state((*_VOID[:5], -8, 1, 0), (1, (4,), "A" * 16), b"V8"),
    "state-words": _array_state(("a", "b"), (1, (4,), "A" * 16), b"V8"),
    "state-shape-word": _array_state(None, (1, ("a",), "A" * 16), b"f8"),
    "state-shape-62-bits": _array_state(None, (1, (2**62, 8), "A" * 16), b"f8"),
}  # fmt: skip


def _pickle_cases() -> Iterator[Case]:
    """Pickles made by hand: as a file, as the old and as the member of the new format."""
    for label, data in {**PICKLES, **STATES}.items():
        for kind, suffix in (("pkl", ".pkl"), ("legacy pth", ".pth")):
            yield _case(kind, f"pickle/{label}", suffix, partial(bytes, data), "refuse")
        yield _case("pth", f"pickle/{label}", ".pth", partial(_with_pickle, data), "refuse")
    yield _case("pkl", "command", ".pkl", lambda: pickle.dumps({"a": _Command()}, 2), "refuse")
    for label, change in MEMBERS_OF_PTH.items():
        yield _case("pth", f"member/{label}", ".pth", partial(_repacked, change))


def _with_pickle(data: bytes) -> bytes:
    return _repacked(lambda name, content: data if name.endswith("data.pkl") else content)


def _repacked(change: Callable[[str, bytes], bytes | None]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(_pth())) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return data.getvalue()


MEMBERS_OF_PTH: dict[str, Callable[[str, bytes], bytes | None]] = {
    "no-pickle": lambda name, data: None if name.endswith("data.pkl") else data,
    "no-data": lambda name, data: None if "/data/" in name else data,
    "short-data": lambda name, data: data[:4] if "/data/" in name else data,
    "long-data": lambda name, data: data * 9 if "/data/" in name else data,
    "empty-data": lambda name, data: b"" if "/data/" in name else data,
    "odd-order": lambda name, data: b"odd" if name.endswith("byteorder") else data,
    "big-order": lambda name, data: b"big" if name.endswith("byteorder") else data,
    "version-999": lambda name, data: b"999\n" if name.endswith("version") else data,
    "version-word": lambda name, data: b"abc\n" if name.endswith("version") else data,
    "float-as-half": lambda name, data: data.replace(b"FloatStorage", b"HalfStorage"),
    "float-as-word": lambda name, data: data.replace(b"FloatStorage", b"WordStorage"),
    "other-module": lambda name, data: data.replace(b"ctorch\n", b"cposix\n"),
}

_PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"
NPY_HEADERS: dict[str, str] = {
    "plain": _PLAIN, "huge": _PLAIN.replace("(2,)", "(1000000000000,)"),
    "overflow": _PLAIN.replace("(2,)", "(9223372036854775807, 9223372036854775807)"),
    "minus": _PLAIN.replace("(2,)", "(-1,)"), "half": _PLAIN.replace("(2,)", "(1.5,)"),
    "digits": _PLAIN.replace("(2,)", "(" + "9" * 5000 + ",)"), "word": "abc",
    "keys": "{'descr': 1}",
    "code": f"__import__('os').system('touch {mutations.OUTSIDE}/{CANARY}')",
    "deep": "[" * 5000 + "]" * 5000, "brackets": "(" * 9000, "objects": _PLAIN.replace("<f4", "|O"),
    "unknown": _PLAIN.replace("<f4", "klingon"), "fields": _PLAIN.replace("'<f4'", "[('a','O')]"),
    "number": _PLAIN.replace("'<f4'", "5"), "order": _PLAIN.replace("False", "7"),
    "nul": _PLAIN.replace("<f4", "<f4\0"), "void": _PLAIN.replace("<f4", "|V2147483647"),
    "texts": _PLAIN.replace("<f4", "<U1"), "dates": _PLAIN.replace("<f4", "<M8[D]"),
    "big-endian": _PLAIN.replace("<f4", ">f4"), "long": _PLAIN.replace("<f4", "<f16"),
    "spaces": "{" + " " * 10**6 + _PLAIN[1:],
}  # fmt: skip


def _npz_cases() -> Iterator[Case]:
    for label, text in NPY_HEADERS.items():
        yield _case("npz", f"header/{label}", ".npz", partial(_npz_of, text))
    for label, make in mutations.zip_mutations({"a.npy": _npy(_PLAIN), "b.npy": _npy(_PLAIN)}):
        yield _case("npz", f"zip/{label}", ".npz", make)
    pickled = np.array([_Command()], object)
    yield _case("npz", "command", ".npz", lambda: _saved(a=pickled), "refuse")
    yield _case("npz", "bomb", ".npz", _npz_bomb, "refuse")


def _saved(**arrays: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def _npy(header: str, data: bytes = bytes(8)) -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(text)) + text + data


def _npz_of(header: str) -> bytes:
    return mutations.pack_zip({"a.npy": _npy(header)})


def _npz_bomb() -> bytes:
    count = 75 * 2**20
    return mutations.pack_zip({"a.npy": _npy(_PLAIN.replace("2", str(count)), bytes(4 * count))})


TRANSFORMERS = {
    "model_type": "swin", "architectures": ["SwinForImageClassification"], "image_size": 32,
    "patch_size": 4, "num_channels": 3, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2],
    "window_size": 4, "mlp_ratio": 4.0, "qkv_bias": True, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0, "drop_path_rate": 0.1, "layer_norm_eps": 1e-5,
    "use_absolute_embeddings": False, "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
    "do_normalize": True, "size": {"height": 32, "width": 32}, "resample": 3,
    "rescale_factor": 0.00392156862745098, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
TIMM = {
    "architecture": "swin_tiny_patch4_window7_224", "num_classes": 3, "num_features": 16,
    "label_names": ["a", "b", "c"],
    "model_args": {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": [2, 1],
                   "num_heads": [1, 2]},
    "pretrained_cfg": {"input_size": [3, 32, 32], "fixed_input_size": True, "crop_pct": 0.9,
                       "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
                       "num_classes": 3, "first_conv": "patch_embed.proj", "classifier": "head.fc",
                       "license": "mit", "crop_mode": "center"},
}  # fmt: skip


def folder_cases() -> Iterator[Case]:
    """Folders of transformers and timm, and weights in shards."""
    theirs = {"config.json": TRANSFORMERS, "preprocessor_config.json": PROCESSOR}
    for kind, dialect, files in (
        ("transformers", "transformers", theirs), ("timm", "timm", {"config.json": TIMM}),
    ):  # fmt: skip
        yield _folder(kind, dialect, files, "plain", "", lambda: b"")
        for name, tree in files.items():
            found = [*mutations.document_mutations(name, json.dumps(tree).encode())]
            for label, make in [*found, *mutations.json_mutations(tree, 6)]:
                yield _folder(kind, dialect, files, f"{name}/{label}", name, make)
    index = {"metadata": {"total_size": 9}, "weight_map": {LONGEST_CELL: "part-1.safetensors"}}
    name = "model.safetensors.index.json"
    found = [*mutations.document_mutations(name, json.dumps(index).encode())]
    for label, make in [*found, *mutations.json_mutations(index)]:
        yield _folder("shards", "timm", {"config.json": TIMM}, f"{name}/{label}", name, make)


def _folder(
    kind: str, dialect: str, files: dict[str, Any], label: str, name: str, make: mutations.Make
) -> Case:
    def build(place: Place) -> list[str]:
        for one, tree in files.items():
            (place.source / one).write_text(json.dumps(tree))
        weights = "part-1.safetensors" if kind == "shards" else "model.safetensors"
        (place.source / weights).write_bytes(save(_state(dialect)))
        if name:
            settled = mutations.settle(make(), str(place.outside))
            (place.source / name).write_bytes(settled)
        return ["convert", str(place.source), str(place.out / "run"), "--to", "run"]

    expect = "either" if name else "accept"
    return Case(name=f"folder/{kind}/{label}", kind=kind, build=build, expect=expect)
