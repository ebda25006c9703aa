"""Central, user-level differential privacy: the trusted server clips every update and adds noise to the sum."""

from __future__ import annotations

import dataclasses
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator

from fedacdp.keys import Key
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noise, Plan
from fedacdp.privacy.guarantee import Guarantee
from fedacdp.privacy.trusted import Trusted


class NoiseCohort(BaseModel):
    """Rounds of `cohort` users, expected, of `users` in all, of which a run is a forecast."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    cohort: PositiveFloat
    users: PositiveInt

    @model_validator(mode="after")
    def _of_users(self) -> Self:
        if self.cohort > self.users:
            raise ValueError(f"cohort = {self.cohort:g}: must not exceed users = {self.users}")
        return self


class Central(Trusted):
    """w <- w + server_lr / (qN) * (sum_u clip(update_u, C) + N(0, (z C)^2 I)), z = noise_multiplier, C = clip_norm.

    McMahan et al. 2018 (arXiv 1710.06963). Sensitivity C under add-or-remove of a user; T rounds on Poisson samples.

    noise_cohort = { cohort = n', users = N' }: a forecast of rounds of n' of N' users by fewer, as pfl-research's
    noise_cohort_size. Accounting is that of q' = n' / N'; the noise on the sum of qN users is z C qN / n', so that the
    mean carries as much as that of the larger cohort. Such a run is not private itself.
    """

    name: Literal["central"] = "central"
    noise_cohort: NoiseCohort | None = None

    def calibrated(self, plan: Plan) -> Self:
        if self.noise_cohort is not None and self.noise_cohort.cohort < plan.cohort:
            raise ValueError(
                f"privacy.noise_cohort.cohort = {self.noise_cohort.cohort:g}: must not be below the cohort that is "
                f"simulated, {plan.cohort:g}"
            )
        return super().calibrated(plan)

    def accounted(self, plan: Plan) -> Plan:
        """The public numbers that are accounted for: those of the forecast, if it is one."""
        if self.noise_cohort is None:
            return plan
        rate = self.noise_cohort.cohort / self.noise_cohort.users
        return dataclasses.replace(plan, users=self.noise_cohort.users, sampling_prob=rate)

    def first_memory(self, plan: Plan, size: int) -> np.ndarray:
        return np.zeros(0) if self.noise_cohort is None else np.array([plan.cohort / self.noise_cohort.cohort])

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise:
        scale = self.sigma if self.noise_cohort is None else self.sigma * float(memory[0])
        return Noise(key.fold(round).rng().normal(0.0, scale, size), 1)

    def draws(self, plan: Plan, messages: int) -> int:
        return plan.rounds

    def releases(self, plan: Plan) -> Gaussians:
        return Gaussians(self.multiplier, self.accounted(plan).sampling_prob, plan.rounds)

    def guarantee(self, plan: Plan) -> Guarantee:
        self.calibrated(plan)
        whole, larger = super().guarantee(self.accounted(plan)), self.noise_cohort
        if larger is None:
            return whole
        stands = larger.cohort / plan.cohort
        warning = (
            f"a forecast, not a private run: cohorts of {larger.cohort:g} of {larger.users} users are simulated by "
            f"{plan.cohort:g} of {plan.users}, and one of these stands for {stands:.4g} in a round"
        )
        return dataclasses.replace(whole, forecast=True, warnings=(warning, *whole.warnings))
