# SPDX-License-Identifier: Apache-2.0
"""What runs a network: PyTorch, its compiler, a GPU, ONNX Runtime or OpenVINO; their files."""
