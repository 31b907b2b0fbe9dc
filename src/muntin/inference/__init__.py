# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Equivalent networks that only infer: everything that can be computed beforehand is."""
