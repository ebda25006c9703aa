"""FoolsGold: users whose messages are alike weigh less."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveFloat

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.stacked import cosines, gram, weighted


class FoolsGold(Aggregation):
    """The sum of messages times weights that fall with a user's likeness to the one most like it (Fung, Yoon and
    Beschastnikh 2020, RAID; arXiv 1808.04866; without its importance of features, and as their code has it).

    c_ij: cosine of the sums of all messages of i and j so far, at least 0 for the largest v_i = max_j c_ij; where
    v_j > v_i > 0, c_ij is pardoned, times v_i / v_j. a_i = 1 - max_j c_ij within 0 and 1, divided by the largest; the
    weight is confidence * (ln(a / (1 - a)) + 1/2) within 0 and 1, of a at most 0.99. If all a are 0, none weighs.

    over = "run": the memory is the sum of each user's messages, N P numbers, refused above 2^24. over = "round": no
    memory, cosines of this round's messages alone.
    """

    name: Literal["foolsgold"] = "foolsgold"
    confidence: PositiveFloat = 1.0
    over: Literal["run", "round"] = "run"

    def first_memory(self, users: int, size: int) -> np.ndarray:
        return np.zeros(users * size if self.over == "run" else 0)

    def check(self, users: int, size: int, cohort: float) -> None:
        super().check(users, size, cohort)
        if self.over == "run" and users * size > LARGEST:
            raise ValueError(
                f"aggregation.over = 'run': the history of {users} users and {size} parameters has {users * size} "
                f'numbers, and at most {LARGEST} are kept; take over = "round"'
            )

    def held_bytes(self, count: int, users: int, size: int) -> int:
        kept = 2 * users * size + count * size if self.over == "run" else 0
        return super().held_bytes(count, users, size) + 8 * kept

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        seen = messages
        if self.over == "run":
            history = memory.reshape(-1, messages.shape[1]).copy()
            history[ids] += messages
            memory, seen = history.reshape(-1), history[ids]
        weights = self._weights(cosines(gram(seen)))
        return Combined(weighted(messages, weights), weights, memory)

    def _weights(self, alike: np.ndarray) -> np.ndarray:
        np.fill_diagonal(alike, 0.0)
        most = alike.max(axis=1)
        larger = np.where(most > 0, most, 1.0)
        pardon = np.where(most[None, :] > most[:, None], most[:, None] / larger[None, :], 1.0)
        unlike = np.clip(1 - (alike * pardon).max(axis=1), 0.0, 1.0)
        unlike[unlike < 1e-12] = 0.0  # or the rounding of messages that are the same would be scaled up
        if not unlike.any():
            return unlike
        unlike = np.minimum(unlike / unlike.max(), 0.99)
        with np.errstate(divide="ignore"):
            return np.clip(self.confidence * (np.log(unlike / (1 - unlike)) + 0.5), 0.0, 1.0)


LARGEST = 2**24
"""Numbers of a history that are kept at most: 128 MiB, in each checkpoint too."""
