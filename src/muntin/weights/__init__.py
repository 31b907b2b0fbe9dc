# SPDX-License-Identifier: Apache-2.0
"""Weights: files, the hub, and the key mappings of each ecosystem."""
