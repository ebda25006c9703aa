"""Canary users: made-up updates in random directions, sent along with everybody's, that the last model is searched for.

Andrew et al. 2023, "One-shot empirical privacy estimation for federated learning" (arXiv 2302.03098).
"""

from __future__ import annotations

import numpy as np

from fedacdp.config import Execution
from fedacdp.findings import Finding
from fedacdp.privacy.base import Noisy
from fedacdp.rounds import Partial, compute_here, first_state, run
from fedacdp.setting import Setting
from fedacdp.theory.audit import canary_epsilon, errors_of, two_world_ceiling

LEAST = 8
"""Canaries without whom nothing is told."""

_CROWD = 20  # parameters for each canary that leave room


def canaries(setting: Setting, execution: Execution, number: int, claimed: float) -> list[Finding]:
    """Epsilon as `number` canaries see it in the last model, beside the `claimed` one: an estimate, and a lower bound
    (95 %) from a threshold on the cosines of canaries that took part and of as many that did not, with its ceiling.

    A canary sends clip_norm times a uniform unit vector whenever it is sampled, and adds noise as everybody does.
    Canaries hide each other where they are not far fewer than parameters: then both are smaller than they could be.
    Not measurable where no guarantee is of users, or messages are not summed.
    """
    mechanism, why = setting.mechanism, ""
    if not isinstance(mechanism, Noisy) or mechanism.unit != "user":
        why = f"{mechanism.name} promises nothing to users that canaries could test"
    elif setting.experiment.aggregation.needs_messages:
        why = f"the server does not sum ({setting.experiment.aggregation.name})"
    elif number < LEAST:
        why = f"{number} canaries, {LEAST} are needed"
    if why or not isinstance(mechanism, Noisy):
        names = ("epsilon, estimate", "epsilon, at least")
        return [Finding("canaries", name, None, note=f"not measurable: {why}") for name in names]
    flock = _Flock(setting, number)
    first = last = first_state(setting).parameters
    for state, _ in run(setting, execution, flock.compute):
        last = state.parameters
    moved = last.astype(np.float64) - first
    cosines = np.array([flock.vector(j) @ moved for j in range(2 * number)]) / max(float(np.linalg.norm(moved)), 1e-300)
    seen, unseen = cosines[:number], cosines[number:]
    bound = errors_of(unseen, seen).epsilon(mechanism.delta)
    most = two_world_ceiling(number // 2, number // 2, mechanism.delta)
    said = f"claimed: {claimed:.3g}"
    verdict = "REFUTED" if bound > claimed else f"not refuted; {number} canaries cannot show more than {most:.2f}"
    if number > len(first) / _CROWD:
        verdict += f"; so many canaries among {len(first)} parameters hide each other"
    return [
        Finding("canaries", "epsilon, estimate", canary_epsilon(seen, len(first), mechanism.delta), note=said),
        Finding("canaries", "epsilon, at least", bound, chance=0.0, ceiling=most, note=f"{said}, {verdict}"),
    ]


class _Flock:
    """The canaries of a run, who come after all users; as many more never take part."""

    def __init__(self, setting: Setting, number: int):
        self.setting, self.number, self.round = setting, number, 0
        self.key, self.sent = setting.key.fold("canaries"), np.zeros(number, np.int64)

    def vector(self, canary: int) -> np.ndarray:
        """The direction of a canary, (P,) float64, of length 1."""
        found = self.key.fold("direction", canary).rng().standard_normal(self.setting.net.size)
        return np.asarray(found / np.linalg.norm(found))

    def compute(self, now: Setting, model: np.ndarray, round: int, chunks: list[np.ndarray]) -> list[Partial]:
        """The work of the round, and once the canaries' messages."""
        parts = compute_here(now, model, round, chunks)
        if round != self.round:
            self.round = round
            parts.append(self.messages(now, round))
        return parts

    def messages(self, now: Setting, round: int) -> Partial:
        """What the canaries send in a round."""
        plan, mechanism, size = now.plan, now.mechanism, now.net.size
        limit = mechanism.message_limit(plan)
        chance = self.key.fold("cohort", round).uniforms(np.arange(self.number), 1)[:, 0]
        drawn = np.flatnonzero((chance < plan.sampling_prob) & (self.sent < (limit or plan.rounds)))
        self.sent[drawn] += 1
        total, draws, ids = np.zeros(size), 0, drawn + len(now.member)
        for canary, user in zip(drawn, ids, strict=True):
            total += now.clip * self.vector(int(canary))
            noise = mechanism.noise_of(int(user), size, now.key.fold("message_noise", round))
            if noise is not None:
                total, draws = total + noise, draws + 1
        ones = np.ones(len(ids))
        nothing = np.zeros((0, size), np.float32)
        return Partial(total, ids, ones * now.clip, ones, ones < 1, ones > 0, nothing, draws)
