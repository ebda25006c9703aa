"""Local training of all users of a block at once: the hot path. Which form is used is decided here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedacdp.keys import Key
from fedacdp.local import dense, general
from fedacdp.local.batches import poisson, shuffled
from fedacdp.local.opacus import train_with_opacus
from fedacdp.local.updates import Stacked, Updates
from fedacdp.models.base import Net
from fedacdp.privacy.base import ExampleRule
from fedacdp.users import Users

if TYPE_CHECKING:
    from fedacdp.config import Training


def train_users(
    net: Net, start: torch.Tensor, users: Users, training: Training, rule: ExampleRule | None, key: Key
) -> Updates:
    """Local training of every user of the block from the same parameters `start` (P,), in the precision of `start`.

    Plain SGD on the mean cross entropy of each batch, or DP-SGD under `rule`. Draws come from `key` and the user's id.
    """
    if len(users) == 0:
        return Stacked(torch.zeros(0, len(start), dtype=start.dtype, device=start.device))
    shapes = dense.sizes(net)
    if rule is None:
        batches = shuffled(users, training.batch, training.local_steps, training.local_epochs, key.fold("order"))
        if shapes is not None:
            return dense.train(shapes, start, users, batches, training.local_lr)
        return Stacked(general.sgd(net, start, users, batches, training.local_lr))
    assert training.local_steps is not None
    batches, noise = poisson(users, rule.batch_prob, training.local_steps, key.fold("batches")), key.fold("noise")
    if shapes is not None and rule.implementation == "vectorised":
        return dense.train(shapes, start, users, batches, training.local_lr, rule, noise)
    train = train_with_opacus if rule.implementation == "opacus" else general.dpsgd
    rows = train(net, start, users, batches, training.local_lr, rule, noise)
    return Stacked(rows, draws=len(users) * training.local_steps)
