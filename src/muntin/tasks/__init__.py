# SPDX-License-Identifier: Apache-2.0
"""The table of tasks: one row each, from data to metric."""
