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
    """A rule by which the server combines what users send. The server still moves by lr * total / (expected cohort)."""

    needs_messages: ClassVar[bool] = True  # whether it must see every message; else the sum is all that is computed

    def first_memory(self, users: int, size: int) -> np.ndarray:
        """What lives between rounds, of N users and P = `size` parameters, before the first, (M,) float64."""
        return np.zeros(0)

    @abstractmethod
    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        """Combine the messages (U, P) float32 of the users `ids` (U,), U >= 1, where `cohort` were expected."""
