"""The aggregation rule: what the server makes of a round's messages."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np

from fedacdp.parts import Part


class Combined(NamedTuple):
    """What stands for the sum of a round's messages, (P,) float64; the weight of each message in it, (U,) float64, at
    least 0, whose shares are the effective sizes of groups; and what the rule remembers, (M,) float64."""

    total: np.ndarray
    weights: np.ndarray
    memory: np.ndarray


class Aggregation(Part):
    """A rule by which the server combines what users send. The server still moves by lr * total / (expected cohort).

    A rule that finds a centre of the messages gives `cohort` times that centre, so that the server moves by lr * centre
    however many came, as in the papers; one that weighs messages gives their weighted sum, as the sum does. A message
    that was not finite arrives as zeros, or as its noise alone, and counts like any other.
    """

    needs_messages: ClassVar[bool] = True  # whether it must see every message; else the sum is all that is computed

    def first_memory(self, users: int, size: int) -> np.ndarray:
        """What lives between rounds, of N users and P = `size` parameters, before the first, (M,) float64."""
        return np.zeros(0)

    def enough(self, count: int) -> bool:
        """Whether the rule is defined for `count` messages. Where it is not, the server makes no step in that round."""
        return count >= 1

    def check(self, users: int, size: int, cohort: float) -> None:
        """ValueError, naming the field, if the rule cannot serve N users, P = `size` parameters and cohorts of about
        `cohort`."""
        if self.needs_messages and not self.enough(int(cohort)):
            raise ValueError(
                f"aggregation.name = {self.name!r}: needs more messages in a round than the {cohort:g} that are "
                "expected; take a larger sampling_prob"
            )

    def held_bytes(self, count: int, users: int, size: int) -> int:
        """Bytes that `combine` takes for `count` messages, besides these."""
        return 8 * (4 * size + 8 * count**2)

    def step(
        self, messages: np.ndarray, ids: np.ndarray, factors: np.ndarray, cohort: float, memory: np.ndarray
    ) -> Combined:
        """As `combine`, of messages that hold updates times these `factors` (U,), which their weights then include;
        a total of zeros, without weights, of too few messages."""
        if not self.enough(len(ids)):
            return Combined(np.zeros(messages.shape[1]), np.zeros(len(ids)), memory)
        total, weights, memory = self.combine(messages, ids, cohort, memory)
        return Combined(total, weights * factors, memory)

    @abstractmethod
    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        """Combine the messages (U, P) float32 of the users `ids` (U,), U >= 1, where `cohort` were expected."""
