"""Centred clipping: what messages differ by from the last centre is clipped."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.stacked import distances, weighted


class CentredClipping(Aggregation):
    """From the centre v of the last round, 0 before the first, `iterations` times
    v = v + mean_u (m_u - v) min(1, radius / |m_u - v|) (Karimireddy, He and Jaggi 2021, arXiv 2012.10333, who need one
    iteration, and let users send momentum, which ours do not). The memory is the centre (P,).

    A message weighs U times its coefficient in the new centre; the rest of that is the old centre's.
    """

    name: Literal["centred_clipping"] = "centred_clipping"
    radius: PositiveFloat = 1.0
    iterations: PositiveInt = 1

    def first_memory(self, users: int, size: int) -> np.ndarray:
        return np.zeros(size)

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        centre, weights = memory, np.zeros(len(messages))
        for _ in range(self.iterations):
            apart = distances(messages, centre)
            factors = self.radius / np.maximum(apart, self.radius) / len(messages)
            stays = 1 - factors.sum()
            weights = stays * weights + factors
            centre = stays * centre + weighted(messages, factors)
        return Combined(cohort * centre, len(messages) * weights, centre)
