# SPDX-License-Identifier: Apache-2.0
"""Backbones: one file a family, which reads like its paper."""
