# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the figures of a network on a data set, and plots of them."""
