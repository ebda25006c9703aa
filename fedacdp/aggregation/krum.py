"""Krum: the one message that lies closest to others."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.stacked import squared_distances, whole_part


class Krum(Aggregation):
    """The message with the smallest sum of squared distances to the U - f - 2 others that are closest to it, where
    f = floor(byzantine * U) messages are taken to be bad (Blanchard et al. 2017, NeurIPS). Needs U >= 2f + 3; makes no
    step in a round of fewer. That message weighs 1, the others 0; of equal scores the first is taken."""

    name: Literal["krum"] = "krum"
    byzantine: float = Field(default=0.2, ge=0, lt=0.5)

    def enough(self, count: int) -> bool:
        return count >= 2 * whole_part(self.byzantine, count) + 3

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        best = closest(messages, whole_part(self.byzantine, len(messages)))[0]
        weights = np.zeros(len(messages))
        weights[best] = 1.0
        return Combined(cohort * messages[best].astype(np.float64), weights, memory)


def closest(messages: np.ndarray, assumed: int) -> np.ndarray:
    """The places of all messages, (U,), from the smallest score of Krum to the largest, where `assumed` are bad."""
    apart = squared_distances(messages)
    np.fill_diagonal(apart, np.inf)
    scores = np.sort(apart, axis=1)[:, : len(messages) - assumed - 2].sum(axis=1)
    return np.argsort(scores, kind="stable")
