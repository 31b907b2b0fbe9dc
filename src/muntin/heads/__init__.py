# SPDX-License-Identifier: Apache-2.0
"""Heads: from backbone features to raw predictions; one module per head."""
