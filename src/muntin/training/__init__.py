# SPDX-License-Identifier: Apache-2.0
"""Training: from a request to a run folder."""
