# SPDX-License-Identifier: Apache-2.0
"""Training objectives: inputs, losses and validation of what is learnt."""
