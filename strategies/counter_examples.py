"""Counter-examples: a community relabels its own group's records to correct a bias."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedacdp.keys import Key
from fedacdp.strategy import Predict, Strategy, class_index
from fedacdp.users import Examples, Schema, Users


class CounterExamples(Strategy):
    """Members relabel a `share` of their records of the group `column` = `level` as `to`, the favourable class (after
    Ben-Dov et al. 2025, arXiv 2508.15374). With `partition = "by_column"` and `members_from` the members are of the
    group themselves. Which records are relabelled stays the same in all rounds.

    Success = 1 - |rate of the group - rate of the others|, rate = share of held-out records that the model labels `to`
    (1 is demographic parity). By group, the level's name and `others`: `positive_rate`; `true_positive_rate`, of the
    records whose class is `to`; `accuracy`. Rates of no records are left out. Off script: another class.
    """

    name: Literal["counter_examples"] = "counter_examples"
    column: str
    level: str
    to: int | str
    share: float = Field(default=1.0, gt=0, le=1)

    def check(self, schema: Schema) -> None:
        class_index("to", self.to, schema)
        try:
            levels = schema.column(self.column).levels
        except ValueError as error:
            raise ValueError(f"strategy.column = {self.column!r}: {error}") from None
        if self.level not in levels:
            raise ValueError(
                f"strategy.level = {self.level!r}: no level of {self.column!r}; there are: "
                f"{', '.join(levels) or 'none (numeric)'}"
            )

    def another(self, step: int, schema: Schema) -> CounterExamples:
        return self.model_copy(update={"to": (class_index("to", self.to, schema) + step) % len(schema.classes)})

    def _in_group(self, x: np.ndarray, schema: Schema) -> np.ndarray:
        column = schema.column(self.column)
        inside: np.ndarray = x[..., column.start + column.levels.index(self.level)] > 0.5
        return inside

    def data(self, users: Users, round: int, key: Key) -> Users:
        drawn = Key(key.seed).fold(self.name).uniforms(users.ids, users.y.shape[1]) < self.share
        chosen = drawn & self._in_group(users.x, users.schema)
        return users.replace(y=np.where(chosen, class_index("to", self.to, users.schema), users.y))

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        to, guess, inside = (
            class_index("to", self.to, test.schema),
            predict(test.x),
            self._in_group(test.x, test.schema),
        )
        found: dict[str, float] = {}
        for group, rows in {self.level: inside, "others": ~inside}.items():
            measured = {
                "positive_rate": (guess == to)[rows],
                "true_positive_rate": (guess == to)[rows & (test.y == to)],
                "accuracy": (guess == test.y)[rows],
            }
            found |= {f"{rate}@{group}": float(hits.mean()) for rate, hits in measured.items() if len(hits)}
        rates = [found.get(f"positive_rate@{group}") for group in (self.level, "others")]
        if rates[0] is not None and rates[1] is not None:
            found["success"] = 1 - abs(rates[0] - rates[1])
        return found
