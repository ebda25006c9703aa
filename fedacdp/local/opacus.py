"""Client-side DP-SGD by Opacus' `DPOptimizer`, one user after another: the slow, obvious form, for any layer it knows.

Only the optimiser is used, with public constants. `PrivacyEngine` derives its constants from the data loader, which
leaks, and is not.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from fedacdp.keys import Key
from fedacdp.local.batches import Batches
from fedacdp.models.base import Net
from fedacdp.users import Users

if TYPE_CHECKING:
    from fedacdp.privacy.base import ExampleRule


def train_with_opacus(
    net: Net, start: torch.Tensor, users: Users, batches: Batches, lr: float, rule: ExampleRule, key: Key
) -> torch.Tensor:
    """DP-SGD steps of each user, (U, P): Poisson batches given, noise from a generator whose address is the user's."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    module = copy.deepcopy(net.module).to_empty(device=start.device).to(start.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampled = GradSampleModule(module)
    updates = torch.empty(len(users), len(start), dtype=start.dtype)
    for row, user in enumerate(users.ids):
        with torch.no_grad():
            for parameter, value in zip(sampled.parameters(), net.unflatten(start).values(), strict=True):
                parameter.copy_(value)
        optimizer = DPOptimizer(
            torch.optim.SGD(sampled.parameters(), lr=lr),
            noise_multiplier=rule.noise_multiplier,
            max_grad_norm=rule.clip_norm,
            expected_batch_size=rule.batch,
            generator=torch_generator(key.fold(int(user))),
        )
        for step in range(batches.index.shape[1]):
            rows = batches.index[row, step][batches.chosen[row, step]]
            optimizer.zero_grad()
            x, y = torch.from_numpy(users.x[row, rows]).to(start), torch.from_numpy(users.y[row, rows])
            F.cross_entropy(sampled(x), y, reduction="sum" if len(rows) == 0 else "mean").backward()
            optimizer.step()
        updates[row] = torch.cat([p.detach().flatten() for p in sampled.parameters()]) - start
    return updates


def torch_generator(key: Key) -> torch.Generator:
    """A torch generator whose whole state comes from `key`.

    `manual_seed` uses only 32 bits of its seed on the CPU, so 10^5 users would collide with a chance of two thirds.
    Here all 624 words of the Mersenne Twister are filled from the key's own stream.
    """
    generator = torch.Generator()
    state = generator.get_state().numpy().copy()
    words = key.rng().integers(0, 2**32, 624, dtype=np.uint64)
    words[0] |= 1  # an all-zero state would be stuck
    state[_TWISTER : _TWISTER + 624 * 8] = words.view(np.uint8)
    generator.set_state(torch.from_numpy(state))
    return generator


_TWISTER = 24  # bytes before the 624 words, each in 8 bytes: seed, words left, seeded, next
