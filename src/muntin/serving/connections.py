# SPDX-License-Identifier: Apache-2.0
"""Connections of clients that are slow, endless or wrong: each is closed in the end, with a reason.

uvicorn bounds neither the head of a request, nor the time of a second one, nor the requests that
are sent ahead, nor the time in which an answer must be read.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Mapping

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from muntin.serving.serve_settings import ServeLimits

HEAD_BYTES = 65_536
"""Most bytes of the address and the headers of a request."""

SENT_AHEAD = 16
"""Most requests of a connection that wait for the answer of one before."""

_READ_BYTES = 65_536
"""Bytes of an answer that a client must read in the time in which it must send a request."""


class Connection(HttpToolsProtocol):
    """One connection; the subclass that `bound` makes has limits."""

    limits: ServeLimits
    headers_of_errors: Mapping[str, str]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; one connection too many is closed at once."""
        super().connection_made(transport)
        self._in_head = True
        self._head_bytes = self._head_read = 0
        self._fault = (400, "the request is not HTTP/1.1 as it is written.")
        self._arriving: asyncio.TimerHandle | None = None
        self._leaving: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_waiting()
        if self._leaving is not None:
            self._leaving.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what belongs to no request that is worked on has a time."""
        in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if in_head and self._in_head:
            self._head_read += len(data)
            if self._head_read > HEAD_BYTES:  # of one header, which the parser collects
                self._fault = _TOO_LONG
                self.send_400_response("")
        if self._works():
            self._stop_waiting()
        else:
            self._await_request()

    def on_message_begin(self) -> None:
        """Begin to count the head of a request."""
        self._in_head = True
        self._head_bytes = self._head_read = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless too many were sent ahead."""
        if len(self.pipeline) >= SENT_AHEAD:
            raise ValueError(SENT_AHEAD)  # ends the parser
        super().on_headers_complete()
        self._in_head = False

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser does not understand, after what came before it."""
        cycle = self.cycle
        works = self._works()
        if works and not cycle.more_body:
            cycle.keep_alive = False  # it is answered; then the connection ends
            return
        if self.pipeline or (works and cycle.response_started):
            self.transport.abort()
            return
        status, text = self._fault
        body = json.dumps({"error": text}).encode()
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers_of_errors.items()]
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
        lines += ["connection: close", "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self._close()

    def on_response_complete(self) -> None:
        """Go on to the next request, and see that the answer is read."""
        super().on_response_complete()
        self._mind_reader()

    def pause_writing(self) -> None:
        """See that an answer is read while it is written."""
        super().pause_writing()
        self._mind_reader()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing comes."""
        self._close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            self._fault = _TOO_LONG
            raise ValueError(HEAD_BYTES)  # ends the parser

    def _works(self) -> bool:
        """Whether a request is being answered, which has limits of its own."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        if self._arriving is None:
            self._arriving = self.loop.call_later(self.limits.receive, self._end_waiting)

    def _stop_waiting(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _end_waiting(self) -> None:
        self._arriving = None
        if self._works() or self.transport.is_closing():
            return
        if self._in_head and (self._head_bytes or self._head_read):
            text = f"the head of a request must arrive within {self.limits.receive:g} s."
            self._fault = (408, text)
            self.send_400_response("")
        else:
            self._close()

    def _mind_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and self._leaving is None:
            self._leaving = self.loop.call_later(self.limits.receive, self._end_leaving, left)

    def _end_leaving(self, before: int) -> None:
        self._leaving = None
        left = self.transport.get_write_buffer_size()
        if left > max(0, before - _READ_BYTES):
            self.transport.abort()
        else:
            self._mind_reader()

    def _close(self) -> None:
        """Close after what was written is read, or at once where nobody reads."""
        self._mind_reader()
        self.transport.close()


_TOO_LONG = (431, f"the head of a request must have at most {HEAD_BYTES // 1024} KiB.")


def bound(limits: ServeLimits, headers: Mapping[str, str]) -> type[Connection]:
    """Make the class of connections with limits; `headers` go with the errors they answer."""
    values = {"limits": limits, "headers_of_errors": dict(headers)}
    return type("BoundConnection", (Connection,), values)
