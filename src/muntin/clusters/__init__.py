# SPDX-License-Identifier: Apache-2.0
"""Work on the machines of a cluster: what Ray carries, and nothing of what is carried."""
