"""Gradient redirecting: members aim their updates at parameters of their choice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PrivateAttr, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load

from fedacdp.keys import Key
from fedacdp.strategy import Predict, Strategy, class_index
from fedacdp.users import Examples, Schema, Users


class GradientRedirecting(Strategy):
    """Members hand over -((1 - alpha) / alpha) u + (pull / alpha) (theta* - theta) in place of their own update u,
    scaled down to `max_norm` where it is longer (the form of Hardt et al. 2023, arXiv 2302.04262).

    theta is the round's model. If members' mean update is everybody's, all users take part, nobody is clipped and
    server_lr = 1, then theta' - theta* = (1 - pull) (theta - theta*). Where a mechanism clips, set max_norm to its
    clip_norm: what is longer would be clipped anyway.

    theta* is the model in the file `target`, such as the model.safetensors of a run: the same parameters by name and
    shape. What identifies the experiment is the path as written and `target_sha256`, the digest of the file, which is
    filled in if it is not given and checked where a run is prepared. On a cluster the file must be on every machine,
    under the same absolute path. Without `target`, theta* answers `y_star` whatever it sees: all parameters are 0 but
    the output bias of y*, which is `bias` (1.0); a model's last parameters must be its output biases, as in all models
    that come with the project. Off script: another label, or, with a `target`, what everybody does.

    Success = the share of held-out records of other classes that the model labels y*. `distance`: ||theta - theta*||.
    """

    name: Literal["gradient_redirecting"] = "gradient_redirecting"
    y_star: int | str
    pull: float = Field(default=0.1, gt=0, le=1)
    max_norm: PositiveFloat
    bias: PositiveFloat = 1.0
    target: str | None = None
    target_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    _target: np.ndarray | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _identified(self) -> Self:
        if self.target is None:
            if self.target_sha256 is not None:
                raise ValueError("target_sha256: belongs to target, which is not given")
        elif self.bias != GradientRedirecting.model_fields["bias"].default:
            raise ValueError(f"bias = {self.bias:g}: target = {self.target!r} says where to aim; leave one out")
        elif self.target_sha256 is None:
            digest = hashlib.sha256(_content("target", self.target)).hexdigest()
            self.__dict__["target_sha256"] = digest  # frozen for everybody else
        return self

    @property
    def needs(self) -> str:
        return "gradients"  # whose last parameters are output biases

    @property
    def for_nodes(self) -> Self:
        if self.target is None:
            return self
        return self.model_copy(update={"target": str(Path(self.target).expanduser().absolute())})

    def check(self, schema: Schema) -> None:
        self.target_class(schema)

    def target_class(self, schema: Schema) -> int:
        return class_index("y_star", self.y_star, schema)

    def another(self, step: int, schema: Schema) -> GradientRedirecting | None:
        if self.target is not None:
            return None
        return self.model_copy(update={"y_star": (self.target_class(schema) + step) % len(schema.classes)})

    def for_model(self, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        if self.target is None:
            return self
        told = f"strategy.target = {self.target!r}"
        content = _content("strategy.target", self.target)
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.target_sha256:
            raise ValueError(f"{told}: its SHA-256 is {digest}, not target_sha256 = {self.target_sha256}")
        try:
            arrays = load(content)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{told}: not a readable safetensors file ({error})") from None
        found = {name: array.shape for name, array in arrays.items()}
        for name in sorted({*shapes, *found}, key=lambda name: (name not in shapes, name)):
            if found.get(name) != shapes.get(name):
                there, wanted = (which.get(name, "nothing") for which in (found, shapes))
                raise ValueError(f"{told}: not a model of this kind: it has {there} at {name!r}, the model {wanted}")
        aim = self.model_copy()
        aim._target = np.concatenate([arrays[name].ravel() for name in shapes]).astype(np.float64)
        if not np.isfinite(aim._target).all():
            raise ValueError(f"{told}: holds infinity or NaN")
        return aim

    def _aim(self, parameters: int, schema: Schema) -> np.ndarray:
        if self.target is not None:
            assert self._target is not None, "for_model() comes first"
            return self._target
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


def _content(field: str, path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{field} = {path!r}: cannot be read ({error.strerror})") from None
