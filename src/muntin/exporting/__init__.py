# SPDX-License-Identifier: Apache-2.0
"""Exports networks to files for other engines, verified against the network."""
