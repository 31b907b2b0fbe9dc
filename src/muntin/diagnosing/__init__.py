# SPDX-License-Identifier: Apache-2.0
"""Why a training cannot succeed, or did not: faults of data, settings and labels, by code."""
