"""Local work of users whose records are counted: no steps, and no dense vector of a user."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from fedacdp.keys import Key
from fedacdp.local.updates import Updates
from fedacdp.models.histogram import Counts
from fedacdp.privacy.randomised_response import Response
from fedacdp.users import Users


class Counted(Updates):
    """Updates of U users over P places that are `shift` everywhere but for a few entries: `value` (E,) is added at
    `place` (E,) of user `row` (E,), no place of a user twice."""

    def __init__(self, users: int, size: int, row: np.ndarray, place: np.ndarray, value: np.ndarray, shift: float = 0):
        self._users, self._size, self._shift = users, size, shift
        self._row, self._place, self._value = row, place, value

    @cached_property
    def norms(self) -> np.ndarray:
        more = (self._value + self._shift) ** 2 - self._shift**2
        return np.sqrt(self._size * self._shift**2 + np.bincount(self._row, more, self._users))

    def total(self, factors: np.ndarray) -> np.ndarray:
        total = np.bincount(self._place, self._value * factors[self._row], self._size)
        return total + self._shift * factors.sum() if self._shift else total

    def stack(self) -> torch.Tensor:
        rows = np.full((self._users, self._size), self._shift, np.float64)
        rows[self._row, self._place] += self._value
        return torch.from_numpy(rows)


def count(net: Counts, users: Users, response: Response | None, key: Key) -> Counted:
    """How many of each user's records lie in each cell and class; under `response` the unbiased estimate from one
    randomised report of it, drawn from `key` and the user's id. ValueError for a label that is no class, and under
    `response` for users of several records."""
    slots = users.mask.shape[1]
    if len(users) and not 0 <= users.y.min() <= users.y.max() < net.classes:
        raise ValueError(f"label {users.y.max()}: histogram counts the classes 0 to {net.classes - 1}")
    place = net.place(users.x.reshape(len(users) * slots, -1), users.y.ravel())
    place[~users.mask.ravel()] = -1
    if response is not None:
        if slots != 1:
            raise ValueError("privacy.name = 'randomised_response': needs users of one record each")
        slope, shift = response.estimate(net.size)
        report = response.reports(place, net.size, users.ids, key)
        counted = Counted(len(users), net.size, np.arange(len(users)), report, np.full(len(users), slope), shift)
        counted.draws = len(users)
        return counted
    there = np.flatnonzero(place >= 0)
    row, place = there // slots, place[there]
    if slots == 1:
        return Counted(len(users), net.size, row, place, np.ones(len(row)))
    both, times = np.unique(row * net.size + place, return_counts=True)
    return Counted(len(users), net.size, both // net.size, both % net.size, times.astype(np.float64))
