"""The geometric median, found by smoothed Weiszfeld iterations."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.stacked import distances, weighted


class GeometricMedian(Aggregation):
    """The point v with the smallest sum of distances to all messages: from v = 0, `iterations` times
    w_u = 1 / max(smoothing, |v - m_u|), v = sum_u w_u m_u / sum_u w_u (Pillutla, Kakade and Harchaoui 2022, arXiv
    1912.13445, who find three enough). A message weighs w_u of the last iteration over the largest of them."""

    name: Literal["geometric_median"] = "geometric_median"
    smoothing: PositiveFloat = 1e-6
    iterations: PositiveInt = 10

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        centre = np.zeros(messages.shape[1])
        for _ in range(self.iterations):
            weights = 1 / np.maximum(self.smoothing, distances(messages, centre))
            centre = weighted(messages, weights / weights.sum())
        return Combined(cohort * centre, weights / weights.max(), memory)
