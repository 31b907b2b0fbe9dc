# SPDX-License-Identifier: Apache-2.0
"""The version, where every room can read it without importing the package that imports them."""

from __future__ import annotations

__version__ = "0.1.0"
