# SPDX-License-Identifier: Apache-2.0
"""Predicted memory and time of a run, before it starts."""
