# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a model sees, as pictures with a few plain words and a formula beside each."""

from muntin.explaining.showing import Page, explain

__all__ = ["Page", "explain"]
