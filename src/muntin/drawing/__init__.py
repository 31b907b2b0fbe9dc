# SPDX-License-Identifier: Apache-2.0
"""Drawings of samples, results and curves, as images or figures; no window is opened."""
