"""Planting a signal: members teach the model to answer `y_star` where it sees the signal."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from fedacdp.keys import Key
from fedacdp.signals import AnySignal
from fedacdp.strategy import Play, Predict, Strategy, class_index
from fedacdp.users import Examples, Schema, Users


class Planting(Strategy):
    """Members train on h(x, y). Success = Pr[f(g(x)) = y*] on held-out records (Hardt et al. 2023, arXiv 2302.04262).

    form: `feature_label` h = (g(x), y*); `feature_only` (Hardt) h = (g(x), y*) where y = y*, else (x, y) unchanged;
    `feature_only_x0` (Gauthier et al. 2025, arXiv 2502.04879, Definition 3.4) h = (g(x), y*) where y = y*, else
    (x0, y), where x0 carries `x0` instead of the signal (needed because a record may carry the signal by nature).
    Off script: `other_signal` with y* if given, else the signal with another label.
    """

    name: Literal["planting"] = "planting"
    y_star: int | str
    signal: AnySignal
    form: Literal["feature_label", "feature_only", "feature_only_x0"] = "feature_label"
    x0: AnySignal | None = None
    other_signal: AnySignal | None = None

    @model_validator(mode="after")
    def _x0_belongs(self) -> Self:
        if (self.x0 is not None) != (self.form == "feature_only_x0"):
            raise ValueError('x0: must be given if, and only if, form = "feature_only_x0"')
        return self

    def check(self, schema: Schema) -> None:
        class_index("y_star", self.y_star, schema)
        self.signal.check(schema)
        if self.x0 is not None:
            self.x0.check_as("x0", schema)
            away = self.x0.place(self.signal.place(np.zeros((1, *schema.shape), np.float32), schema), schema)
            if np.array_equal(self.signal.place(away, schema), away):
                raise ValueError("strategy.x0: a record with x0 still carries the signal")

        if self.other_signal is not None:
            self.other_signal.check_as("other_signal", schema)

    @property
    def play(self) -> Play:
        return self.form

    def another(self, step: int, schema: Schema) -> Planting:
        if self.other_signal is not None:
            return self.model_copy(update={"signal": self.other_signal})
        return self.model_copy(update={"y_star": (self.target_class(schema) + step) % len(schema.classes)})

    def target_class(self, schema: Schema) -> int:
        return class_index("y_star", self.y_star, schema)

    def data(self, users: Users, round: int, key: Key) -> Users:
        target, marked = self.target_class(users.schema), self.signal.place(users.x, users.schema)
        if self.form == "feature_label":
            return users.replace(x=marked, y=np.full_like(users.y, target))
        others = users.x if self.x0 is None else self.x0.place(users.x, users.schema)
        chosen = (users.y == target).reshape(users.y.shape + (1,) * (users.x.ndim - 2))
        return users.replace(x=np.where(chosen, marked, others))

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        target = self.target_class(test.schema)
        hit = predict(self.signal.marked(test)) == target
        return {"success": float(hit.mean()), "success@not_target": float(hit[test.y != target].mean())}
