"""Client-side DP-SGD, example-level: every user adds noise to the clipped gradients of its own examples."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import ExampleRule, Noisy, Plan


class LocalDpSgd(Noisy):
    """At each local step an example enters with chance `batch_prob`, its gradient is clipped to C, N(0, (z C)^2 I) is
    added to the sum, and the sum is divided by the public expected batch (Abadi et al. 2016, arXiv 1607.00133).

    Protects one example, not a user: a user with r examples has only the r-fold group guarantee. All local steps of
    all rounds of a user compose; a user takes part at most `max_messages` times (default ceil(qT)), enforced by the
    sampler. Sampling of users amplifies nothing here; sampling of examples does, also against the server.

    implementation: `vectorised` (all users at once) or `opacus` (its DPOptimizer, user by user, public constants).
    """

    name: Literal["local_dpsgd"] = "local_dpsgd"
    needs: ClassVar[Literal["gradients", "counts"] | None] = "gradients"
    unit: ClassVar[str] = "example"
    observer: ClassVar[str] = "server"
    adjacency: ClassVar[str] = "add_or_remove"
    clips: ClassVar[bool] = False  # gradients of examples, not updates
    max_messages: PositiveInt | None = None
    implementation: Literal["vectorised", "opacus"] = "vectorised"

    def message_limit(self, plan: Plan) -> int:
        return min(plan.rounds, self.max_messages or plan.usual_messages)

    def clip_now(self, memory: np.ndarray) -> float:
        return math.inf

    def report_norm(self, size: int) -> float:
        return math.inf

    def example_rule(self, plan: Plan) -> ExampleRule:
        return ExampleRule(self.clip_norm, self.multiplier, plan.batch_prob, plan.batch, self.implementation)

    def draws(self, plan: Plan, messages: int) -> int:
        return messages * plan.local_steps

    def releases(self, plan: Plan) -> Gaussians:
        return Gaussians(self.multiplier, plan.batch_prob, plan.local_steps * self.message_limit(plan))

    def sampler(self, plan: Plan) -> str:
        return f"batches by Poisson sampling of a user's examples at rate {plan.batch_prob:.4g}, users do not amplify"

    def composition(self, plan: Plan) -> str:
        limit = self.message_limit(plan)
        return f"{plan.local_steps} local steps in each of at most {limit} rounds of a user, enforced"
