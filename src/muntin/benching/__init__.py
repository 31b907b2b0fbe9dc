# SPDX-License-Identifier: Apache-2.0
"""Benchmarks against other libraries: interleaved runs with equal weights and inputs."""
