# SPDX-License-Identifier: Apache-2.0
"""What a server is started with: models, address, and the limits of what it accepts."""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from muntin.configs import Range, check_range, check_ranges
from muntin.errors import ConfigError, MuntinWarning, plural, quote
from muntin.untrusted import read_regular

MIB = 2**20
SHORT_TOKEN = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeLimits:
    """Limits of a server; each is refused with a status code and a line that names the limit.

    Attributes:
        body_mib: Size of the body of a request in MiB.
        megapixels: Pixels of one image in millions, read from its header before it is decoded.
        images: Images of one request.
        waiting_images: Images that wait or are worked on, of all requests.
        waiting_mib: Encoded bytes of these, and of bodies that arrive, in MiB.
        batch: Images that are sent to the worker together; fewer where they are large.
        timeout: Seconds from the arrival of a request to its answer, unless its header
            ``X-Timeout`` asks for fewer.
        receive: Seconds in which the head, and then the body, of a request must arrive.
        connections: Open connections; further ones are closed at once.
    """

    body_mib: Annotated[float, Range(0.001, 4096)] = 32.0
    megapixels: Annotated[float, Range(0.001, 500)] = 64.0
    images: Annotated[int, Range(1, 10_000)] = 16
    waiting_images: Annotated[int, Range(1, 1_000_000)] = 64
    waiting_mib: Annotated[float, Range(0.001, 1_000_000)] = 256.0
    batch: Annotated[int, Range(1, 1024)] = 8
    timeout: Annotated[float, Range(0.1, 86_400)] = 60.0
    receive: Annotated[float, Range(0.1, 3600)] = 20.0
    connections: Annotated[int, Range(1, 60_000)] = 1000

    def __post_init__(self) -> None:
        check_ranges("limits", self)
        for whole, part in (("waiting_images", "images"), ("waiting_mib", "body_mib")):
            most, least = getattr(self, whole), getattr(self, part)
            if most < least:
                message = (
                    f"limits.{whole} must be at least limits.{part}, so that each request that is "
                    f"allowed has a place, got {most:g} and {least:g}. Raise limits.{whole}, or "
                    f"lower limits.{part} too: --set limits.{part}={most:g}"
                )
                raise ConfigError(message)

    @property
    def body_bytes(self) -> int:
        """Largest body in bytes."""
        return int(self.body_mib * MIB)

    @property
    def pixels(self) -> int:
        """Pixels of the largest image."""
        return int(self.megapixels * 1e6)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model that is served: its name in requests, and the run folder or exported file.

    Attributes:
        task: The task that it must have, as its clients know its answers; "" takes any.
    """

    name: str
    path: str
    task: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How the worker loads models; see `muntin.load`."""

    engine: str = "eager"
    precision: str = "fp32"
    device: str = "auto"
    detector: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """Everything that a server is started with.

    Attributes:
        models: At least one, of different names; the first is the default.
        token: What clients send as ``Authorization: Bearer``; empty asks for none.
        open: Whether everyone who reaches a public address may ask without a token.
        drain: Seconds in which accepted requests are finished after SIGTERM.
        log: "plain", "json", or "none" for errors only.
        files: Folder whose files Label Studio may name in tasks; empty allows none.
    """

    models: tuple[ModelSource, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    open: bool = False
    drain: float = 30.0
    log: str = "plain"
    files: str = ""
    load: LoadOptions = LoadOptions()
    limits: ServeLimits = ServeLimits()

    def __post_init__(self) -> None:
        check_range("--port", self.port, 0, 65_535)
        check_range("--drain", self.drain, 0, 86_400)
        if self.log not in ("plain", "json", "none"):
            message = f"--log-format must be plain, json or none, got {self.log!r}."
            raise ConfigError(message)
        if not (self.token or self.open or is_loopback(self.host)):
            message = (
                f"--host {self.host} can be reached by other machines, so a server there must ask "
                f"for a token, got none. Give --token-file FILE, or --open to let everyone in."
            )
            raise ConfigError(message)
        if self.files and not Path(self.files).is_dir():
            message = f"--files must be a folder, got {self.files!r}. Check the path."
            raise ConfigError(message)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_NAME = re.compile(r"\w[\w.-]{0,99}")


def name_models(texts: Sequence[str]) -> tuple[ModelSource, ...]:
    """Name models: PATH by its last part, ``NAME=PATH`` by what is asked for.

    Raises:
        ConfigError: There are none, or two of one name.

    Examples:
        >>> [model.name for model in name_models(["runs/cells", "big=runs/b/model.onnx"])]
        ['cells', 'big']
    """
    if not texts:
        message = "there must be a model to serve, got none. Name a run folder or an exported file."
        raise ConfigError(message)
    found: dict[str, str] = {}
    for text in texts:
        name, path = _split_name(text)
        if name in found:
            message = (
                f"models must have different names, got {name!r} for {found[name]!r} and {path!r}. "
                f"Name one of them: {name}2={path}"
            )
            raise ConfigError(message)
        found[name] = path
    return tuple(ModelSource(name=name, path=path) for name, path in found.items())


def _split_name(text: str) -> tuple[str, str]:
    name, found, path = text.partition("=")
    if found and _NAME.fullmatch(name) and not Path(text).exists():
        return name, path
    place = Path(text).resolve()
    stem = place.name if place.is_dir() else place.stem
    name = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "model"
    return name, text


def read_token(path: str) -> str:
    """Read the token of a file: its first line; "" without a file.

    Raises:
        ConfigError: The file cannot be read, or holds no token.
    """
    if not path:
        return ""
    try:
        text = read_regular(path)[:10_000].decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"--token-file must be a file with a token, got {path!r} ({reason})."
        raise ConfigError(message) from error
    token = text.strip().split("\n")[0].strip()
    if not re.fullmatch(r"[\x21-\x7e]{1,1000}", token):
        message = (
            f"the first line of {path!r} must be a token of printable ASCII characters without "
            f"spaces. Make one: openssl rand -hex 32 > {quote(path)}"
        )
        raise ConfigError(message)
    if len(token) < SHORT_TOKEN:
        text = f"the token in {path!r} has {plural(len(token), 'character')}, which can be guessed"
        warnings.warn(text, MuntinWarning, stacklevel=2)
    return token
