# SPDX-License-Identifier: Apache-2.0
"""Pure tensor functions: no module, no state, no config."""
