# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Weights: files, hub, and the names that each ecosystem gives to the same tensors."""
