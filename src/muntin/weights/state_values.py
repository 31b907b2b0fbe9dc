# SPDX-License-Identifier: Apache-2.0
"""Values of weights: checked, and copied into a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from muntin.errors import WeightError


def copy_values(values: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy matched tensors to the parameters and buffers of a model."""
    own = model.state_dict()
    with torch.no_grad():
        for key, tensor in values.items():
            own[key].copy_(tensor)


def reject_values(values: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Raise for the first tensor that is not real, or not finite in the types of the model."""
    for key, tensor in values.items():
        if key.endswith("num_batches_tracked"):  # integer counter of batch norms
            continue
        if not tensor.is_floating_point():
            advice = "Take real parts" if tensor.is_complex() else "Dequantize quantized weights"
            message = (
                f"weights from {where} must be floating-point, got {tensor.dtype} for {key}. "
                f"{advice} first. The model is unchanged."
            )
            raise WeightError(message)
        # NaN and infinity propagate to the sum, which is one fast pass; as finite values may
        # overflow it too, a non-finite sum is checked elementwise.
        copied = tensor.to(own[key].dtype)
        if copied.sum(dtype=torch.float32).isfinite() or copied.isfinite().all():
            continue
        got = f"up to {tensor.abs().max():.2g}" if tensor.isfinite().all() else "NaN or infinity"
        message = (
            f"weights from {where} must be finite in {copied.dtype}, got {got} in {key}. The "
            f"training run probably diverged; use an earlier checkpoint. The model is unchanged."
        )
        raise WeightError(message)
