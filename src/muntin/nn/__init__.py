# SPDX-License-Identifier: Apache-2.0
"""Small modules that at least two families use, with the same maths and no family flags."""
