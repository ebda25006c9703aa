"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.stacked import trimmed, whole_part


class TrimmedMean(Aggregation):
    """The mean of each coordinate without the largest and the smallest floor(trim * U) numbers (Yin et al. 2018, arXiv
    1803.01498). A message weighs as many coordinates as it is kept in; equal numbers share. Of few messages nothing is
    cut: the mean."""

    name: Literal["trimmed_mean"] = "trimmed_mean"
    trim: float = Field(default=0.2, ge=0, lt=0.5)

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        centre, shares = trimmed(messages, whole_part(self.trim, len(messages)))
        return Combined(cohort * centre, shares, memory)
