# SPDX-License-Identifier: Apache-2.0
"""Answers over HTTP: `muntin serve`, its page, its protocols, and bundles for other servers.

The process that is started speaks HTTP and holds no model; it admits requests within limits and
sends batches to a worker process, which holds the models. A worker that dies is replaced, and
nothing of PyTorch is in the process that strangers talk to.
"""
