# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Measuring side by side: contestants take turns in one process, on the same inputs."""
