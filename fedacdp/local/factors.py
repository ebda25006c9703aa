"""Local training on ratings: a user solves for its own vector, then moves the rows of its items."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from fedacdp.local.updates import Updates
from fedacdp.models.matrix_factorization import WEIGHT, Factors
from fedacdp.users import Users

if TYPE_CHECKING:
    from fedacdp.training import Training


class Ratings(NamedTuple):
    """The E ratings of a block of users, one user after another: user u has `start[u]` to `start[u + 1]`."""

    start: np.ndarray
    item: np.ndarray
    rating: np.ndarray

    @property
    def row(self) -> np.ndarray:
        """Which user of the block each rating is of, (E,)."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


def ratings(users: Users) -> Ratings:
    """The ratings of a block without its padding."""
    start = np.concatenate([[0], np.cumsum(users.mask.sum(axis=1))])
    return Ratings(start, users.x[..., 0][users.mask].astype(np.int64), users.schema.scale[users.y[users.mask]])


def vectors(net: Factors, flat: np.ndarray, own: Ratings) -> np.ndarray:
    """Every user's w = (b_u, p_u), (U, 1 + k): argmin of sum_i (r_i - mean - b_i - b_u - q_i . p_u)^2 + ridge |w|^2,
    zero for a user without ratings. A user's is the same in any block."""
    found = net.items(flat)
    z = np.concatenate([np.ones((len(own.item), 1)), found.factors[own.item]], axis=1)
    left = own.rating - found.mean - found.bias[own.item]
    users, size = len(own.start) - 1, z.shape[1]
    gram, right = np.empty((users, size, size)), np.empty((users, size, 1))
    for u in range(users):
        rows = z[own.start[u] : own.start[u + 1]]
        np.matmul(rows.T, rows, out=gram[u])
        right[u, :, 0] = left[own.start[u] : own.start[u + 1]] @ rows
    return np.linalg.solve(gram + net.ridge * np.eye(size), right)[:, :, 0]


def train(net: Factors, start: torch.Tensor, users: Users, training: Training) -> Changes:
    """What each user would send: `local_steps` gradient steps of `local_lr` on the rows of its own items, its own
    vector as `vectors` has it. The mean moves by the mean error of a user's ratings."""
    assert training.local_lr is not None
    assert training.local_steps is not None
    flat, own = start.cpu().numpy().astype(np.float64, copy=False), ratings(users)
    found, row = net.items(flat), own.row
    with np.errstate(all="ignore"):  # what is not finite is looked for where it matters
        known = vectors(net, flat, own)
        left = own.rating - found.mean - known[row, 0]
        known[:, 0] = 1
        begin = np.concatenate([found.bias[own.item, None], found.factors[own.item]], axis=1)
        theirs, now = known[row], begin.copy()
        for _ in range(training.local_steps):
            error = left - np.einsum("ek,ek->e", now, theirs)
            now += training.local_lr * (error[:, None] * theirs - net.decay * now)
        error = left - np.einsum("ek,ek->e", begin, theirs)
        mean = training.local_lr * np.bincount(row, error, len(users)) / np.maximum(1, np.diff(own.start))
    return Changes(net, own, now - begin, mean)


class Changes(Updates):
    """Updates of U users, of whom each changes the rows of its own items only: `change` (E, 1 + k) of bias and factors,
    `mean` (U,). Beside them it sends WEIGHT for each of its items and once for itself."""

    def __init__(self, net: Factors, own: Ratings, change: np.ndarray, mean: np.ndarray):
        self._net, self._own, self._change, self._mean = net, own, change, mean

    @cached_property
    def norms(self) -> np.ndarray:
        with np.errstate(all="ignore"):
            squares = np.einsum("ek,ek->e", self._change, self._change)
            own = np.bincount(self._own.row, squares, len(self._mean)) + self._mean**2
            return np.sqrt(own + WEIGHT**2 * (np.diff(self._own.start) + 1))

    def total(self, factors: np.ndarray) -> np.ndarray:
        total, items = np.zeros(self._net.size), self._net.schema.items
        found, kept = self._net.items(total), factors > 0
        weight, there = factors[self._own.row], kept[self._own.row]
        item, weight, change = self._own.item[there], weight[there], self._change[there]
        found.raters[:-1] = WEIGHT * np.bincount(item, weight, items)
        found.raters[-1] = WEIGHT * factors.sum()
        found.mean[:] = factors[kept] @ self._mean[kept]
        found.bias[:] = np.bincount(item, weight * change[:, 0], items)
        for factor in range(self._net.factors):
            found.factors[:, factor] = np.bincount(item, weight * change[:, 1 + factor], items)
        return total

    def stack(self) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.total(one) for one in np.eye(len(self._mean))]))
