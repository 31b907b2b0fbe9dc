# SPDX-License-Identifier: Apache-2.0
"""From files to batches: listing, reading, decoding, splitting, checking, generated scenes."""
