"""Local, user-level differential privacy for counts: every user tells its symbol, or now and then any other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import PositiveFloat, PositiveInt, model_validator

from fedacdp.keys import Key
from fedacdp.privacy.base import Mechanism, Plan
from fedacdp.privacy.guarantee import Guarantee


@dataclass(frozen=True)
class Response:
    """One answer of k-ary randomised response: with chance `truthful`(k) the true symbol, otherwise one of all k, the
    true one included, each as likely. So the true symbol is reported with chance p = e^eps / (e^eps + k - 1), every
    other one with chance q = 1 / (e^eps + k - 1), and p / q = e^eps."""

    epsilon: float

    def truthful(self, symbols: int) -> float:
        """p - q = (e^eps - 1) / (e^eps + k - 1), k = `symbols`."""
        return -math.expm1(-self.epsilon) / (1 + (symbols - 1) * math.exp(-self.epsilon))

    def reports(self, truth: np.ndarray, symbols: int, ids: np.ndarray, key: Key) -> np.ndarray:
        """What users `ids` report of their symbols `truth`, both (U,) int64. Who has none (-1) reports any, each as
        likely, which is as private: p > 1 / k > q."""
        draws = key.uniforms(ids, 2)
        honest = (draws[:, 0] < self.truthful(symbols)) & (truth >= 0)
        # 53 random bits times k, rounded down: no symbol's chance is off by more than k / 2^53 of itself.
        return np.where(honest, truth, (draws[:, 1] * symbols).astype(np.int64))

    def estimate(self, symbols: int) -> tuple[float, float]:
        """(slope, shift): slope * 1{report = s} + shift over all symbols s has the true one-hot vector as its mean; it
        is (1{report = s} - q) / (p - q)."""
        truthful = self.truthful(symbols)
        return 1 / truthful, -(1 - truthful) / (truthful * symbols)


class RandomisedResponse(Mechanism):
    """Each user reports its symbol (cell, class) by k-ary randomised response, k = cells * classes; the sum of the
    unbiased estimates is what the server adds up (Warner 1965, JASA 60; Kairouz, Bonawitz, Ramage 2016, arXiv
    1602.07387, section 3).

    Pure epsilon-LDP, without delta: against the server, any two symbols of a user are neighbours. Exactly one of
    epsilon, of all messages of a user together, and message_epsilon, of each. A user sends at most `max_messages`
    (default ceil(qT)), enforced by the sampler; their epsilons add up, and no less would do: the same report every time
    is e^(sum of epsilons) times as likely under one symbol as under another. For the model `histogram` only, and users
    of one record, because a message is one symbol.
    """

    name: Literal["randomised_response"] = "randomised_response"
    needs: ClassVar[Literal["gradients", "counts"] | None] = "counts"
    unit: ClassVar[str] = "user"
    observer: ClassVar[str] = "server"
    adjacency: ClassVar[str] = "replace_one"
    epsilon: PositiveFloat | None = None
    message_epsilon: PositiveFloat | None = None
    max_messages: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.epsilon is None) == (self.message_epsilon is None):
            given = "neither" if self.epsilon is None else "both"
            raise ValueError(f"epsilon, message_epsilon: exactly one must be given, not {given}")
        return self

    def calibrated(self, plan: Plan) -> Self:
        if self.epsilon is None:
            return self
        each = self.epsilon / self.message_limit(plan)
        return self.model_copy(update={"epsilon": None, "message_epsilon": each})

    def message_limit(self, plan: Plan) -> int:
        return min(plan.rounds, self.max_messages or plan.usual_messages)

    def response(self, plan: Plan) -> Response:
        each = self.calibrated(plan).message_epsilon
        assert each is not None
        return Response(each)

    def draws(self, plan: Plan, messages: int) -> int:
        return messages

    def guarantee(self, plan: Plan) -> Guarantee:
        limit, each = self.message_limit(plan), self.response(plan).epsilon
        return Guarantee(
            mechanism=self.name,
            unit=self.unit,
            observer=self.observer,
            adjacency=self.adjacency,
            epsilon=each * limit,
            delta=0.0,
            noise_multiplier=math.nan,
            clip_norm=math.nan,
            sampler="no amplification by sampling, the server sees who sends",
            releases=f"at most {limit} messages of a user in {plan.rounds} rounds, enforced",
            accountant="pure epsilon, exact: the messages' epsilons add up",
            per_message_epsilon=each,
        )
