"""Gram matrices of users' records: they depend on data only, so they are computed once and kept while there is room."""

from __future__ import annotations

import threading

import numpy as np
import torch

from fedacdp.products import each_product
from fedacdp.users import Users

_ROOM = 2**27


def gram(users: Users, inputs: torch.Tensor) -> torch.Tensor:
    """A A^T + 1 of each user's records A, from `inputs` (U, n, d): (U, n, n).

    A user's matrix is the same to the bit in whatever block it is computed: the product has the user's own number of
    records, not the block's, and is formed by itself.
    """
    if inputs.device.type != "cpu":
        return torch.bmm(inputs, inputs.mT).add_(1)
    found = inputs.new_zeros(len(inputs), inputs.shape[1], inputs.shape[1])
    sizes = users.mask.sum(1)
    for size in np.unique(sizes):
        same = torch.from_numpy(np.flatnonzero(sizes == size))
        rows = inputs[:, :size] if len(same) == len(inputs) else inputs[same, :size]
        found[same, :size, :size] = each_product(rows, rows.mT)
    return found.add_(1)


class Grams:
    """The Gram matrices of a federation's users, float32 on the CPU, at most 128 MiB of them."""

    def __init__(self, sizes: np.ndarray):
        """`sizes` (U,): how many records each user of the federation has."""
        self._widest = int(sizes.max(initial=1))
        self._slots = np.full(len(sizes), -1, np.int32)
        self._held = torch.zeros(min(len(sizes), _ROOM // (4 * self._widest**2)), self._widest, self._widest)
        self._used = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that the matrices may take."""
        return self._held.nbytes

    def of(self, users: Users, inputs: torch.Tensor, original: np.ndarray) -> torch.Tensor:
        """As `gram`; users for whom `original` (U,) is True hold the federation's own records, not changed ones."""
        if inputs.device.type != "cpu" or inputs.dtype != torch.float32:
            return gram(users, inputs)
        width = inputs.shape[1]
        slots = self._slots[users.ids]
        known = original & (slots >= 0)
        found = self._held[torch.from_numpy(np.where(known, slots, 0)), :width, :width] if known.any() else None
        if found is not None and known.all():
            return found
        new = np.flatnonzero(~known)
        computed = gram(users.rows(new), inputs[torch.from_numpy(new)])
        self._keep(users.ids[new], computed, original[new])
        if found is None:
            return computed
        found[torch.from_numpy(new)] = computed
        return found

    def _keep(self, ids: np.ndarray, computed: torch.Tensor, original: np.ndarray) -> None:
        with self._lock:  # runs in flight at once share this
            rows = np.flatnonzero(original & (self._slots[ids] < 0))[: len(self._held) - self._used]
            slots = np.arange(self._used, self._used + len(rows))
            width = computed.shape[1]
            self._held[torch.from_numpy(slots), :width, :width] = computed[torch.from_numpy(rows)]
            self._used += len(rows)
            self._slots[ids[rows]] = slots  # last: who finds a slot finds it filled
