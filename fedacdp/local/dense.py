"""Local training of dense networks by hand-written batched steps, SGD and DP-SGD, without autograd.

Every layer keeps, for all users at once, what has moved since the shared start: a copy of its weights per user, or, for
a wide first layer, the dual form of `dual.py`, which is exact and far cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from fedacdp.keys import Key
from fedacdp.local import grams
from fedacdp.local.batches import Batches
from fedacdp.local.dual import DualLayer, pays
from fedacdp.local.general import tensors
from fedacdp.local.updates import Updates, squares, without_zeros
from fedacdp.privacy.base import ExampleRule
from fedacdp.products import add_each_product, dots, each_product
from fedacdp.users import Users

_aten: Any = torch.ops.aten
Gram = Callable[[Users, torch.Tensor], torch.Tensor]
"""Gives the Gram matrices A A^T + 1 of users' records A, (U, n, n), from the users and `inputs` (U, n, d)."""


class Layer(Protocol):
    """A dense layer of all users. `below` (U, B, i) are the layer's inputs at a step, `slope` (U, B, o) the gradient at
    its outputs. A first layer in the dual form knows its inputs: there, `below` is empty."""

    def forward(self, step: int, below: torch.Tensor) -> torch.Tensor:
        """Outputs (U, B, o)."""

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        """The gradient at the inputs, (U, B, i)."""

    def input_squares(self, step: int, below: torch.Tensor) -> torch.Tensor:
        """|input|^2 + 1 per record, (U, B): |slope|^2 times it is the squared norm of an example's gradient."""

    def step(self, step: int, below: torch.Tensor, slope: torch.Tensor, rate: float) -> None:
        """Move by -rate * sum over the records of slope (input, 1)^T."""

    def draws(self, steps: int) -> int:
        """How many normals `add_noise` takes per user in all."""

    def add_noise(self, noise: torch.Tensor, step: int, steps: int, scale: float) -> None:
        """Move by scale * the noise of a step; `noise` (U, draws) are the layer's normals of all steps."""

    def finish(self) -> None:
        """Called after the last step."""

    def squares(self) -> torch.Tensor:
        """Squared norm of each user's change, (U,) float64."""

    def total(self, factors: np.ndarray) -> torch.Tensor:
        """Weighted sum of the changes, weights then bias, flat."""

    def stack(self) -> torch.Tensor:
        """Every user's change, weights then bias, (U, o (i + 1))."""


def train(
    shapes: list[tuple[int, int]],
    start: torch.Tensor,
    users: Users,
    batches: Batches,
    lr: float,
    gram: Gram = grams.gram,
    rule: ExampleRule | None = None,
    key: Key | None = None,
) -> Updates:
    """All steps of all users: SGD on the mean cross entropy of each batch, or DP-SGD under `rule`, noise from `key`."""
    x, y = tensors(users, start)
    index = torch.from_numpy(batches.index).to(start.device)
    layers = _layers(shapes, start, users, x.flatten(2), index, gram)
    steps = index.shape[1]
    noise = _normals(layers, users, steps, key, start) if rule and rule.noise_multiplier and key else None
    weights = torch.from_numpy(batches.weight if rule is None else batches.chosen).to(start)
    labels = y.gather(1, index.flatten(1)).view(index.shape)
    truth = torch.zeros(*index.shape, shapes[-1][0], dtype=start.dtype, device=start.device)
    truth.scatter_(3, labels[..., None], 1.0)
    rate = lr if rule is None else lr / rule.batch
    seen = None if isinstance(layers[0], DualLayer) else x.flatten(2)
    for step in range(steps):
        inputs = [torch.empty(0) if seen is None else _records(seen, index[:, step])]
        for layer in layers[:-1]:
            inputs.append(layer.forward(step, inputs[-1]).relu_())
        slopes = [_softmax(layers[-1].forward(step, inputs[-1])).sub_(truth[:, step])]
        for layer, below in zip(reversed(layers[1:]), reversed(inputs[1:]), strict=True):
            slope = layer.backward(slopes[0])
            slopes.insert(0, _aten.threshold_backward.grad_input(slope, below, 0, grad_input=slope))
        weight = weights[:, step]
        if rule is not None:
            norms = torch.zeros_like(weight)
            for layer, slope, below in zip(layers, slopes, inputs, strict=True):
                norms.addcmul_(dots(slope, slope), layer.input_squares(step, below))
            norms.sqrt_()
            finite = norms.isfinite()
            weight = torch.where(finite, weight * (rule.clip_norm / norms.clamp(min=rule.clip_norm)), 0.0)
            if not finite.all():
                slopes = [torch.where(finite[..., None], slope, 0.0) for slope in slopes]
        for layer, slope, below in zip(layers, slopes, inputs, strict=True):
            layer.step(step, below, slope.mul_(weight[..., None]), rate)
        if noise is not None and rule is not None:
            for layer, mine in zip(layers, noise, strict=True):
                layer.add_noise(mine, step, steps, -rate * rule.noise_multiplier * rule.clip_norm)
    for layer in layers:
        layer.finish()
    return DenseUpdates(layers, draws=0 if rule is None else len(users) * steps)


class DenseUpdates(Updates):
    """Updates kept layer by layer."""

    def __init__(self, layers: list[Layer], draws: int):
        self.layers, self.draws = layers, draws

    @cached_property
    def norms(self) -> np.ndarray:
        norms: np.ndarray = sum(layer.squares() for layer in self.layers).clamp(min=0).sqrt().cpu().numpy()  # type: ignore[union-attr]
        return norms

    def total(self, factors: np.ndarray) -> np.ndarray:
        flat: np.ndarray = torch.cat([layer.total(factors) for layer in self.layers]).double().cpu().numpy()
        return flat

    def stack(self) -> torch.Tensor:
        return torch.cat([layer.stack() for layer in self.layers], dim=1)


class CopiedLayer:
    """A layer with a copy of its weights per user, `matrix` (U, o, i) and `bias` (U, o)."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor, users: int):
        self.shared, self.shared_bias = weights, bias
        self.matrix, self.bias = weights.repeat(users, 1, 1), bias.repeat(users, 1)

    def forward(self, step: int, below: torch.Tensor) -> torch.Tensor:
        return each_product(below, self.matrix.mT).add_(self.bias[:, None])

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        return each_product(slope, self.matrix)

    def input_squares(self, step: int, below: torch.Tensor) -> torch.Tensor:
        return dots(below, below) + 1

    def step(self, step: int, below: torch.Tensor, slope: torch.Tensor, rate: float) -> None:
        add_each_product(self.matrix, slope.mT, below, -rate)
        self.bias.sub_(slope.sum(1), alpha=rate)

    def draws(self, steps: int) -> int:
        return steps * (self.shared.numel() + len(self.shared_bias))

    def add_noise(self, noise: torch.Tensor, step: int, steps: int, scale: float) -> None:
        mine = noise.unflatten(1, (steps, -1))[:, step]
        self.matrix.add_(mine[:, : self.shared.numel()].unflatten(1, self.shared.shape), alpha=scale)
        self.bias.add_(mine[:, self.shared.numel() :], alpha=scale)

    def finish(self) -> None:
        self.matrix -= self.shared
        self.bias -= self.shared_bias

    def squares(self) -> torch.Tensor:
        return squares(self.matrix.flatten(1)) + squares(self.bias)

    def total(self, factors: np.ndarray) -> torch.Tensor:
        found = []
        for part in (self.matrix, self.bias):
            weights, kept = without_zeros(factors, part)
            found.append(weights.to(kept) @ kept.flatten(1))
        return torch.cat(found)

    def stack(self) -> torch.Tensor:
        return torch.cat([self.matrix.flatten(1), self.bias], dim=1)


def _layers(
    shapes: list[tuple[int, int]],
    start: torch.Tensor,
    users: Users,
    inputs: torch.Tensor,
    index: torch.Tensor,
    gram: Gram,
) -> list[Layer]:
    layers: list[Layer] = []
    first = 0
    for place, (outputs, width) in enumerate(shapes):
        weights = start[first : first + outputs * width].view(outputs, width)
        bias = start[first + outputs * width : first + outputs * (width + 1)]
        first += outputs * (width + 1)
        if place == 0 and pays(outputs, width, inputs.shape[1]):
            layers.append(DualLayer(weights, bias, inputs, gram(users, inputs), index))
        else:
            layers.append(CopiedLayer(weights, bias, len(inputs)))
    return layers


def _records(seen: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The records (U, B, d) at the positions `index` (U, B) of `seen` (U, n, d)."""
    rows = torch.arange(len(seen), device=seen.device)[:, None] * seen.shape[1] + index
    return seen.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, -1)


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, in place: five times as fast as torch's for few classes."""
    logits -= logits.amax(-1, keepdim=True)
    logits.exp_()
    logits /= logits.sum(-1, keepdim=True)
    return logits


def _normals(layers: list[Layer], users: Users, steps: int, key: Key, like: torch.Tensor) -> list[torch.Tensor]:
    """Each layer's standard normals, (U, draws), one stream per user; the first layer's come last in it, because in
    the dual form a user with fewer records needs fewer."""
    counts = [layer.draws(steps) for layer in layers[1:] + layers[:1]]
    used = np.full(len(users), sum(counts))
    if isinstance(layers[0], DualLayer):
        used -= [layers[0].unused(int(size), steps) for size in users.mask.sum(1)]
    found = key.normals(users.ids, used)
    if found.shape[1] < sum(counts):
        found = np.pad(found, ((0, 0), (0, sum(counts) - found.shape[1])))
    pieces = torch.from_numpy(found).to(like).split(counts, dim=1)
    return [pieces[-1], *pieces[:-1]]
