"""A boycott: members strike and leave."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from fedacdp.keys import Key
from fedacdp.strategy import Predict, Strategy
from fedacdp.users import Examples, Users


class Boycott(Strategy):
    """Members neither contribute to the model nor use it, from round `start` on, until `stop` if given (Vincent, Hecht,
    Sen 2019, WWW: a boycott always comes with a strike).

    Success = the share of what everybody would ask that the platform does not answer rightly: 1 - (1 - gone) * accuracy
    on held-out records, where all users ask equally often and for the same kind of records, those who are gone count in
    the denominator and get no answer, and gone = alpha * compliance * (1 - coordination_noise), the expected share, in
    the rounds of action and 0 in others. `success@strike`: the error rate, that is what the strike alone achieves. A
    member who is off script is there as if nothing happened.

    Of ratings, where it is known who uses what: success = 1 - surfaced hits of everybody, to which those who are gone
    contribute no hits but all their liked items, and `success@strike` as if they had stayed (see `fedacdp.ranking`).
    """

    name: Literal["boycott"] = "boycott"
    leaves: ClassVar[bool] = True
    about_ratings: ClassVar[bool] = True

    def participates(self, users: Users, round: int, key: Key) -> np.ndarray:
        return np.zeros(len(users), dtype=bool)

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        return self._success(predict, test, True)

    def measures(self, predict: Predict, test: Examples, model: np.ndarray, round: int) -> dict[str, float]:
        return self._success(predict, test, round >= self.start and (self.stop is None or round <= self.stop))

    def ranked(self, hits: dict[str, float]) -> dict[str, float]:
        return {"success": 1 - hits["all"], "success@strike": 1 - hits["staying"]}

    def _success(self, predict: Predict, test: Examples, acting: bool) -> dict[str, float]:
        accuracy = float((predict(test.x) == test.y).mean())
        gone = self.alpha * self.compliance * (1 - self.coordination_noise) if acting else 0.0
        return {"success": 1 - (1 - gone) * accuracy, "success@strike": 1 - accuracy}
