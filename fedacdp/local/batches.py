"""Which records every user trains on at every local step, for a whole block of users at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedacdp.keys import Key
from fedacdp.users import Users


@dataclass(frozen=True)
class Batches:
    """S local steps of U users: `index` (U, S, B) positions of records, `chosen` (U, S, B) bool, False for padding."""

    index: np.ndarray
    chosen: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """1 / (records in the batch) for chosen records and 0 for padding, (U, S, B) float64: a mean over the batch."""
        return self.chosen / np.maximum(self.chosen.sum(-1, keepdims=True), 1)


def shuffled(users: Users, batch: int | Literal["full"], steps: int | None, epochs: int | None, key: Key) -> Batches:
    """Batches in a random order of each user's own records, a new order in every epoch.

    Exactly one of `steps` (the same for all users, going round again as needed) and `epochs` (users with more records
    take more steps) is given. A user's batches depend on `key`, its id and its number of records, not on the block.
    """
    sizes = users.mask.sum(1)
    width = users.mask.shape[1] if batch == "full" else min(batch, users.mask.shape[1])
    per_epoch = np.maximum(1, -(-sizes // max(1, width)))
    mine = np.full(len(users), steps) if epochs is None else epochs * per_epoch
    step = np.arange(int(mine.max(initial=0)))
    one = len(users) > 0 and (sizes == sizes[0]).all()  # what is the same for all users is found for one
    few = slice(0, 1) if one else slice(None)
    epoch, turn = step[None, :] // per_epoch[few, None], step[None, :] % per_epoch[few, None]
    position = turn[:, :, None] * width + np.arange(width)
    chosen = (position < sizes[few, None, None]) & (step[None, :] < mine[few, None])[:, :, None]
    order = _orders(users, int(epoch.max(initial=0)) + 1, key)
    index = order[np.arange(len(users))[:, None, None], np.where(chosen, position, 0), epoch[:, :, None]]
    return Batches(index, np.broadcast_to(chosen, index.shape))


def poisson(users: Users, rate: float, steps: int, key: Key) -> Batches:
    """Batches that every record enters independently with chance `rate`, as the accounting of DP-SGD assumes."""
    slots = users.mask.shape[1]
    entered = key.uniforms(users.ids, slots * steps).reshape(len(users), slots, steps) < rate
    entered = np.moveaxis(entered & users.mask[:, :, None], 1, 2)
    width = max(1, int(entered.sum(-1).max(initial=0)))
    index = np.argsort(~entered, axis=-1, kind="stable")[:, :, : min(width, slots)]
    return Batches(index, np.take_along_axis(entered, index, -1))


def finite_only(users: Users, batches: Batches) -> tuple[Users, Batches]:
    """Without the records that are not finite, which are zero then and in no batch: under DP-SGD one record must not
    decide over a user's whole message, its noise included."""
    good = np.isfinite(users.x.reshape(*users.mask.shape, -1)).all(-1)
    x = np.where(good.reshape(*good.shape, *[1] * (users.x.ndim - 2)), users.x, np.float32(0))
    chosen = batches.chosen & np.take_along_axis(good[:, None], batches.index, -1)
    return users.replace(x=x), Batches(batches.index, chosen)


def _orders(users: Users, epochs: int, key: Key) -> np.ndarray:
    """A random order of each user's records for each epoch, (U, n, epochs); padding comes last.

    One stream per epoch: how many epochs the block needs must not move anybody's numbers.
    """
    slots = users.mask.shape[1]
    draws = [np.where(users.mask, key.fold(epoch).uniforms(users.ids, slots), 2.0) for epoch in range(epochs)]
    return np.stack([np.argsort(draw, axis=1, kind="stable") for draw in draws], axis=2)
