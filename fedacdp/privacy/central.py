"""Central, user-level differential privacy: the trusted server clips every update and adds noise to the sum."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from fedacdp.keys import Key
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noise, Noisy, Plan


class Central(Noisy):
    """w <- w + server_lr / (qN) * (sum_u clip(update_u, C) + N(0, (z C)^2 I)), z = noise_multiplier, C = clip_norm.

    McMahan et al. 2018 (arXiv 1710.06963). Sensitivity C under add-or-remove of a user; T rounds on Poisson samples.
    """

    name: Literal["central"] = "central"
    unit: ClassVar[str] = "user"
    observer: ClassVar[str] = "model_holder"
    adjacency: ClassVar[str] = "add_or_remove"

    @property
    def on_messages(self) -> bool:
        return False

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise:
        return Noise(key.fold(round).rng().normal(0.0, self.sigma, size), 1)

    def draws(self, plan: Plan, messages: int) -> int:
        return plan.rounds

    def releases(self, plan: Plan) -> Gaussians:
        return Gaussians(self.multiplier, plan.sampling_prob, plan.rounds)

    def sampler(self, plan: Plan) -> str:
        return f"cohorts by Poisson sampling of users, q = {plan.sampling_prob:g} of N = {plan.users}"

    def composition(self, plan: Plan) -> str:
        return f"{plan.rounds} rounds, every model released"
