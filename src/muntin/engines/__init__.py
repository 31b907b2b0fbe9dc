# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What runs a network: PyTorch, its compiler, ONNX Runtime or OpenVINO; and their files."""
