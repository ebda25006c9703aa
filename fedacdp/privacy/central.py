"""Central, user-level differential privacy: the trusted server clips every update and adds noise to the sum."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedacdp.keys import Key
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noise, Plan
from fedacdp.privacy.trusted import Trusted


class Central(Trusted):
    """w <- w + server_lr / (qN) * (sum_u clip(update_u, C) + N(0, (z C)^2 I)), z = noise_multiplier, C = clip_norm.

    McMahan et al. 2018 (arXiv 1710.06963). Sensitivity C under add-or-remove of a user; T rounds on Poisson samples.
    """

    name: Literal["central"] = "central"

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise:
        return Noise(key.fold(round).rng().normal(0.0, self.sigma, size), 1)

    def draws(self, plan: Plan, messages: int) -> int:
        return plan.rounds

    def releases(self, plan: Plan) -> Gaussians:
        return Gaussians(self.multiplier, plan.sampling_prob, plan.rounds)
