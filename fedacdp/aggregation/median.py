"""The coordinate-wise median."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.stacked import trimmed


class Median(Aggregation):
    """The median of each coordinate, of an even number the mean of the two in the middle (Yin et al. 2018, arXiv
    1803.01498). A message weighs as many coordinates as it holds the median of; equal numbers share."""

    name: Literal["median"] = "median"

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        centre, shares = trimmed(messages, (len(messages) - 1) // 2)
        return Combined(cohort * centre, shares, memory)
