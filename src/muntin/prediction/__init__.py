# SPDX-License-Identifier: Apache-2.0
"""From images as users have them to results in pixels of the original."""
