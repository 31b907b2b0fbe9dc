# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What is learnt: one row an objective, and nothing that the training loop has to know."""
