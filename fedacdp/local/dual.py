"""The dual form of local training for dense networks: exact, and without any user's copy of the wide first layer.

SGD moves a dense layer's weights only inside the span of the layer's inputs. For a user with inputs A (n, d), shared
start W0 (h, d) and b0, the moved layer is W0 + c^T A with n coefficient rows c (n, h), and its output on the user's own
records is A W0^T + b0 + K c with the Gram matrix K = A A^T + 1 (the 1 is the bias). So a step costs n h B instead of
d h B, the shared part A W0^T is one large product for all users, and so is the sum of all updates, sum_u f_u c_u^T A_u.
Layers after the first are narrow and keep a copy of their weights per user.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import nn

from fedacdp.local.batches import Batches
from fedacdp.local.general import step_rows, tensors
from fedacdp.local.updates import Updates, without_zeros
from fedacdp.models.base import Net
from fedacdp.users import Users

Layers = list[tuple[int, int]]
"""(outputs, inputs) of each dense layer, with ReLU between layers."""


def dense_layers(net: Net) -> Layers | None:
    """The dense layers of a net that is Flatten, Linear, ReLU, Linear, ...; None if it is anything else."""
    layers = list(net.module) if isinstance(net.module, nn.Sequential) else []
    expected = [nn.Flatten, nn.Linear] + [nn.ReLU, nn.Linear] * ((len(layers) - 2) // 2)
    if [type(layer) for layer in layers] != expected or any(getattr(layer, "bias", 0) is None for layer in layers):
        return None
    return [(layer.out_features, layer.in_features) for layer in layers if isinstance(layer, nn.Linear)]


def pays(layers: Layers, records: int) -> bool:
    """Whether n coefficient rows are cheaper than a copy of the first layer's (h, d) weights: n below h d / (h + d)."""
    outputs, inputs = layers[0]
    return records < outputs * inputs / (outputs + inputs)


def sgd(layers: Layers, start: torch.Tensor, users: Users, batches: Batches, lr: float) -> Updates:
    """SGD steps of all users on the mean cross entropy of each batch."""
    x, y = tensors(users, start)
    inputs = x.flatten(2)
    shared, *upper = _matrices(layers, start, len(users))
    outputs = (inputs.flatten(0, 1) @ shared[:, :-1].T + shared[:, -1]).unflatten(0, inputs.shape[:2])
    gram = torch.baddbmm(torch.ones((), dtype=x.dtype, device=x.device), inputs, inputs.mT)
    moved = torch.zeros_like(outputs)
    weight = torch.from_numpy(batches.weight).to(start)
    classes = torch.arange(layers[-1][0], device=x.device)
    for step in range(batches.index.shape[1]):
        rows = step_rows(batches, step, start)
        seen = [torch.baddbmm(outputs[rows], gram[rows], moved)]
        for matrix in upper:
            seen.append(torch.baddbmm(matrix[:, None, :, -1], seen[-1].relu(), matrix[:, :, :-1].mT))
        slope = (seen[-1].softmax(-1) - (y[rows][..., None] == classes).to(x.dtype)) * weight[:, step, :, None]
        for matrix, below in zip(reversed(upper), reversed(seen[:-1]), strict=True):
            passed = torch.bmm(slope, matrix[:, :, :-1]) * (below > 0)
            matrix[:, :, :-1].baddbmm_(slope.mT, below.relu(), alpha=-lr)
            matrix[:, :, -1].sub_(slope.sum(1), alpha=lr)
            slope = passed
        moved.scatter_add_(1, rows[1][..., None].expand_as(slope), slope * -lr)
    changes = [matrix - value for matrix, value in zip(upper, _matrices(layers, start)[1:], strict=True)]
    return _Dual(inputs, gram, moved, changes)


class _Dual(Updates):
    """Updates whose first layer is coefficients (U, n, h) on the users' inputs (U, n, d), the others (U, o, i + 1)."""

    def __init__(self, inputs: torch.Tensor, gram: torch.Tensor, moved: torch.Tensor, upper: list[torch.Tensor]):
        self.inputs, self.gram, self.moved, self.upper = inputs, gram, moved, upper

    @cached_property
    def norms(self) -> np.ndarray:
        squares = (torch.bmm(self.gram, self.moved) * self.moved).sum((1, 2), dtype=torch.float64)
        for matrix in self.upper:
            squares += matrix.square().sum((1, 2), dtype=torch.float64)
        norms: np.ndarray = squares.clamp(min=0).sqrt().cpu().numpy()
        return norms

    def total(self, factors: np.ndarray) -> np.ndarray:
        weights, moved = without_zeros(factors, self.moved)
        _, inputs = without_zeros(factors, self.inputs)
        scaled = moved * weights.to(moved)[:, None, None]
        parts = [scaled.flatten(0, 1).T @ inputs.flatten(0, 1), scaled.sum((0, 1))]
        for matrix in self.upper:
            total = torch.einsum("u,uoi->oi", weights.to(matrix), without_zeros(factors, matrix)[1])
            parts += [total[:, :-1], total[:, -1]]
        flat: np.ndarray = torch.cat([part.flatten() for part in parts]).double().cpu().numpy()
        return flat

    def stack(self) -> torch.Tensor:
        parts = [torch.bmm(self.moved.mT, self.inputs), self.moved.sum(1)]
        for matrix in self.upper:
            parts += [matrix[:, :, :-1], matrix[:, :, -1]]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def _matrices(layers: Layers, start: torch.Tensor, users: int | None = None) -> list[torch.Tensor]:
    """Weights and bias of each layer as (o, i + 1); from the second on a copy per user if `users` is given."""
    matrices, first = [], 0
    for number, (outputs, inputs) in enumerate(layers):
        weights = start[first : first + outputs * inputs].view(outputs, inputs)
        bias = start[first + outputs * inputs : first + outputs * (inputs + 1)]
        matrix = torch.cat([weights, bias[:, None]], dim=1)
        matrices.append(matrix if users is None or number == 0 else matrix.repeat(users, 1, 1))
        first += outputs * (inputs + 1)
    return matrices
