"""Local, user-level differential privacy: every user clips its update and adds noise before it leaves the device."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from fedacdp.keys import Key
from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noise, Noisy, Plan
from fedacdp.privacy.guarantee import Guarantee


class LocalUpdate(Noisy):
    """A user sends clip(update, C) + N(0, (z C)^2 I). Against the server any two inputs are neighbours: sensitivity 2C,
    and sqrt(2) C for counts, which have no negative entries however many records they count (`Plan.diameter`).

    A user sends at most `max_messages` (default ceil(qT)); the sampler enforces it and the epsilon is that of all of
    them. Being sampled amplifies nothing, because the server sees who sends.

    noise_per = "message": one noise vector per user, as deployed. noise_per = "sum" (default): one vector
    N(0, count (z C)^2 I) per round, the exact distribution of the sum of `count` independent ones, for servers that use
    the sum alone.
    """

    name: Literal["local_update"] = "local_update"
    unit: ClassVar[str] = "user"
    observer: ClassVar[str] = "server"
    adjacency: ClassVar[str] = "replace_one"
    own_noise: ClassVar[bool] = True
    max_messages: PositiveInt | None = None
    noise_per: Literal["sum", "message"] = "sum"

    def message_limit(self, plan: Plan) -> int:
        return min(plan.rounds, self.max_messages or plan.usual_messages)

    @property
    def on_messages(self) -> bool:
        return self.noise_per == "message"

    def report_norm(self, size: int) -> float:
        return math.hypot(self.clip_norm, math.sqrt(size) * self.sigma)

    def noise_of(self, user: int, size: int, key: Key) -> np.ndarray | None:
        return None if self.noise_per == "sum" else key.fold(user).rng().normal(0.0, self.sigma, size)

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise | None:
        if self.noise_per == "message":
            return None
        return Noise(key.fold(round).rng().normal(0.0, math.sqrt(count) * self.sigma, size), count)

    def draws(self, plan: Plan, messages: int) -> int:
        return messages

    def releases(self, plan: Plan) -> Gaussians:
        return Gaussians(self.multiplier / plan.diameter, 1.0, self.message_limit(plan))

    def ratio_to_multiplier(self, ratio: float, plan: Plan) -> float:
        return plan.diameter * ratio

    def guarantee(self, plan: Plan) -> Guarantee:
        once = Gaussians(self.calibrated(plan).multiplier / plan.diameter, 1.0, 1)
        whole = super().guarantee(plan)
        return Guarantee(**{**vars(whole), "per_message_epsilon": accounting.epsilon(once, self.delta)})

    def sampler(self, plan: Plan) -> str:
        return "no amplification by sampling, the server sees who sends"

    def composition(self, plan: Plan) -> str:
        apart = f", sensitivity {plan.diameter:.4g} times the clip norm"
        return f"at most {self.message_limit(plan)} messages of a user in {plan.rounds} rounds, enforced{apart}"
