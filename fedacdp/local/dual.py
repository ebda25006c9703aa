"""The dual form of a wide first layer: exact, and without any user's copy of its weights.

Steps move a dense layer's weights only inside the span of the layer's inputs. For a user with inputs A (n, d), shared
start W0 (h, d) and b0, the moved layer is W0 + c^T A with n coefficient rows c (n, h), bias b0 + c^T 1, and its output
on the user's own records is A W0^T + b0 + K c with the Gram matrix K = A A^T + 1 (the 1 is the bias). A step costs
n h B instead of d h B, the shared part A W0^T is one large product for all users, and so is the sum of all updates,
sum_u f_u c_u^T A_u.

DP-SGD adds noise Z_s (h, d + 1) to the layer at each step. It feeds back only through (A, 1) Z_s^T, which is Gaussian
with row covariance K and independent columns: R g_s with R R^T = K and g_s (n, h) standard normal. What lies outside
the span of the rows of (A, 1) feeds back into nothing and is needed in the released update only: one draw Z (h, d + 1)
with the variance of all S steps, its part inside the span taken out. With y = (A, 1) Z^T the released noise is

    sqrt(S) Z + c^T (A, 1),    c = R^-T (sum_s g_s - sqrt(S) R^-1 y),

equal in distribution to sum_s Z_s together with everything that fed back. R is the Cholesky factor of K plus a ridge
of 1e-5 of its mean diagonal (1e-12 in float64), so that singular K (equal records) work: that much, relatively, is the
variance off.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from fedacdp.local.updates import without_zeros

Rows = tuple[torch.Tensor, torch.Tensor]


def pays(outputs: int, inputs: int, records: int) -> bool:
    """Whether n coefficient rows are cheaper than a copy of the layer's (h, d) weights: n below h d / (h + d)."""
    return records < outputs * inputs / (outputs + inputs)


class DualLayer:
    """A first layer as coefficients `moved` (U, n, h) on the inputs (U, n, d); `mask` (U, n) is 1 for records."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor, inputs: torch.Tensor, mask: torch.Tensor):
        self.inputs, self.mask = inputs, mask
        self.outputs = torch.addmm(bias, inputs.flatten(0, 1), weights.T).unflatten(0, inputs.shape[:2])
        self.gram = torch.baddbmm(torch.ones((), dtype=inputs.dtype, device=inputs.device), inputs, inputs.mT)
        self.moved = torch.zeros_like(self.outputs)
        self.noise: _SpanNoise | None = None

    def forward(self, rows: Rows, below: torch.Tensor) -> torch.Tensor:
        fixed = self.outputs if self.noise is None else self.noise.outputs
        return torch.baddbmm(fixed[rows], self.gram[rows], self.moved)

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing lies below the first layer")

    def input_squares(self, rows: Rows, below: torch.Tensor) -> torch.Tensor:
        return self.gram.diagonal(dim1=1, dim2=2)[rows]

    def step(self, rows: Rows, below: torch.Tensor, slope: torch.Tensor, rate: float) -> None:
        self.moved.scatter_add_(1, rows[1][..., None].expand_as(slope), slope * -rate)

    def draws(self, steps: int) -> int:
        """Normals per user: one (h, d + 1) for outside the span, and (n, S, h) for inside."""
        (_, records, inputs), outputs = self.inputs.shape, self.outputs.shape[2]
        return outputs * (inputs + 1) + records * steps * outputs

    def unused(self, records: int, steps: int) -> int:
        """How many of these a user with `records` records does not need: they come last."""
        return (self.inputs.shape[1] - records) * steps * self.outputs.shape[2]

    def add_noise(self, noise: torch.Tensor, step: int, steps: int, scale: float) -> None:
        if self.noise is None:
            self.noise = _SpanNoise(self, noise, steps, scale)
        self.noise.add(step)

    def finish(self) -> None:
        if self.noise is not None:
            self.moved = self.moved + self.noise.coefficients()

    def squares(self) -> torch.Tensor:
        squares = (torch.bmm(self.gram, self.moved) * self.moved).sum((1, 2), dtype=torch.float64)
        if self.noise is not None:
            squares += 2 * (self.noise.seen * self.moved).sum((1, 2), dtype=torch.float64)
            squares += self.noise.outside.square().sum((1, 2), dtype=torch.float64)
        return squares

    def total(self, factors: np.ndarray) -> torch.Tensor:
        weights, moved = without_zeros(factors, self.moved)
        scaled = moved * weights.to(moved)[:, None, None]
        total = scaled.flatten(0, 1).T @ without_zeros(factors, self.inputs)[1].flatten(0, 1)
        bias = scaled.sum((0, 1))
        if self.noise is not None:
            weights, outside = without_zeros(factors, self.noise.outside)
            noise = (weights.to(outside) @ outside.flatten(1)).view_as(outside[0])
            total, bias = total + noise[:, :-1], bias + noise[:, -1]
        return torch.cat([total.flatten(), bias])

    def stack(self) -> torch.Tensor:
        weights, bias = torch.bmm(self.moved.mT, self.inputs), self.moved.sum(1)
        if self.noise is not None:
            weights, bias = weights + self.noise.outside[:, :, :-1], bias + self.noise.outside[:, :, -1]
        return torch.cat([weights.flatten(1), bias], dim=1)


class _SpanNoise:
    """The noise of DP-SGD on a dual layer. `outputs` (U, n, h): the fixed part of the layer's outputs with the noise so
    far; `outside` (U, h, d + 1): scale sqrt(S) Z; `seen` (U, n, h): (A, 1) times its transpose."""

    def __init__(self, layer: DualLayer, normals: torch.Tensor, steps: int, scale: float):
        users, records, inputs = layer.inputs.shape
        wide, self.scale, self.outputs = layer.outputs.shape[2] * (inputs + 1), scale, layer.outputs
        self.outside = normals[:, :wide].view(users, -1, inputs + 1) * (scale * math.sqrt(steps))
        self.inside = normals[:, wide:].view(users, records, steps, -1)
        self.seen = torch.baddbmm(self.outside[:, None, :, -1], layer.inputs, self.outside[:, :, :-1].mT)
        gram = layer.gram * layer.mask[:, :, None] * layer.mask[:, None, :]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        ridge = (1e-12 if gram.dtype == torch.float64 else 1e-5) * diagonal.mean(1, keepdim=True).clamp(min=1e-30)
        diagonal += torch.where(layer.mask > 0, ridge, 1.0)
        self.root = torch.linalg.cholesky(gram)
        self.mask = layer.mask

    def add(self, step: int) -> None:
        """Let the noise of a step into the outputs."""
        self.outputs = torch.baddbmm(self.outputs, self.root, self.inside[:, :, step], alpha=self.scale)

    def coefficients(self) -> torch.Tensor:
        """What to add to the coefficients so that, with `outside`, the released noise is that of all steps."""
        drawn = self.inside.sum(2) * self.scale
        known = torch.linalg.solve_triangular(self.root, self.seen * self.mask[:, :, None], upper=False)
        return torch.linalg.solve_triangular(self.root.mT, drawn - known, upper=True) * self.mask[:, :, None]
