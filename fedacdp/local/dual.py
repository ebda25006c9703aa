"""The dual form of a wide first layer: exact, and without any user's copy of its weights.

Steps move a dense layer's weights only inside the span of the layer's inputs. For a user with inputs A (n, d), shared
start W0 (h, d) and b0, the moved layer is W0 + c^T A with n coefficient rows c (n, h), bias b0 + c^T 1, and its output
on the user's own records is A W0^T + b0 + K c with the Gram matrix K = A A^T + 1 (the 1 is the bias). A step costs
n h B instead of d h B, the shared part A W0^T is one large product for all users, and so is the sum of all updates,
sum_u f_u c_u^T A_u.

Steps are done in segments. For all steps of a segment the batches' outputs are laid out one after another, so that a
step works on slices: it adds what the segment's earlier steps moved. At the end of a segment its coefficients are added
to their records'. A record that comes twice in a segment is two rows there, which is as exact.

DP-SGD adds noise Z_s (h, d + 1) to the layer at each of S steps. What is released is their sum N, one draw of variance
S. What feeds back is the noise so far on the user's own records, y_s = (A, 1) (Z_1 + ... + Z_s)^T, and given N this is
a Brownian bridge with row covariance K (R R^T = K, g_s (n, h) standard normal):

    y_0 = 0,  y_{s+1} = y_s + (y_S - y_s) / (S - s) + sqrt((S - s - 1) / (S - s)) R g_s,  y_S = (A, 1) N^T.

Equal in distribution to S literal draws, with h (d + 1) + (S - 1) n h normals instead of S h (d + 1). R is the Cholesky
factor of K plus a ridge of 1e-5 of its largest diagonal element (1e-12 in float64), so that singular K (equal records)
work: that much, relatively, is the variance of the bridge off; that of the released noise is exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from fedacdp.local.updates import squares, without_zeros
from fedacdp.products import add_each_product, dots, each_product, linear

_CANCELLED = 0.01  # what is left of the records' own squares, below which the Gram matrix is too coarse


def pays(outputs: int, inputs: int, records: int) -> bool:
    """Whether n coefficient rows are cheaper than a copy of the layer's (h, d) weights: n below h d / (h + d)."""
    return records < outputs * inputs / (outputs + inputs)


class DualLayer:
    """A first layer as coefficients `moved` (U, n, h) on the inputs (U, n, d) with Gram matrices `gram` (U, n, n); the
    batches are `index` (U, S, B)."""

    def __init__(
        self, weights: torch.Tensor, bias: torch.Tensor, inputs: torch.Tensor, gram: torch.Tensor, index: torch.Tensor
    ):
        users, records, _ = inputs.shape
        _, self.steps, self.batch = index.shape
        self.inputs, self.gram, self.index = inputs, gram, index
        self.first = torch.arange(users, device=inputs.device)[:, None] * records
        self.outputs = linear(inputs.flatten(0, 1), weights, bias).view(users, records, -1)
        self.moved = torch.zeros_like(self.outputs)
        self.segment = min(self.steps, max(1, 3 * records // (2 * self.batch)))
        self.noise: _Bridge | None = None

    def forward(self, step: int, below: torch.Tensor) -> torch.Tensor:
        place = step % self.segment * self.batch
        if place == 0:
            self._begin(step)
        out = self.slots[:, place : place + self.batch]
        if place:
            add_each_product(out, self.kernel[:, place : place + self.batch, :place], self.coefficients[:, :place])
        if self.noise is not None:
            rows = self.rows[:, place : place + self.batch].flatten()
            out += self.noise.now.flatten(0, 1).index_select(0, rows).view(out.shape)
        return out

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing lies below the first layer")

    def input_squares(self, step: int, below: torch.Tensor) -> torch.Tensor:
        return self.gram.diagonal(dim1=1, dim2=2).gather(1, self.index[:, step])

    def step(self, step: int, below: torch.Tensor, slope: torch.Tensor, rate: float) -> None:
        place = step % self.segment * self.batch
        torch.mul(slope, -rate, out=self.coefficients[:, place : place + self.batch])
        if step + 1 == self.steps or place + self.batch == self.segment * self.batch:
            self._end(step, place + self.batch)

    def _begin(self, step: int) -> None:
        """Lay out the steps of a segment."""
        index = self.index[:, step : step + self.segment].flatten(1)
        self.rows = self.first + index
        users, slots = index.shape
        self.slots = self.outputs.flatten(0, 1).index_select(0, self.rows.flatten()).view(users, slots, -1)
        if self.segment > 1:
            kernel = self.gram.flatten(0, 1).index_select(0, self.rows.flatten()).view(users, slots, -1)
            self.kernel = kernel.gather(2, index[:, None].expand(-1, slots, -1))
        self.coefficients = torch.empty_like(self.slots)

    def _end(self, step: int, slots: int) -> None:
        """Add a segment's coefficients to their records', and what they moved to the outputs."""
        rows, added = self.rows[:, :slots].flatten(), self.coefficients[:, :slots].flatten(0, 1)
        if step + 1 < self.steps:
            moved = torch.zeros_like(self.moved)
            moved.flatten(0, 1).index_add_(0, rows, added)
            add_each_product(self.outputs, self.gram, moved)
            self.moved += moved
        else:
            self.moved.flatten(0, 1).index_add_(0, rows, added)

    def draws(self, steps: int) -> int:
        """Normals per user: the released noise, and a bridge of S - 1 steps."""
        (_, records, inputs), outputs = self.inputs.shape, self.outputs.shape[2]
        return outputs * (inputs + 1) + records * (steps - 1) * outputs

    def unused(self, records: int, steps: int) -> int:
        """How many of these a user with `records` records does not need: they come last."""
        return (self.inputs.shape[1] - records) * (steps - 1) * self.outputs.shape[2]

    def add_noise(self, noise: torch.Tensor, step: int, steps: int, scale: float) -> None:
        if self.noise is None:
            self.noise = _Bridge(self, noise, steps, scale)
        if step + 1 < steps:
            self.noise.advance(step)

    def finish(self) -> None:
        """Nothing is left to do."""

    def squares(self) -> torch.Tensor:
        found = _dot(each_product(self.gram, self.moved), self.moved)
        if self.noise is not None:
            return found + 2 * _dot(self.noise.seen, self.moved) + _dot(self.noise.released, self.noise.released)
        # Where records move the weights against each other, rounding is large beside what is left: a user whose two
        # alike records have different labels would exceed the clip norm by per cents after some hundred steps.
        each = (dots(self.moved, self.moved) * self.gram.diagonal(dim1=1, dim2=2)).sum(1).double()
        few = torch.nonzero(found < _CANCELLED * each)[:, 0]
        if len(few):
            moved = self.moved[few]
            found[few] = squares(each_product(moved.mT, self.inputs[few]).flatten(1)) + squares(moved.sum(1))
        return found

    def total(self, factors: np.ndarray) -> torch.Tensor:
        weights, moved = without_zeros(factors, self.moved)
        scaled = (moved * weights.to(moved)[:, None, None]).flatten(0, 1)
        inputs = without_zeros(factors, self.inputs)[1].flatten(0, 1)
        flat = torch.cat([linear(scaled.T, inputs.T).flatten(), scaled.sum(0)])
        if self.noise is not None:
            weights, released = without_zeros(factors, self.noise.released)
            flat += weights.to(released) @ released
        return flat

    def stack(self) -> torch.Tensor:
        rows = torch.cat([each_product(self.moved.mT, self.inputs).flatten(1), self.moved.sum(1)], dim=1)
        return rows if self.noise is None else rows + self.noise.released


class _Bridge:
    """The noise of DP-SGD on a dual layer: `released` (U, h d + h) in all, `seen` (U, n, h) its part on the user's own
    records, `now` (U, n, h) the noise so far on them."""

    def __init__(self, layer: DualLayer, normals: torch.Tensor, steps: int, scale: float):
        users, records, inputs = layer.inputs.shape
        outputs = layer.outputs.shape[2]
        wide = outputs * (inputs + 1)
        self.steps, self.scale = steps, scale
        self.released = normals[:, :wide].mul_(scale * math.sqrt(steps))
        self.normals = normals[:, wide:].view(users, records, steps - 1, outputs)
        weights = self.released[:, : outputs * inputs].unflatten(1, (outputs, inputs))
        self.seen = each_product(layer.inputs, weights.mT)
        self.seen += self.released[:, None, outputs * inputs :]
        self.now = torch.zeros_like(self.seen)
        if steps > 1:
            self.root = _root(layer.gram)

    def advance(self, step: int) -> None:
        """Let the noise of a step in."""
        left = self.steps - step
        self.now += (self.seen - self.now) / left
        add_each_product(self.now, self.root, self.normals[:, :, step], self.scale * math.sqrt((left - 1) / left))


def _root(gram: torch.Tensor) -> torch.Tensor:
    """The Cholesky factor of Gram matrices (U, n, n) with a ridge; those that are not finite give NaN, as they must."""
    ridge = (1e-12 if gram.dtype == torch.float64 else 1e-5) * gram.diagonal(dim1=1, dim2=2).amax(1)
    finite = ridge.isfinite()
    ridged = torch.where(finite[:, None, None], gram, 0.0)
    ridged.diagonal(dim1=1, dim2=2).add_(torch.where(finite, ridge, 1.0)[:, None])
    return torch.where(finite[:, None, None], torch.linalg.cholesky(ridged), torch.nan)


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Inner products, user by user, (U,) float64."""
    return dots(left.flatten(1), right.flatten(1)).double()
