"""Distributed, user-level differential privacy: users add shares of the noise, and the server opens their sum only."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from fedacdp.keys import Key
from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noise, Noisy, Plan
from fedacdp.privacy.guarantee import Guarantee

_RARE = 1e-3  # the chance that a round has too few messages where the cohort is not given
_NEVER = 1e-6


class Distributed(Noisy):
    """Each user sends clip(update, C) + N(0, (z C)^2 I / h), and secure aggregation shows the server their sum only,
    with noise N(0, (z C)^2 I) or more (Kairouz, Liu, Steinke 2021, arXiv 2102.06387; here in its continuous version,
    without their discrete noise and modular sums).

    h = cohort - dropouts - colluders: of the `cohort` messages that a round must have, up to `dropouts` may be missing,
    and up to `colluders` of those that come may carry no noise that the server does not know. Fewer messages than
    cohort - dropouts, and the round is given up: nothing is opened, but it is charged. Default cohort: as many as even
    the last round has but for one time in a thousand. The server knows who sends, so sampling amplifies nothing: all
    messages of a user count, at most `max_messages` (default ceil(qT)), enforced. A user is replaced by one who sends
    zeros and its noise: sensitivity C. Nobody can check that a single message is clipped or carries noise.
    """

    name: Literal["distributed"] = "distributed"
    unit: ClassVar[str] = "user"
    observer: ClassVar[str] = "sum"
    adjacency: ClassVar[str] = "replace_special"
    own_noise: ClassVar[bool] = True
    cohort: PositiveInt | None = None
    dropouts: NonNegativeInt = 0
    colluders: NonNegativeInt = 0
    max_messages: PositiveInt | None = None

    def calibrated(self, plan: Plan) -> Self:
        cohort = self._usual_cohort(plan) if self.cohort is None else self.cohort
        for name, value in (("cohort", cohort), ("dropouts", self.dropouts), ("colluders", self.colluders)):
            if value > max(1, plan.users):  # a platform without users gives up every round
                raise ValueError(f"privacy.{name} = {value}: must not exceed the number of users, {plan.users}")
        if self.dropouts + self.colluders >= cohort:
            raise ValueError(
                f"privacy.dropouts = {self.dropouts}, colluders = {self.colluders}: together they must be fewer than "
                f"cohort = {cohort}, or no noise is left to count on"
            )
        return super().calibrated(plan).model_copy(update={"cohort": cohort})

    def message_limit(self, plan: Plan) -> int:
        return min(plan.rounds, self.max_messages or plan.usual_messages)

    @property
    def on_messages(self) -> bool:
        return False

    @property
    def _planned(self) -> int:
        if self.cohort is None:
            raise ValueError(f"privacy.cohort: {self.name} must be calibrated first")
        return self.cohort

    @property
    def share(self) -> float:
        """Standard deviation of the noise that one user adds."""
        return self.sigma / math.sqrt(self._planned - self.dropouts - self.colluders)

    def aborts(self, messages: int) -> bool:
        return messages < self._planned - self.dropouts

    def report_norm(self, size: int) -> float:
        return math.hypot(self.clip_norm, math.sqrt(size) * self.share)

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise:
        # One draw of what is the exact distribution of the sum of `count` shares: nobody sees more than the sum.
        return Noise(key.fold(round).rng().normal(0.0, math.sqrt(count) * self.share, size), count)

    def draws(self, plan: Plan, messages: int) -> int:
        return messages

    def releases(self, plan: Plan) -> Gaussians:
        return Gaussians(self.multiplier, 1.0, self.message_limit(plan))

    def weakened(self, plan: Plan, deviating: int) -> tuple[str, ...]:
        from scipy.stats import binom

        noisy = self.calibrated(plan)
        silent = min(deviating, int(binom.isf(_NEVER, deviating, plan.sampling_prob)))
        if silent <= self.colluders:
            return ()
        left = max(0, noisy._planned - self.dropouts - silent)
        ratio = noisy.multiplier * math.sqrt(left / (noisy._planned - self.dropouts - self.colluders))
        releases = Gaussians(ratio, 1.0, self.message_limit(plan))
        epsilon = accounting.epsilon(releases, self.delta)
        instead = f"epsilon may be {epsilon:.3g} instead" if left else "nothing is guaranteed"
        return (
            f"up to {silent} messages of a round come from members who leave out their noise, more than the "
            f"{self.colluders} colluders that are assumed: {instead}",
        )

    def guarantee(self, plan: Plan) -> Guarantee:
        from scipy.stats import binom

        noisy, whole = self.calibrated(plan), super().guarantee(plan)
        fail = float(binom.cdf(noisy._planned - self.dropouts - 1, plan.users, self._last_chance(plan)))
        if fail <= 10 * _RARE:
            return whole
        warning = (
            f"late rounds have too few messages and are given up with probability {fail:.2g}; take a smaller cohort"
        )
        return dataclasses.replace(whole, warnings=(*whole.warnings, warning))

    def sampler(self, plan: Plan) -> str:
        noisy = self.calibrated(plan)
        return (
            f"no amplification by sampling, the server knows who sends; cohorts of at least {noisy._planned}, of whom "
            f"{self.dropouts} may be missing and {self.colluders} collude or leave out their noise"
        )

    def composition(self, plan: Plan) -> str:
        return (
            f"at most {self.message_limit(plan)} messages of a user in {plan.rounds} rounds, enforced, only sums are "
            "opened; that a single message is clipped and carries noise cannot be checked; noise is continuous, not "
            "the discrete one of real protocols"
        )

    def _last_chance(self, plan: Plan) -> float:
        """The chance of a user to be sampled in the last round, when others have used up their messages."""
        from scipy.stats import binom

        left = binom.cdf(self.message_limit(plan) - 1, plan.rounds - 1, plan.sampling_prob)
        return float(plan.sampling_prob * left)

    def _usual_cohort(self, plan: Plan) -> int:
        from scipy.stats import binom

        return max(1, int(binom.ppf(_RARE, plan.users, self._last_chance(plan))))
