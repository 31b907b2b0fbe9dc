# SPDX-License-Identifier: Apache-2.0
"""Which file of a path holds weights: a file, one of a folder, or several shards with an index."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

from muntin.errors import WeightError, shorten
from muntin.untrusted import parse_json, read_regular

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz", ".pkl")
INDEX = ".index.json"
"""End of the name of a file that lists shards."""
_FILE, _TORCH_FILE = "model.safetensors", "pytorch_model.bin"
HUB_FILES = (_FILE, _TORCH_FILE, _FILE + INDEX, _TORCH_FILE + INDEX)
"""Names of weights on the hub, the first of them that is there."""
_IN_FOLDER = (_FILE, "weights.safetensors", *HUB_FILES[1:], "mp_rank_00_model_states.pt")
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})(\.\w+)")


def find_file(path: Path) -> Path:
    """Resolve a path to a weight file or an index: the file itself, or the one in the folder."""
    if path.is_dir():
        return _find_in_folder(path)
    if not path.is_file():
        message = f"weights not found: {str(path)!r}. Check the path."
        raise WeightError(message)
    _reject_shard(path)
    if path.suffix.lower() not in SUFFIXES and not path.name.endswith(INDEX):
        message = (
            f"a weight file must end in {', '.join(SUFFIXES)}, got {str(path)!r}. Check the path."
        )
        raise WeightError(message)
    return path


def _reject_shard(path: Path) -> None:
    """Raise for a file that holds some of the weights, with the way to all of them."""
    shard = _SHARD.fullmatch(path.name)
    if shard is None or int(shard[2]) == 1:
        return
    index = path.with_name(f"{shard[1]}{shard[3]}{INDEX}")
    absent = "" if index.is_file() else f", which is not in {str(path.parent)!r}. Copy it there"
    message = (
        f"{str(path)!r} is one of {int(shard[2])} shards: the others hold the rest of the weights. "
        f"Pass their index, {index.name}{absent}."
    )
    raise WeightError(message)


def _find_in_folder(folder: Path) -> Path:
    found = next((folder / name for name in _IN_FOLDER if (folder / name).is_file()), None)
    if found is not None:
        if list(folder.glob("mp_rank_01_model_states.pt")):
            message = (
                f"{str(folder)!r} holds a model that DeepSpeed split over several processes. Load "
                f"it with DeepSpeed, and save its state dict."
            )
            raise WeightError(message)
        return found
    latest = folder / "latest"  # DeepSpeed: the name of the newest checkpoint
    name = read_regular(latest).decode(errors="replace").strip() if latest.is_file() else ""
    # Only a folder in this one: with "." or ".." the search would not end.
    if name not in ("", ".", "..") and "/" not in name and (folder / name).is_dir():
        return _find_in_folder(folder / name)
    if list(folder.glob("*.distcp")):
        message = (
            f"{str(folder)!r} is a distributed checkpoint of PyTorch. Make one file of it: python "
            f"-m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth"
        )
        raise WeightError(message)
    if list(folder.glob("zero_pp_rank_*")):
        message = (
            f"{str(folder)!r} holds weights that DeepSpeed (ZeRO stage 3) split. Make one file of "
            f"them with the script beside them: python zero_to_fp32.py . weights.pth"
        )
        raise WeightError(message)
    for path in sorted(folder.glob("*-of-*")):
        _reject_shard(path)
    message = (
        f"weights folder must contain one of {', '.join(_IN_FOLDER)}, got none in "
        f"{str(folder)!r}. Pass the path of the file."
    )
    raise WeightError(message)


def reject_url(source: str) -> None:
    """Raise for an address, which is not downloaded."""
    if re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        message = (
            f"weights must be a file, a folder or a hub id, got the address {source!r}. Download "
            f"it, for example with curl -LO, and pass the file."
        )
        raise WeightError(message)


def reject_torchscript(file: Path) -> None:
    """Raise for a zip archive that holds a program."""
    try:
        with zipfile.ZipFile(file) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile):  # no archive, or a damaged one
        return
    if "constants.pkl" in inside:
        message = (
            f"{str(file)!r} is a TorchScript program, which also holds code. Write its weights "
            f"alone: torch.save(torch.jit.load({str(file)!r}).state_dict(), 'weights.pth')"
        )
        raise WeightError(message)


def read_index(index: Path) -> dict[str, Path]:
    """Read which file beside an index holds each tensor; all files must be there."""
    try:
        names = parse_json(read_regular(index))["weight_map"]
        files = {str(key): index.parent / Path(name).name for key, name in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = (
            f"{str(index)!r} must be JSON with a weight_map of names of files: {error}. Download "
            f"it again."
        )
        raise WeightError(message) from error
    absent = sorted({file.name for file in files.values() if not file.is_file()})
    if absent or not files:
        message = (
            f"{str(index)!r} must have all of its shards beside it, but lacks "
            f"{shorten(absent) or 'any'}. Copy or download them into {str(index.parent)!r}."
        )
        raise WeightError(message)
    return files


def check_shards(index: Path, files: Mapping[str, Path], read: Collection[str]) -> None:
    """Raise if a tensor that an index names is in no shard."""
    absent = [key for key in files if key not in read]
    if absent:
        message = (
            f"the shards of {str(index)!r} must hold {shorten(absent)}, but do not: index and "
            f"shards are of different models. Download them again."
        )
        raise WeightError(message)
