# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One row a task: everything that the other rooms need to know about it, and nothing else."""
