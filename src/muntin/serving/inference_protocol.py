# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol, version 2, over REST: `/v2/...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

if TYPE_CHECKING:
    from muntin.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the protocol."""
