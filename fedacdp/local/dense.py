"""Local training of dense networks by hand-written batched steps, SGD and DP-SGD, without autograd.

Every layer keeps, for all users at once, what has moved since the shared start: a copy of its weights per user, or, for
a wide first layer, the dual form of `dual.py`, which is exact and far cheaper.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fedacdp.keys import Key
from fedacdp.local.batches import Batches
from fedacdp.local.dual import DualLayer, pays
from fedacdp.local.general import step_rows, tensors
from fedacdp.local.updates import Updates, without_zeros
from fedacdp.models.base import Net
from fedacdp.privacy.base import ExampleRule
from fedacdp.users import Users

Rows = tuple[torch.Tensor, torch.Tensor]


class Layer(Protocol):
    """A dense layer of all users. `below` (U, B, i) are the layer's inputs at a step, `slope` (U, B, o) the gradient at
    its outputs; the first layer looks its inputs up by `rows`, the index (user, record) of the step's records."""

    def forward(self, rows: Rows, below: torch.Tensor) -> torch.Tensor:
        """Outputs (U, B, o)."""

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        """The gradient at the inputs, (U, B, i)."""

    def input_squares(self, rows: Rows, below: torch.Tensor) -> torch.Tensor:
        """|input|^2 + 1 per record, (U, B): |slope|^2 times it is the squared norm of an example's gradient."""

    def step(self, rows: Rows, below: torch.Tensor, slope: torch.Tensor, rate: float) -> None:
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


def sizes(net: Net) -> list[tuple[int, int]] | None:
    """(outputs, inputs) of each layer of a net that is Flatten, Linear, ReLU, Linear, ...; None for anything else."""
    layers = list(net.module) if isinstance(net.module, nn.Sequential) else []
    expected = [nn.Flatten, nn.Linear] + [nn.ReLU, nn.Linear] * ((len(layers) - 2) // 2)
    if [type(layer) for layer in layers] != expected or any(getattr(layer, "bias", 0) is None for layer in layers):
        return None
    return [(layer.out_features, layer.in_features) for layer in layers if isinstance(layer, nn.Linear)]


def train(
    shapes: list[tuple[int, int]],
    start: torch.Tensor,
    users: Users,
    batches: Batches,
    lr: float,
    rule: ExampleRule | None = None,
    key: Key | None = None,
) -> Updates:
    """All steps of all users: SGD on the mean cross entropy of each batch, or DP-SGD under `rule`, noise from `key`."""
    x, y = tensors(users, start)
    steps = batches.index.shape[1]
    layers = _layers(shapes, start, x.flatten(2), users)
    noise = _normals(layers, users, steps, key, start) if rule and rule.noise_multiplier and key else None
    chosen = torch.from_numpy(batches.weight if rule is None else batches.chosen).to(start)
    rate = lr if rule is None else lr / rule.batch
    classes = torch.arange(shapes[-1][0], device=x.device)
    for step in range(steps):
        rows = step_rows(batches, step, start)
        inputs = [torch.empty(0)]
        for layer in layers[:-1]:
            inputs.append(layer.forward(rows, inputs[-1]).relu_())
        slope = layers[-1].forward(rows, inputs[-1]).softmax(-1)
        slope -= (y[rows][..., None] == classes).to(x.dtype)
        slopes = [slope]
        for layer, below in zip(reversed(layers[1:]), reversed(inputs[1:]), strict=True):
            slopes.insert(0, layer.backward(slopes[0]).mul_(below > 0))
        weight = chosen[:, step]
        if rule is not None:
            norms = torch.zeros_like(weight)
            for layer, slope, below in zip(layers, slopes, inputs, strict=True):
                norms.addcmul_(slope.square().sum(-1), layer.input_squares(rows, below))
            norms.sqrt_()
            weight = torch.where(norms.isfinite(), weight * (rule.clip_norm / norms.clamp(min=rule.clip_norm)), 0.0)
            slopes = [torch.where(norms.isfinite()[..., None], slope, 0.0) for slope in slopes]
        for layer, slope, below in zip(layers, slopes, inputs, strict=True):
            layer.step(rows, below, slope.mul_(weight[..., None]), rate)
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
    """A layer with a copy of its weights per user, `matrix` (U, o, i + 1), the bias in the last column."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor, users: int, inputs: torch.Tensor | None = None):
        self.shared = torch.cat([weights, bias[:, None]], dim=1)
        self.matrix = self.shared.repeat(users, 1, 1)
        self.inputs = inputs

    def _below(self, rows: Rows, below: torch.Tensor) -> torch.Tensor:
        return below if self.inputs is None else self.inputs[rows]

    def forward(self, rows: Rows, below: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.matrix[:, None, :, -1], self._below(rows, below), self.matrix[:, :, :-1].mT)

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        return torch.bmm(slope, self.matrix[:, :, :-1])

    def input_squares(self, rows: Rows, below: torch.Tensor) -> torch.Tensor:
        return self._below(rows, below).square().sum(-1) + 1

    def step(self, rows: Rows, below: torch.Tensor, slope: torch.Tensor, rate: float) -> None:
        self.matrix[:, :, :-1].baddbmm_(slope.mT, self._below(rows, below), alpha=-rate)
        self.matrix[:, :, -1].sub_(slope.sum(1), alpha=rate)

    def draws(self, steps: int) -> int:
        return steps * self.shared.numel()

    def add_noise(self, noise: torch.Tensor, step: int, steps: int, scale: float) -> None:
        self.matrix.add_(noise.view(len(noise), steps, *self.shared.shape)[:, step], alpha=scale)

    def finish(self) -> None:
        self.matrix -= self.shared

    def squares(self) -> torch.Tensor:
        return self.matrix.square().sum((1, 2), dtype=torch.float64)

    def total(self, factors: np.ndarray) -> torch.Tensor:
        weights, matrix = without_zeros(factors, self.matrix)
        total = (weights.to(matrix) @ matrix.flatten(1)).view_as(self.shared)
        return torch.cat([total[:, :-1].flatten(), total[:, -1]])

    def stack(self) -> torch.Tensor:
        return torch.cat([self.matrix[:, :, :-1].flatten(1), self.matrix[:, :, -1]], dim=1)


def _layers(shapes: list[tuple[int, int]], start: torch.Tensor, inputs: torch.Tensor, users: Users) -> list[Layer]:
    layers: list[Layer] = []
    first = 0
    for place, (outputs, width) in enumerate(shapes):
        weights = start[first : first + outputs * width].view(outputs, width)
        bias = start[first + outputs * width : first + outputs * (width + 1)]
        first += outputs * (width + 1)
        if place == 0 and pays(outputs, width, inputs.shape[1]):
            layers.append(DualLayer(weights, bias, inputs, torch.from_numpy(users.mask).to(start)))
        else:
            layers.append(CopiedLayer(weights, bias, len(inputs), inputs if place == 0 else None))
    return layers


def _normals(layers: list[Layer], users: Users, steps: int, key: Key, like: torch.Tensor) -> list[torch.Tensor]:
    """Each layer's standard normals, (U, draws), one stream per user; the first layer's come last in it, because in
    the dual form their number, and so what comes after them, depends on the number of records."""
    counts = [layer.draws(steps) for layer in layers[1:] + layers[:1]]
    mine = users.mask.sum(1)
    found = np.zeros((len(users), sum(counts)), np.float32)
    for row, user in enumerate(users.ids):
        used = sum(counts)
        if isinstance(layers[0], DualLayer):
            used -= layers[0].unused(int(mine[row]), steps)
        key.fold(int(user)).rng().standard_normal(used, np.float32, out=found[row, :used])
    pieces = torch.from_numpy(found).to(like).split(counts, dim=1)
    return [pieces[-1], *pieces[:-1]]
