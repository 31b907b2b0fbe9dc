# SPDX-License-Identifier: Apache-2.0
"""Weights from the Hugging Face hub: from the local cache, else downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from muntin.errors import WeightError, shorten

_FILES = ("model.safetensors", "pytorch_model.bin")
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


def fetch(hub_id: str, *, timeout_s: float = _TIMEOUT_S) -> Path:
    """Return the cached weight file of ``owner/name@revision``, or download it."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    repo, _, revision = hub_id.partition("@")
    cached = _in_cache(repo, revision)
    if cached is not None:
        return cached
    folder = huggingface_hub.constants.HF_HUB_CACHE
    tried = f"weights {hub_id!r} not found locally or in the cache {folder}"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        message = f"{tried}, and HF_HUB_OFFLINE is set. Unset it, or pass a local file."
        raise WeightError(message)
    try:
        # A short metadata request first: a download retries for minutes without a network.
        api = huggingface_hub.HfApi()
        info = api.model_info(repo, revision=revision or None, timeout=timeout_s)
        there = [entry.rfilename for entry in info.siblings or []]
        name = next((name for name in _FILES if name in there), "")
        if name:
            return Path(
                huggingface_hub.hf_hub_download(
                    repo, name, revision=revision or None, etag_timeout=timeout_s
                )
            )
    except (RepositoryNotFoundError, ValueError) as error:
        message = f"{tried}, and the hub has no such repository. Check the hub id."
        raise WeightError(message) from error
    except Exception as error:
        # huggingface_hub passes on errors of its HTTP library, which differs between versions.
        libraries = ("huggingface_hub", "httpx", "httpcore", "requests")
        if not isinstance(error, OSError) and not type(error).__module__.startswith(libraries):
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        message = (
            f"{tried}, and the download failed ({first}). "
            f"Check the network connection, or pass a local file."
        )
        raise WeightError(message) from error
    message = (
        f"{tried}, and the repository contains none of {', '.join(_FILES)}, only "
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

    for name in _FILES:
        found = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None
