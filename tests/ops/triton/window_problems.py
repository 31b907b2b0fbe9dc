# SPDX-License-Identifier: Apache-2.0
"""Problems for the fused window attention, and what its answers are compared with.

Where there is no GPU, the kernels run in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from muntin.ops.positions import SIZE_RULES
from muntin.ops.window_attention import window_attention
from muntin.ops.windows import WindowLayout, lay_out

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mend_interpreter() -> None:
    """Let the interpreter treat bfloat16 as a GPU does.

    It holds the bits as integers, multiplies matrices of them as such, and cuts digits off where a
    GPU rounds.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    multiply, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    if multiply.__module__ == __name__:
        return

    def widen(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def multiply_widened(self, a, b, *others):
        return multiply(self, widen(a), widen(b), *others)

    def cast_rounded(self, handle, dtype):
        if dtype.scalar == tl.float32:
            handle = widen(handle)
        if handle.dtype.scalar != tl.float32 or dtype.scalar != tl.bfloat16:
            return cast(self, handle, dtype)
        values = torch.from_numpy(np.ascontiguousarray(handle.data)).bfloat16()
        return TensorHandle(values.view(torch.uint16).numpy(), tl.bfloat16)

    InterpreterBuilder.create_dot = multiply_widened
    InterpreterBuilder.cast_impl = cast_rounded


if DEVICE.type == "cpu":
    mend_interpreter()


@dataclass(frozen=True)
class Problem:
    """Inputs of one call."""

    layout: WindowLayout
    qkv: Tensor
    bias: Tensor
    fill: Tensor | None
    temperature: Tensor | None
    grad: Tensor
    scale: float

    def to(self, dtype: torch.dtype) -> Problem:
        """What a projection gives is of the dtype; what is learned stays wide."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return replace(
            self,
            qkv=self.qkv.to(dtype),
            bias=self.bias.to(wide),
            fill=None if self.fill is None else self.fill.to(wide),
            temperature=None if self.temperature is None else self.temperature.to(wide),
            grad=self.grad.to(dtype),
        )

    def run(self, backend: str) -> dict[str, Tensor]:
        """The output, and the gradient of everything that can learn."""
        inputs = {
            name: getattr(self, name).detach().requires_grad_()
            for name in ("qkv", "bias", "fill", "temperature")
            if getattr(self, name) is not None
        }
        out = window_attention(
            inputs["qkv"],
            inputs["bias"],
            self.layout,
            scale=self.scale,
            fill=inputs.get("fill"),
            temperature=inputs.get("temperature"),
            backend=backend,
        )
        found = torch.autograd.grad(out, list(inputs.values()), self.grad, materialize_grads=True)
        return {"out": out.detach(), **dict(zip(inputs, found, strict=True))}


def make(
    size,
    window,
    *,
    rule="muntin",
    shifted=False,
    head_dim=16,
    heads=2,
    batch=1,
    filled=True,
    cosine=False,
) -> Problem:
    """Draw a problem whose numbers bfloat16 holds exactly, so that every dtype solves the same."""
    window = (window, window) if isinstance(window, int) else window
    layout = lay_out(size, window, shifted, SIZE_RULES[rule], built_size=(64, 64))
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])

    def draw(*shape, spread=1.0):
        drawn = torch.randn(*shape, generator=generator) * spread
        return drawn.bfloat16().double().to(DEVICE)

    tokens, channels = layout.num_tokens, heads * head_dim
    temperature = draw(heads, 1, 1).exp().bfloat16().double() * 4
    return Problem(
        layout=layout,
        qkv=draw(batch, *size, 3 * channels),
        bias=draw(heads, tokens, tokens),
        fill=draw(3 * channels) if filled else None,
        temperature=temperature if cosine else None,
        grad=draw(batch, *size, channels),
        scale=1.0 if cosine else head_dim**-0.5,
    )


def measure(answer: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of each part, relative to the largest number of that part."""
    return {
        name: (
            (answer[name].double() - right).abs().max() / right.abs().max().clamp(min=1e-30)
        ).item()
        for name, right in truth.items()
    }
