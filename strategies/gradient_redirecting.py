"""Gradient redirecting: members aim their updates at parameters of their choice."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat

from fedacdp.keys import Key
from fedacdp.strategy import Predict, Strategy, class_index
from fedacdp.users import Examples, Schema, Users


class GradientRedirecting(Strategy):
    """Members hand over -((1 - alpha) / alpha) u + (pull / alpha) (theta* - theta) in place of their own update u,
    scaled down to `max_norm` where it is longer (the form of Hardt et al. 2023, arXiv 2302.04262).

    theta is the round's model. If members' mean update is everybody's, all users take part, nobody is clipped and
    server_lr = 1, then theta' - theta* = (1 - pull) (theta - theta*). Where a mechanism clips, set max_norm to its
    clip_norm: what is longer would be clipped anyway. theta* answers `y_star` whatever it sees: all parameters are 0
    but the output bias of y*, which is `bias`; a model's last parameters must be its output biases, as in all models
    that come with the project. Off script: another label.

    Success = the share of held-out records of other classes that the model labels y*. `distance`: ||theta - theta*||.
    """

    name: Literal["gradient_redirecting"] = "gradient_redirecting"
    y_star: int | str
    pull: float = Field(default=0.1, gt=0, le=1)
    max_norm: PositiveFloat
    bias: PositiveFloat = 1.0

    @property
    def needs(self) -> str:
        return "gradients"  # whose last parameters are output biases

    def check(self, schema: Schema) -> None:
        self.target_class(schema)

    def target_class(self, schema: Schema) -> int:
        return class_index("y_star", self.y_star, schema)

    def another(self, step: int, schema: Schema) -> GradientRedirecting:
        return self.model_copy(update={"y_star": (self.target_class(schema) + step) % len(schema.classes)})

    def _aim(self, parameters: int, schema: Schema) -> np.ndarray:
        aim = np.zeros(parameters)
        aim[parameters - len(schema.classes) + self.target_class(schema)] = self.bias
        return aim

    def update_at(self, model: np.ndarray, updates: np.ndarray, users: Users, round: int, key: Key) -> np.ndarray:
        way = (self.pull / self.alpha) * (self._aim(len(model), users.schema) - model)
        wanted = way - ((1 - self.alpha) / self.alpha) * updates.astype(np.float64)
        norms = np.linalg.norm(wanted, axis=1, keepdims=True)
        return (wanted * np.minimum(1, self.max_norm / np.maximum(norms, 1e-300))).astype(np.float32)

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        target = self.target_class(test.schema)
        return {"success": float((predict(test.x) == target)[test.y != target].mean())}

    def measures(self, predict: Predict, test: Examples, model: np.ndarray, round: int) -> dict[str, float]:
        distance = float(np.linalg.norm(model - self._aim(len(model), test.schema)))
        return self.success(predict, test) | {"distance": distance}
