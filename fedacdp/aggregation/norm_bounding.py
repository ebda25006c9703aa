"""Norm bounding: the server's check on what it is sent."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveFloat

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.stacked import norms, weighted


class NormBounding(Aggregation):
    """The sum of messages that are each scaled down to the L2 norm `bound` if they are longer (Sun et al. 2019, arXiv
    1911.07963). A message weighs by how much it is scaled. Of messages with noise of their own, whose norm is about
    sqrt(C^2 + P sigma^2), a smaller bound shrinks the honest ones as well; it costs no privacy."""

    name: Literal["norm_bounding"] = "norm_bounding"
    bound: PositiveFloat

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        weights = self.bound / np.maximum(norms(messages), self.bound)
        return Combined(weighted(messages, weights), weights, memory)
