# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for GPUs, written in Triton; imported where they are needed, and only there."""
