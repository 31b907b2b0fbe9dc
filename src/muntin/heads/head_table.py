# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Heads that tasks choose from, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from muntin.errors import ConfigError, unknown_name
from muntin.heads.detector_table import DetectorConfig
from muntin.heads.head import HeadConfig
from muntin.heads.pose_head import PoseConfig
from muntin.heads.semantic_head import SemanticConfig

__all__ = ["AnyHeadConfig", "find_head"]

AnyHeadConfig = DetectorConfig | SemanticConfig | PoseConfig
"""Every class of config, for the reader of run folders."""

Config = TypeVar("Config", bound=HeadConfig)


def find_head(name: str, heads: Mapping[str, Config]) -> Config:
    """Give the config of a head.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in heads:
        raise ConfigError(unknown_name("head", name, heads))
    return heads[name]
