"""Central, user-level differential privacy with a clip norm that follows a quantile of the updates' norms."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat

from fedacdp.keys import Key
from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noise, Plan
from fedacdp.privacy.trusted import Trusted


class CentralAdaptive(Trusted):
    """As `central`, but the clip norm C starts at `clip_norm` and moves towards the `quantile` of the updates' norms
    (Andrew et al. 2019, arXiv 1905.03871).

    Every user also sends b = 1 if its norm is at most C, else 0; the server releases their noisy share
    b~ = 1/2 + (sum_u (b_u - 1/2) + N(0, count_noise^2)) / (qN) and sets C <- C exp(-clip_lr (b~ - quantile)). Halves
    are taken off so that who comes or goes moves the sum by 1/2. `noise_multiplier` is z, what both releases of a round
    cost together: noise on the updates is z' C with 1 / z'^2 = 1 / z^2 - 1 / (2 count_noise)^2, which needs
    z < 2 count_noise (default qN / 20). Clipping and noise of a round are at the same C, that before it moves.
    """

    name: Literal["central_adaptive"] = "central_adaptive"
    quantile: float = Field(default=0.5, gt=0, lt=1)
    clip_lr: PositiveFloat = 0.2
    count_noise: PositiveFloat | None = None

    def calibrated(self, plan: Plan) -> Self:
        noise = plan.cohort / 20 if self.count_noise is None else self.count_noise
        found = super().calibrated(plan).model_copy(update={"count_noise": noise})
        if not plan.users:  # nobody to be counted: any noise will do
            return found.model_copy(update={"count_noise": noise or found.multiplier + 1})
        if found.multiplier < 2 * noise:
            return found
        given, least = f"noise_multiplier = {found.multiplier:g}", ""
        if self.epsilon is not None:
            given = f"epsilon = {self.epsilon:g}: takes noise_multiplier = {found.multiplier:.4g}, and that"
            lowest = accounting.epsilon(Gaussians(2 * noise, plan.sampling_prob, plan.rounds), self.delta)
            least = f", or an epsilon above {lowest:.4g}"
        raise ValueError(
            f"privacy.{given}: must be below 2 count_noise = {2 * noise:g}, or the noisy count alone costs more; take "
            f"count_noise above {found.multiplier / 2:.4g}{least}"
        )

    @property
    def updates_multiplier(self) -> float:
        """z', the noise on the sum of updates in units of the clip norm in force."""
        if self.count_noise is None:
            raise ValueError(f"privacy.count_noise: {self.name} must be calibrated first")
        z = self.multiplier
        return z / math.sqrt(1 - (z / (2 * self.count_noise)) ** 2)

    def first_memory(self, plan: Plan, size: int) -> np.ndarray:
        return np.array([self.clip_norm])

    def clip_now(self, memory: np.ndarray) -> float:
        return float(memory[0])

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise:
        sigma, assumed = self.updates_multiplier * self.clip_now(memory), self.count_noise
        assert assumed is not None
        below = key.fold(round)
        return Noise(below.rng().normal(0.0, sigma, size), 2, below.fold("count").rng().normal(0.0, assumed))

    def next_memory(
        self, memory: np.ndarray, norms: np.ndarray, noise: Noise | None, plan: Plan, round: int, key: Key
    ) -> np.ndarray:
        assert noise is not None
        if not plan.users:
            return memory
        finite = norms[np.isfinite(norms)]
        halves = np.where(finite <= self.clip_now(memory), 0.5, -0.5)  # who sends nothing finite counts as absent
        share = 0.5 + (float(halves.sum()) + noise.on_count) / plan.cohort
        return memory * math.exp(-self.clip_lr * (share - self.quantile))

    def draws(self, plan: Plan, messages: int) -> int:
        return 2 * plan.rounds

    def releases(self, plan: Plan) -> Gaussians:
        return Gaussians(self.multiplier, plan.sampling_prob, plan.rounds)

    def composition(self, plan: Plan) -> str:
        noise = self.calibrated(plan).count_noise
        return (
            f"{super().composition(plan)}, and the clip norm, which starts at the one below and follows the "
            f"{self.quantile:g} quantile of norms by a count with noise {noise:g}, charged in the noise multiplier"
        )
