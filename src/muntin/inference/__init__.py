# SPDX-License-Identifier: Apache-2.0
"""Equivalent inference networks: everything that can be precomputed is."""
