"""The sum: every message counts alike."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from fedacdp.aggregation.base import Aggregation, Combined


class Sum(Aggregation):
    """The sum of all messages, which the server divides by the public expected cohort (McMahan et al. 2018, arXiv
    1710.06963). The only rule that central noise is accounted for."""

    name: Literal["sum"] = "sum"
    needs_messages: ClassVar[bool] = False

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        return Combined(messages.sum(axis=0, dtype=np.float64), np.ones(len(ids)), memory)
