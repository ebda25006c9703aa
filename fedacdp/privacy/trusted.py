"""What mechanisms have in common whose server is trusted with the updates and adds its noise to their sum."""

from __future__ import annotations

from typing import ClassVar

from fedacdp.privacy.base import Noisy, Plan


class Trusted(Noisy):
    """User-level noise of a trusted server: it protects against whoever sees released models, not against the server.

    Poisson sampling of users amplifies, because the server keeps cohorts secret: sensitivity C under add-or-remove.
    """

    unit: ClassVar[str] = "user"
    observer: ClassVar[str] = "model_holder"
    adjacency: ClassVar[str] = "add_or_remove"

    @property
    def on_messages(self) -> bool:
        return False

    def sampler(self, plan: Plan) -> str:
        return f"cohorts by Poisson sampling of users, q = {plan.sampling_prob:g} of N = {plan.users}"

    def composition(self, plan: Plan) -> str:
        return f"{plan.rounds} rounds, every model released"
