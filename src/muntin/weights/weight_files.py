# SPDX-License-Identifier: Apache-2.0
"""Weight files, local or from the hub: read without executing code, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from muntin.errors import WeightError, cannot_write, first_line, shorten
from muntin.staging import replacing
from muntin.untrusted import BUDGET_VARIABLE, PARSER_FAULTS, open_regular
from muntin.weights.stored_arrays import read_archive, read_pickle, read_torch
from muntin.weights.weight_folders import (
    HUB_FILES,
    INDEX,
    check_shards,
    find_file,
    read_index,
    reject_torchscript,
)

# First bytes of torch.save files: a zip archive, or a pickle (before PyTorch 1.6).
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
# What is often there in place of weights: where in the file, its bytes, what it is.
_OTHERS = (
    (0, b"version https://git-lfs", "a pointer of Git LFS to them (run: git lfs pull)"),
    (0, b"<", "a web page (download the file itself)"),
    (0, b"\x1f\x8b", "a gzip archive (unpack it)"),
    (257, b"ustar", "a tar archive (unpack it)"),
)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """Content of a weight file with its nesting, and texts stored beside it (safetensors only)."""

    path: Path
    tensors: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file, or those of a folder, without executing code from them; on the CPU."""
    file = find_file(Path(path).expanduser())
    if not file.name.endswith(INDEX):
        return _read_file(file)
    files = read_index(file)
    shards = [_read_file(one) for one in dict.fromkeys(files.values())]
    tensors = {key: value for shard in shards for key, value in shard.tensors.items()}
    check_shards(file, files, tensors)
    return WeightFile(file, tensors, shards[0].metadata)


def _read_file(file: Path) -> WeightFile:
    try:
        with open_regular(file) as stream:
            start = stream.read(262)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"{str(file)!r} cannot be read: {reason}. Check the file and its permissions."
        raise WeightError(message) from error
    if not start:
        message = f"{str(file)!r} is empty (0 bytes). Copy or download it again."
        raise WeightError(message)
    suffix = file.suffix.lower()
    named, is_torch = suffix == ".safetensors", start.startswith(_TORCH_STARTS)
    is_safe = start[8:9] == b"{" and not is_torch
    other = next((words for at, begin, words in _OTHERS if start[at:].startswith(begin)), "")
    if not (is_safe if named else is_torch) and (other or suffix not in (".npz", ".pkl")):
        found = "a PyTorch file" if is_torch else "a safetensors file" if is_safe else other
        wanted = "safetensors" if named else "PyTorch"
        message = (
            f"{str(file)!r} must be in {wanted} format, got {found or 'another format'} according "
            f"to its first bytes. Check the file and its suffix."
        )
        raise WeightError(message)
    return _read_content(file)


def _read_content(file: Path) -> WeightFile:
    suffix = file.suffix.lower()
    reject_torchscript(file)
    try:
        if suffix == ".safetensors":
            with safetensors.safe_open(file, framework="pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                return WeightFile(file, tensors, dict(opened.metadata() or {}))
        if suffix == ".npz":
            return WeightFile(file, read_archive(file))
        content = read_pickle(file) if suffix == ".pkl" else read_torch(file)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"{refused[1]}" if refused else first_line(error)
        message = (
            f"{str(file)!r} holds Python objects other than tensors ({reason}), or is damaged. It "
            f"was not loaded, because unpickling could run arbitrary code. Save only the state "
            f"dict, or use safetensors."
        )
        raise WeightError(message) from error
    except PARSER_FAULTS as error:
        told = suffix == ".safetensors" or BUDGET_VARIABLE in str(error)
        reason = f" ({error})" if told else ""
        message = (
            f"{str(file)!r} ({file.stat().st_size} bytes) is damaged or truncated, or holds no "
            f"arrays{reason}. Copy or download it again."
        )
        raise WeightError(message) from error
    if not isinstance(content, Mapping):
        message = (
            f"{str(file)!r} must hold a state dict, got {type(content).__name__}. "
            f"Save model.state_dict()."
        )
        raise WeightError(message)
    return WeightFile(file, content)


def write_weights(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically: after a failure, the old file is unchanged."""
    path = Path(path)
    if path.suffix != ".safetensors":
        message = (
            f"a new weight file must end in .safetensors, got {str(path)!r}. Change the suffix."
        )
        raise WeightError(message)
    whole = separate(tensors)
    # transformers rejects a safetensors file without this entry.
    texts = {"format": "pt", **(metadata or {})}

    def write(temporary: str) -> None:
        safetensors.torch.save_file(whole, temporary, metadata=texts)
        _sort_texts(temporary)

    write_whole(path, write)


def _sort_texts(path: str) -> None:
    """Sort the texts, whose order is random in the library, so that equal weights are equal files.

    What follows the header keeps its place.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with another one: safetensors stores each by itself."""
    whole, seen = {}, set()
    for key, value in tensors.items():
        tensor = value.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        whole[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return whole


def write_whole(path: Path, write: Callable[[str], None]) -> None:
    """Write a file atomically: to a temporary file in the same folder, then rename."""
    try:
        with replacing(path) as fresh:
            write(str(fresh))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        message = f"{cannot_write(path, error)} Existing files are unchanged."
        raise WeightError(message) from error


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of the names and values of all tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


BESIDE_WEIGHTS = ("config.json", "preprocessor_config.json")
"""Files of the hub and of transformers that describe the model and its images."""
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz", ".pkl")
_TIMEOUT_S = 4.0


def is_hub_id(text: str) -> bool:
    """Whether a string has the form of a hub id: ``owner/name``, optionally ``@revision``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", text) is not None


# Published with a license that forbids commercial use.
_NON_COMMERCIAL = re.compile(
    r"^(facebook/(vit-mae|hiera)|timm/hiera_|timm/vit_\w+\.mae|timm/hieradet_)", re.IGNORECASE
)


def license_of(hub_id: str) -> str:
    """Return the license of published weights if it restricts their use, else an empty string.

    >>> license_of("timm/hiera_tiny_224.mae_in1k_ft_in1k")
    'CC-BY-NC-4.0'
    """
    return "CC-BY-NC-4.0" if _NON_COMMERCIAL.match(hub_id) else ""


FOLDER_VARIABLE = "MUNTIN_WEIGHTS"
WAYS_OUT = (
    f"set a mirror (HF_ENDPOINT), name a folder of downloaded weights ({FOLDER_VARIABLE}), or pass "
    f"a local file (--weights FILE)"
)
"""How to get published weights where the hub cannot be reached."""


def in_folder(hub_id: str) -> Path | None:
    """Find weights of the hub in the folder that the user named: a folder or a file of the name.

    Names are ``owner/name``, ``name``, and ``name`` without the tag behind its dot.
    """
    repo = hub_id.partition("@")[0]
    name = repo.rpartition("/")[2]
    return _find_named((repo, name, name.partition(".")[0]), _named_folders())


def _named_folders() -> list[Path]:
    """The folder of weights that the user named, if there is one."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    folder = Path(named).expanduser()
    if named and not folder.is_dir():
        message = f"{FOLDER_VARIABLE} must name a folder of weights, got {named!r}. Correct it."
        raise WeightError(message)
    return [folder] if named else []


def _find_named(names: Iterable[str], folders: Iterable[Path]) -> Path | None:
    places = [folder / name for folder in folders for name in dict.fromkeys(names)]
    inner = (place / file for place in places for file in HUB_FILES)
    outer = (place.with_name(place.name + suffix) for place in places for suffix in _SUFFIXES)
    return next((path for path in (*inner, *outer) if path.is_file()), None)


def find_local(names: Sequence[str]) -> Path | None:
    """Find weights by names of a model, in the folder that the user named or the current one."""
    return _find_named(names, (*_named_folders(), Path()))


def is_weight_file(path: Path) -> bool:
    """Whether the name of an existing file is one of a file of weights."""
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def is_here(hub_id: str) -> bool:
    """Whether weights of the hub are in the folder that the user named, or in the cache."""
    repo, _, revision = hub_id.partition("@")
    return (in_folder(repo) or _in_cache(repo, revision)) is not None


def fetch(hub_id: str, *, timeout_s: float = _TIMEOUT_S) -> Path:
    """Return the weight file of ``owner/name@revision``: of the folder, the cache, or the hub."""
    repo, _, revision = hub_id.partition("@")
    if (stored := in_folder(repo)) is not None:
        return stored
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    if (cached := _in_cache(repo, revision)) is not None:
        return cached
    folder = huggingface_hub.constants.HF_HUB_CACHE
    tried = f"weights {hub_id!r} not found locally or in the cache {folder}"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        message = f"{tried}, and HF_HUB_OFFLINE is set. Unset it, {WAYS_OUT}."
        raise WeightError(message)
    try:
        # A short metadata request first: a download retries for minutes without a network.
        api = huggingface_hub.HfApi()
        info = api.model_info(repo, revision=revision or None, timeout=timeout_s)
        there = [entry.rfilename for entry in info.siblings or []]
        if name := next((name for name in HUB_FILES if name in there), ""):
            # The configuration comes into the same folder.
            names = [name, *(beside for beside in BESIDE_WEIGHTS if beside in there)]
            start = name.removesuffix(INDEX).rpartition(".")[0]
            if name.endswith(INDEX):
                names += [one for one in there if re.match(rf"{start}-\d+-of-\d+\.", one)]
            paths = [
                huggingface_hub.hf_hub_download(
                    repo, one, revision=revision or None, etag_timeout=timeout_s
                )
                for one in names
            ]
            return Path(paths[0])
    except (RepositoryNotFoundError, ValueError) as error:
        message = f"{tried}, and the hub has no such repository. Check the hub id."
        raise WeightError(message) from error
    except Exception as error:
        # huggingface_hub passes on errors of its HTTP library, which differs between versions.
        libraries = ("huggingface_hub", "httpx", "httpcore", "requests")
        if not isinstance(error, OSError) and not type(error).__module__.startswith(libraries):
            raise
        message = (
            f"{tried}, and the download failed ({first_line(error)}). "
            f"Check the network connection, {WAYS_OUT}."
        )
        raise WeightError(message) from error
    message = (
        f"{tried}, and the repository contains none of {', '.join(HUB_FILES)}, only "
        f"{shorten(there)}. Download the file and pass its path."
    )
    raise WeightError(message)


def is_available(hub_id: str) -> bool:
    """Whether the weights are cached or can be downloaded; downloads them."""
    try:
        fetch(hub_id)
    except WeightError:
        return False
    return True


def _in_cache(repo: str, revision: str) -> Path | None:
    import huggingface_hub

    for name in HUB_FILES:
        found = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None
