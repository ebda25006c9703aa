"""A data strike: members stop sending updates."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from fedacdp.keys import Key
from fedacdp.strategy import Predict, Strategy
from fedacdp.users import Examples, Users


class Strike(Strategy):
    """Members send nothing from round `start` on, until round `stop` if given (Vincent, Hecht, Sen 2019, WWW).

    The server still divides by its public expected cohort. Success = the error rate on held-out records; its rise over
    the baseline is the accuracy that the strike costs the platform. Of ratings, success = 1 - surfaced hits of
    everybody, strikers ranked by the item means of what is left (see `fedacdp.ranking`).
    """

    name: Literal["strike"] = "strike"
    about_ratings: ClassVar[bool] = True

    def participates(self, users: Users, round: int, key: Key) -> np.ndarray:
        return np.zeros(len(users), dtype=bool)

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        return {"success": float((predict(test.x) != test.y).mean())}

    def ranked(self, hits: dict[str, float]) -> dict[str, float]:
        return {"success": 1 - hits["all"]}
