# SPDX-License-Identifier: Apache-2.0
"""Files of results: one file a format, and the table of them."""
