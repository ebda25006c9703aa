"""Central, user-level differential privacy by noise that is correlated over rounds, whatever the sampling."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import PositiveInt, model_validator

from fedacdp.keys import Key
from fedacdp.privacy import correlated
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noise, Plan
from fedacdp.privacy.trusted import Trusted


class CentralMatrix(Trusted):
    """As `central`, but the noise of a round takes back a part of that of earlier rounds, so that the model, a sum over
    rounds, carries little. Nothing is claimed of sampling; what counts is how often one user takes part.

    factor = "tree": the noise on the sum of rounds 1 to t is that of the nodes of a binary tree that make them up,
    N(0, (z C)^2 I) each (Kairouz et al. 2021, arXiv 2103.00039). factor = "banded": C^-1 times independent noise, C a
    Toeplitz matrix of `bands` bands with columns of norm 1 (Choquette-Choo et al. 2023, arXiv 2306.08153; the square
    root's bands). A user takes part at most `max_messages` times (default ceil(qT)) and again only `separation` rounds
    later, both enforced by the sampler; `bands` (default `separation`) must not exceed it. participation = "minimum":
    any round from then on; "fixed": users in `separation` groups, by number, each in its own rounds, at rate q times
    their number. A user is replaced by one who sends zeros in the same rounds; all rounds are one Gaussian release.
    """

    name: Literal["central_matrix"] = "central_matrix"
    adjacency: ClassVar[str] = "replace_special"
    factor: Literal["tree", "banded"] = "tree"
    separation: PositiveInt = 1
    participation: Literal["minimum", "fixed"] = "minimum"
    bands: PositiveInt | None = None
    max_messages: PositiveInt | None = None

    @model_validator(mode="after")
    def _bands_apart(self) -> Self:
        if self.bands is not None and self.factor == "tree":
            raise ValueError(f'bands = {self.bands}: a tree has none; leave it out, or take factor = "banded"')
        if self.bands is not None and self.bands > self.separation:
            raise ValueError(
                f"bands = {self.bands}: must not exceed separation = {self.separation}, or the noise of two rounds of "
                "a user would overlap"
            )
        return self

    def calibrated(self, plan: Plan) -> Self:
        if self.participation == "fixed" and self.separation * plan.sampling_prob > 1:
            raise ValueError(
                f"privacy.separation = {self.separation}: a round is of one of so many groups, at sampling_prob "
                f"{plan.sampling_prob:g} times their number; must be at most {int(1 / plan.sampling_prob)}, or "
                'participation = "minimum"'
            )
        return super().calibrated(plan)

    def message_limit(self, plan: Plan) -> int:
        return min(-(-plan.rounds // self.separation), self.max_messages or plan.usual_messages)

    def chances(self, plan: Plan) -> float:
        return plan.sampling_prob * (self.separation if self.participation == "fixed" else 1)

    def eligible(self, last: np.ndarray, round: int) -> np.ndarray:
        if self.participation == "fixed":
            return np.arange(len(last)) % self.separation == (round - 1) % self.separation
        return (last == 0) | (round - last >= self.separation)

    @property
    def column(self) -> np.ndarray:
        """The first column of C, (bands,)."""
        return correlated.band(self.bands or self.separation)

    def first_memory(self, plan: Plan, size: int) -> np.ndarray:
        return np.zeros((len(self.column) - 1) * size if self.factor == "banded" else 0)

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise:
        if self.factor == "tree":
            new, *_ = reversed(correlated.nodes(round))
            vector = self._node(*new, size, key)
            for old in correlated.nodes(round - 1):
                if old not in correlated.nodes(round):
                    vector -= self._node(*old, size, key)
            return Noise(vector, 1)
        vector, column = key.fold(round).rng().normal(0.0, self.sigma, size), self.column
        for past, before in zip(column[1:], memory.reshape(-1, size), strict=True):
            vector -= past * before
        return Noise(vector / column[0], 1)

    def _node(self, height: int, last: int, size: int, key: Key) -> np.ndarray:
        return key.fold("node", height, last).rng().normal(0.0, self.sigma, size)

    def next_memory(
        self, memory: np.ndarray, norms: np.ndarray, noise: Noise | None, plan: Plan, round: int, key: Key
    ) -> np.ndarray:
        assert noise is not None
        return np.concatenate([noise.vector, memory])[: len(memory)]

    def draws(self, plan: Plan, messages: int) -> int:
        return plan.rounds

    def sensitivity(self, plan: Plan) -> float:
        """By how much one user moves everything to which independent noise is added, in clip norms. Columns of C that
        are `separation` apart have no row in common, so `times` of them together have norm sqrt(times)."""
        times = self.message_limit(plan)
        if self.factor == "banded":
            return math.sqrt(times)
        return correlated.tree_sensitivity(plan.rounds, times, self.separation)

    def releases(self, plan: Plan) -> Gaussians:
        return Gaussians(self.multiplier / self.sensitivity(plan), 1.0, 1)

    def ratio_to_multiplier(self, ratio: float, plan: Plan) -> float:
        return ratio * self.sensitivity(plan)

    def sampler(self, plan: Plan) -> str:
        apart = "in rounds of a fixed group, every" if self.participation == "fixed" else "again after at least"
        return (
            f"sampling amplifies nothing; a user takes part at most {self.message_limit(plan)} times, {apart} "
            f"{self.separation} rounds, enforced"
        )

    def composition(self, plan: Plan) -> str:
        how = "a binary tree" if self.factor == "tree" else f"a matrix of {len(self.column)} bands"
        return (
            f"{super().composition(plan)}, together one release with noise correlated by {how}, sensitivity "
            f"{self.sensitivity(plan):.4g} times the clip norm"
        )
