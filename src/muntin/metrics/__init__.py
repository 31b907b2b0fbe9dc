# SPDX-License-Identifier: Apache-2.0
"""Figures computed from answers and ground truth."""
