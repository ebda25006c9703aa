"""Multi-Krum: the mean of the messages that lie closest to others."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.krum import closest
from fedacdp.aggregation.stacked import weighted, whole_part


class MultiKrum(Aggregation):
    """The mean of the U - f messages with the smallest scores of Krum, f = floor(byzantine * U) (Blanchard et al. 2017,
    NeurIPS). Needs U >= 2f + 3; makes no step in a round of fewer. A message weighs 1 if it is kept, else 0."""

    name: Literal["multi_krum"] = "multi_krum"
    byzantine: float = Field(default=0.2, ge=0, lt=0.5)

    def enough(self, count: int) -> bool:
        return count >= 2 * whole_part(self.byzantine, count) + 3

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        assumed = whole_part(self.byzantine, len(messages))
        weights = np.zeros(len(messages))
        weights[closest(messages, assumed)[: len(messages) - assumed]] = 1.0
        return Combined(cohort * weighted(messages, weights / weights.sum()), weights, memory)
