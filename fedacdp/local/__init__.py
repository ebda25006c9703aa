"""Local training of all users of a block at once: the hot path. Which form is used is decided here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedacdp.keys import Key
from fedacdp.local import conv, counts, dense, factors, general, grams
from fedacdp.local.batches import finite_only, poisson, shuffled
from fedacdp.local.conv_plan import plan_of
from fedacdp.local.dual import pays
from fedacdp.local.opacus import train_with_opacus
from fedacdp.local.updates import Stacked, Updates
from fedacdp.models.base import Learner, Net
from fedacdp.models.histogram import Counts
from fedacdp.models.matrix_factorization import Factors
from fedacdp.privacy.base import ExampleRule
from fedacdp.privacy.randomised_response import Response
from fedacdp.users import Users

if TYPE_CHECKING:
    from fedacdp.training import Training


_CACHE = 2**24
"""Bytes that a block of users may take: about what stays in a processor's cache. The same everywhere, for the bits of a
sum depend on its blocks."""
_EVERYBODY = 2**31
_PADDING = 10  # numbers in hand for the place of a rating that a user may have
_PLACES = 20  # numbers in hand for the place of one record, or for a rating beside its vectors


def block_size(
    net: Learner, shape: tuple[int, ...], records: int, rule: ExampleRule | None, device: str, edited: bool
) -> int:
    """How many users with up to `records` records of `shape` to train at once; `edited` says that their updates may be
    expanded for a strategy to edit. A multiple of 8, for groups of convolutions; a GPU takes a whole chunk."""
    return _EVERYBODY if device != "cpu" else 8 * max(1, _CACHE // (32 * _numbers(net, shape, records, rule, edited)))


def training_bytes(
    net: Learner, shape: tuple[int, ...], records: int, batch: int, users: int, rule: ExampleRule | None, edited: bool
) -> int:
    """About how many bytes the training of so many users at once takes, in float32; rather more than less."""
    if isinstance(net, Factors):
        return 8 * users * records * (6 * (net.factors + 1) + _PLACES) + 3 * 8 * net.size
    if not isinstance(net, Net):
        return 4 * users * _numbers(net, shape, records, rule, edited) + 3 * 8 * net.size
    numbers, fixed = 2 * _numbers(net, shape, records, rule, edited), 0
    if net.dense is None and plan_of(net, shape) is None:
        numbers += 3 * batch * net.activations(shape) + 2 * net.size
        fixed = 3 * general.GRADIENT_BYTES if rule is not None else 0
    return 4 * users * numbers + fixed


def _numbers(net: Learner, shape: tuple[int, ...], records: int, rule: ExampleRule | None, edited: bool) -> int:
    """The numbers that belong to one user: its records, its parameters and their gradients."""
    if isinstance(net, Factors):
        return records * _PADDING  # of users who rated little there is little more
    if not isinstance(net, Net):
        return records * (math.prod(shape) + _PLACES) + (3 * 2 * net.size if edited else 0)  # float64, thrice
    if (shapes := net.dense) is None or not pays(*shapes[0], records):
        return records * math.prod(shape) + 2 * net.size
    outputs, inputs = shapes[0]
    upper = net.size - outputs * (inputs + 1)
    numbers = records * (inputs + 4 * outputs + 2 * records) + 2 * upper
    if rule is not None:
        numbers += outputs * (inputs + 1) + 4 * records * outputs + 5 * upper  # noise
    return numbers


def train_users(
    net: Learner,
    start: torch.Tensor,
    users: Users,
    training: Training,
    rule: ExampleRule | None,
    key: Key,
    gram: dense.Gram = grams.gram,
    response: Response | None = None,
) -> Updates:
    """Local training of every user of the block from the same parameters `start` (P,), in the precision of `start`.

    Plain SGD on the mean cross entropy of each batch, or DP-SGD under `rule`; where the model learns by counts, these,
    or randomised reports under `response`; where it learns by ratings, see `factors.train`. Draws come from `key` and
    the user's id.
    """
    if isinstance(net, Counts):
        return counts.count(net, users, response, key.fold("response"))
    if isinstance(net, Factors):
        return factors.train(net, start, users, training)
    assert isinstance(net, Net)
    assert training.local_lr is not None
    if len(users) == 0:
        return Stacked(torch.zeros(0, len(start), dtype=start.dtype, device=start.device))
    shapes = net.dense
    plan = plan_of(net, users.schema.shape) if shapes is None and start.device.type == "cpu" else None
    lr = training.local_lr
    if rule is None:
        batches = shuffled(users, training.batch, training.local_steps, training.local_epochs, key.fold("order"))
        if shapes is not None:
            return dense.train(shapes, start, users, batches, lr, gram)
        if plan is not None:
            return Stacked(conv.train(net, plan, start, users, batches, lr))
        return Stacked(general.sgd(net, start, users, batches, lr))
    assert training.local_steps is not None
    batches, noise = poisson(users, rule.batch_prob, training.local_steps, key.fold("batches")), key.fold("noise")
    if not np.isfinite(users.x.sum(dtype=np.float64)):
        (users, batches), gram = finite_only(users, batches), grams.gram
    draws = len(users) * training.local_steps
    if rule.implementation == "opacus":
        return Stacked(train_with_opacus(net, start, users, batches, lr, rule, noise), draws)
    if shapes is not None:
        return dense.train(shapes, start, users, batches, lr, gram, rule, noise)
    if plan is not None:
        return Stacked(conv.train(net, plan, start, users, batches, lr, rule, noise), draws)
    return Stacked(general.dpsgd(net, start, users, batches, lr, rule, noise), draws)
