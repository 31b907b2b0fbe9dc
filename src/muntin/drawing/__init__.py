# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Images of samples, results, curves and tables. Nothing here opens a window."""
