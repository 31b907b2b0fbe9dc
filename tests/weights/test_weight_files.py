# SPDX-License-Identifier: Apache-2.0
"""Reading and writing files of weights: every bad file is one clear line."""

from __future__ import annotations

import os
import pickle
import re
import resource
import signal
import struct
import sys
import types

import numpy as np
import pytest
import torch

from muntin.errors import WeightError
from muntin.weights.weight_files import read_weights, write_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(3)}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_what_is_written_is_read_back_with_its_texts(tmp_path):
    path = tmp_path / "new" / "weights.safetensors"
    write_weights(path, TENSORS, {"dialect": "muntin"})
    file = read_weights(path)
    assert same(file.tensors, TENSORS)
    assert file.metadata == {"format": "pt", "dialect": "muntin"}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_tensors_that_share_memory_or_are_not_contiguous_are_written(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_weights(tmp_path / "w.safetensors", {"t": whole.t(), "parts": whole[:1]})
    assert torch.equal(read_weights(tmp_path / "w.safetensors").tensors["t"], whole.t())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("old_format", [False, True])
def test_pytorch_files_are_read(tmp_path, suffix, old_format):
    path = tmp_path / f"w{suffix}"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=not old_format)
    assert same(read_weights(path).tensors, TENSORS)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors", "pytorch_model.bin"])
def test_folder_resolves_to_its_weight_file(tmp_path, name):
    if name.endswith(".bin"):
        torch.save(TENSORS, tmp_path / name)
    else:
        write_weights(tmp_path / name, TENSORS)
    assert read_weights(str(tmp_path)).path.name == name


def make_empty(path):
    path.write_bytes(b"")


def make_text(path):
    path.write_text("these are no weights")


def make_cut_off(path):
    if path.suffix == ".safetensors":
        write_weights(path, TENSORS)
    else:
        torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-20])


def make_cut_off_early(path):
    make_cut_off(path)
    path.write_bytes(path.read_bytes()[:9])


class Surprise:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch '{self.path}'",))


def make_malicious(path):
    surprise = Surprise(path.with_name("was-here"))
    torch.save({"a.weight": torch.ones(1), "config": surprise}, path)


def make_list(path):
    torch.save([torch.ones(2)], path)


def make_pytorch(path):
    with path.open("wb") as stream:
        torch.save(TENSORS, stream)


def make_safetensors(path):
    write_weights(path.with_suffix(".safetensors"), TENSORS)
    path.with_suffix(".safetensors").rename(path)


def make_start(data):
    return lambda path: path.write_bytes(data + b" " * 40)


BAD = [
    ("w.pth", make_start(b"version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    ("w.npz", make_start(b"version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    ("w.safetensors", make_start(b"<!DOCTYPE html>"), "web page"),
    ("w.bin", make_start(b"<html>404"), "web page"),
    ("w.pth", make_start(bytes([0x1F, 0x8B, 8])), "gzip"),
    ("w.tar", make_start(bytes(257) + b"ustar"), "tar archive"),
    ("w.safetensors", make_empty, r"\b0 bytes"),
    ("w.pth", make_empty, r"\b0 bytes"),
    ("w.safetensors", make_text, "safetensors"),
    ("w.pth", make_text, "PyTorch"),
    ("w.safetensors", make_cut_off, "damaged"),
    ("w.safetensors", make_cut_off_early, "damaged"),
    ("w.pth", make_cut_off, "damaged"),
    ("w.pth", make_cut_off_early, "damaged"),
    ("w.pth", make_malicious, "Python objects"),
    ("w.pth", make_list, "list"),
    ("w.safetensors", make_pytorch, "safetensors.*PyTorch"),
    ("w.pth", make_safetensors, "PyTorch.*a safetensors file"),
    ("w.txt", make_text, r"\.safetensors, \.pth"),
]


@pytest.mark.parametrize(("name", "make", "text"), BAD)
def test_bad_file_raises_one_line(tmp_path, name, make, text):
    path = tmp_path / name
    make(path)
    with pytest.raises(WeightError, match=text) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not path.with_name("was-here").exists()


def test_missing_file_folder_without_weights_and_unreadable_file_are_named(tmp_path):
    with pytest.raises(WeightError, match=r"nothing\.pth"):
        read_weights(tmp_path / "nothing.pth")
    with pytest.raises(WeightError, match=r"model\.safetensors"):
        read_weights(tmp_path)
    loop = tmp_path / "loop.pth"
    loop.symlink_to(loop)
    with pytest.raises(WeightError, match=r"loop\.pth"):
        read_weights(loop)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, TENSORS)
    path.chmod(0)
    with pytest.raises(WeightError, match=r"w\.safetensors.*Permission denied"):
        read_weights(path)


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(WeightError, match=r"\.safetensors"):
        write_weights(tmp_path / "w.pth", TENSORS)


def test_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, TENSORS)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(WeightError, match=r"w\.safetensors"):
            write_weights(path, {"large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightError, match=r"w\.safetensors"):
        write_weights(tmp_path / "file" / "w.safetensors", TENSORS)


class CfgNode(dict):
    """As yacs has it; it stands in Microsoft's files beside the weights."""


CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"


@pytest.fixture
def microsoft_file(tmp_path, monkeypatch):
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    config = CfgNode(MODEL=CfgNode(NAME="swin"))
    config.frozen = True
    accuracy = np.float64(81.2)
    content = {"model": TENSORS, "config": config, "max_accuracy": accuracy, "epoch": 299}
    torch.save(content, tmp_path / "swin.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    return tmp_path / "swin.pth"


def test_config_object_in_a_checkpoint_is_ignored(microsoft_file):
    assert same(read_weights(microsoft_file).tensors["model"], TENSORS)


def test_arrays_of_numpy_are_read(tmp_path):
    arrays = {key: value.numpy() for key, value in TENSORS.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    assert same(dict(read_weights(tmp_path / "w.npz").tensors), TENSORS)
    with (tmp_path / "w.pkl").open("wb") as stream:
        pickle.dump({"model": arrays, "__author__": "somebody"}, stream)
    stored = read_weights(tmp_path / "w.pkl").tensors["model"]
    assert same({key: array.tensor for key, array in stored.items()}, TENSORS)


def test_half_precision_of_jax_is_read(tmp_path):
    wanted = torch.randn(3, 2).bfloat16()
    np.savez(tmp_path / "w.npz", a=wanted.view(torch.int16).numpy().view("V2"))
    assert torch.equal(read_weights(tmp_path / "w.npz").tensors["a"], wanted)


@pytest.mark.parametrize("name", ["w.npz", "w.pkl"])
def test_bad_arrays_are_one_clear_line(tmp_path, name):
    path = tmp_path / name
    for make in (make_text, make_cut_off):
        make(path)
        with pytest.raises(WeightError, match=re.escape(str(path))):
            read_weights(path)
    with path.open("wb") as stream:
        pickle.dump({"a": Surprise(tmp_path / "was-here")}, stream)
    with pytest.raises(WeightError, match=re.escape(str(path))):
        read_weights(path)
    assert not (tmp_path / "was-here").exists()


ARRAYS = {
    "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "other byte order": np.arange(3, dtype=">i4"),
    "number": np.array(2.5, dtype=np.float16),
    "empty": np.zeros((0, 4), dtype=np.uint8),
    "truth": np.array([True, False]),
}
LEFT_OUT = {"text": np.array(["a"]), "objects": np.array([None, 1]), "scalar": np.float64(1.0)}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_pickles_are_built_from_shape_type_and_bytes(tmp_path, protocol):
    content = {**ARRAYS, **LEFT_OUT}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    torch.save(content, tmp_path / "w.pth", pickle_protocol=2)
    np.savez_compressed(tmp_path / "w.npz", **ARRAYS)
    for name in ("w.pkl", "w.pth", "w.npz"):
        read = read_weights(tmp_path / name).tensors
        found = {key: getattr(value, "tensor", value) for key, value in read.items()}
        for key, array in ARRAYS.items():
            wanted = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
            assert found[key].dtype is wanted.dtype
            assert torch.equal(found[key], wanted)
        assert not any(isinstance(found.get(key), torch.Tensor) for key in LEFT_OUT)


def raw(data):
    """Bytes, as pickles of protocol 2 hold them."""
    text = data.decode("latin1").encode()
    return b"c_codecs\nencode\nX" + struct.pack("<I", len(text)) + text + b"X\6\0\0\0latin1\x86R"


def dtype(code):
    return b"cnumpy\ndtype\nX" + struct.pack("<I", len(code)) + code + b"\x85R"


FIELDS = b"(K\3X\1\0\0\0|(" + dtype(b"f4") + b"(M\xe8\x03ttNNK\x08K\1K\0tb"
START = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + raw(b"b") + b"\x87R"
HOSTILE = {
    # numpy would take each of these pickles, and read or write beyond its memory.
    "an array over a buffer": b"cnumpy\nndarray\n(K\2\x85" + dtype(b"f4") + raw(b"1234") + b"tR",
    "a type with parts": START + b"(K\1K\1\x85" + dtype(b"V8") + FIELDS
    + b"\x89" + raw(b"12345678") + b"tb",
    "too few bytes": START + b"(K\1M\xe8\x03\x85" + dtype(b"f4") + b"\x89" + raw(b"1234") + b"tb",
    "too many bytes": START + b"(K\1K\1\x85" + dtype(b"f4") + b"\x89" + raw(b"12345678") + b"tb",
    "a size": b"c__builtin__\nbytes\n(M\xe8\x03tR",
    "another codec": b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arrays_are_refused(tmp_path, name):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\2}X\1\0\0\0a" + HOSTILE[name] + b"s.")
    with pytest.raises(WeightError, match=re.escape(str(path))):
        read_weights(path)


def test_equal_weights_are_equal_files(tmp_path):
    texts = {name: f"\u00e9 {name}\n" for name in "abcdefgh"}
    for name in ("one", "two"):
        write_weights(tmp_path / f"{name}.safetensors", TENSORS, texts)
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert read_weights(one).metadata == {"format": "pt", **texts}
