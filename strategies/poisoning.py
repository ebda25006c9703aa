"""Poisoning by label flips: members keep their features and lie about their labels."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedacdp.keys import Key
from fedacdp.strategy import Predict, Strategy, class_index
from fedacdp.users import Examples, Schema, Users


class Poisoning(Strategy):
    """Members train on (x, pi(y)). `to`: the fixed label, or "random" for one of the other labels per record and round.
    `source`: only records of this class are flipped (default all).

    Success, fixed label: share of held-out records of the flipped classes that the model labels `to`. Random: the error
    rate on the flipped classes; its rise over the baseline is the accuracy drop A(0) - A(alpha).
    Off script: another fixed label; with "random" there is no script to leave.
    """

    name: Literal["poisoning"] = "poisoning"
    to: int | str = "random"
    source: int | str | None = None

    def check(self, schema: Schema) -> None:
        source = None if self.source is None else class_index("source", self.source, schema)
        if self.to != "random" and class_index("to", self.to, schema) == source:
            raise ValueError(f"strategy.to = {self.to!r}: is the source class itself")

    def another(self, step: int, schema: Schema) -> Poisoning:
        if self.to == "random":
            return self
        return self.model_copy(update={"to": (class_index("to", self.to, schema) + step) % len(schema.classes)})

    def target_class(self, schema: Schema) -> int | None:
        label = self.source if self.source is not None else (None if self.to == "random" else self.to)
        return None if label is None else class_index("source", label, schema)

    def data(self, users: Users, round: int, key: Key) -> Users:
        if self.to == "random":
            classes = len(users.schema.classes)
            step = 1 + np.floor(key.fold("flip").uniforms(users.ids, users.y.shape[1]) * (classes - 1)).astype(np.int64)
            flipped = (users.y + step) % classes
        else:
            flipped = np.full_like(users.y, class_index("to", self.to, users.schema))
        if self.source is not None:
            flipped = np.where(users.y == class_index("source", self.source, users.schema), flipped, users.y)
        return users.replace(y=flipped)

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        guess = predict(test.x)
        fixed = None if self.to == "random" else class_index("to", self.to, test.schema)
        source = None if self.source is None else class_index("source", self.source, test.schema)
        rows = np.ones(len(test), bool) if source is None else test.y == source
        if fixed is None:
            return {"success": float((guess != test.y)[rows].mean())}
        return {"success": float((guess == fixed)[rows & (test.y != fixed)].mean())}
