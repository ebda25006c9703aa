"""Local training of any module, by `torch.func.vmap` over users: written for one user, mapped over all."""

from __future__ import annotations

import numpy as np
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from fedacdp.keys import Key
from fedacdp.local.batches import Batches
from fedacdp.local.updates import squares
from fedacdp.models.base import Net
from fedacdp.privacy.base import ExampleRule
from fedacdp.users import Users

GRADIENT_BYTES = 2**28  # per-example gradients held at once


def sgd(net: Net, start: torch.Tensor, users: Users, batches: Batches, lr: float) -> torch.Tensor:
    """SGD steps of all users, (U, P)."""

    def loss(
        parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return (F.cross_entropy(net.logits(parameters, x), y, reduction="none") * weight).sum()

    gradient = vmap(grad(loss))
    x, y = tensors(users, start)
    weight = torch.from_numpy(batches.weight).to(start)
    current = {name: value.expand(len(users), *value.shape).clone() for name, value in net.unflatten(start).items()}
    for step in range(batches.index.shape[1]):
        rows = step_rows(batches, step, start)
        slopes = gradient(current, x[rows], y[rows], weight[:, step])
        for name, value in current.items():
            value.sub_(slopes[name], alpha=lr)
    return torch.cat([value.flatten(1) for value in current.values()], dim=1) - start


def dpsgd(
    net: Net, start: torch.Tensor, users: Users, batches: Batches, lr: float, rule: ExampleRule, key: Key
) -> torch.Tensor:
    """DP-SGD steps of all users, (U, P), as many users at once as their per-example gradients fit in memory."""
    rows_each = max(1, GRADIENT_BYTES // (len(start) * start.element_size() * batches.index.shape[2]))
    blocks = [slice(first, first + rows_each) for first in range(0, len(users), rows_each)]
    return torch.cat(
        [
            _dpsgd_block(
                net, start, users.rows(block), Batches(batches.index[block], batches.chosen[block]), lr, rule, key
            )
            for block in blocks
        ]
    )


def _dpsgd_block(
    net: Net, start: torch.Tensor, users: Users, batches: Batches, lr: float, rule: ExampleRule, key: Key
) -> torch.Tensor:
    def loss(flat: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net.logits(net.unflatten(flat), x[None]), y[None])

    per_example = vmap(vmap(grad(loss), in_dims=(None, 0, 0)))
    x, y = tensors(users, start)
    chosen = torch.from_numpy(batches.chosen).to(start)
    noise = [key.fold(int(user)).rng() for user in users.ids]
    delta = torch.zeros(len(users), len(start), dtype=start.dtype, device=start.device)
    for step in range(batches.index.shape[1]):
        rows = step_rows(batches, step, start)
        slopes = per_example(start + delta, x[rows], y[rows])
        norms = squares(slopes.flatten(0, 1)).sqrt().to(slopes).view(slopes.shape[:2])
        kept = torch.isfinite(norms)
        factor = chosen[:, step] * kept * (rule.clip_norm / norms.clamp(min=rule.clip_norm))
        total = torch.einsum("ub,ubp->up", torch.where(kept, factor, 0.0), torch.where(kept[:, :, None], slopes, 0.0))
        if rule.noise_multiplier > 0:
            draws = np.stack([rng.standard_normal(len(start), np.float32) for rng in noise])
            total += torch.from_numpy(draws).to(start) * (rule.noise_multiplier * rule.clip_norm)
        delta -= (lr / rule.batch) * total
    return delta


def tensors(users: Users, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of the users, on the device of `like`, x in its precision."""
    return torch.from_numpy(users.x).to(like), torch.from_numpy(users.y).to(like.device)


def step_rows(batches: Batches, step: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The index (user, record) of a step's records, each (U, B)."""
    index = torch.from_numpy(np.ascontiguousarray(batches.index[:, step])).to(like.device)
    return torch.arange(len(index), device=like.device)[:, None], index
