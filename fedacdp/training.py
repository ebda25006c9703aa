"""How a platform trains."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class Training(BaseModel):
    """How the platform trains: T rounds on Poisson cohorts, and each user's plain SGD.

    Exactly one of local_steps and local_epochs; batch = "full" takes all of a user's records at each step. The server
    adds server_lr * (sum of updates) / (sampling_prob * users) to the model. dropout: chance that the message of a
    sampled user is lost, drawn for each user and round; it costs the user one of its messages all the same. Where the
    model learns by counts, rounds, sampling_prob and dropout are all there is: counts take no steps. Where it learns by
    ratings, local steps are of all ratings of a user, and the server's step is that of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    rounds: PositiveInt
    sampling_prob: float = Field(gt=0, le=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    local_steps: PositiveInt | None = None
    local_epochs: PositiveInt | None = None
    batch: PositiveInt | Literal["full"] = "full"
    local_lr: float | None = Field(default=None, ge=0)
    server_lr: PositiveFloat = 1.0
    evaluate_every: PositiveInt = 1

    def check(self, learns_by: str) -> None:
        """ValueError, naming the field, if this is not how a model learns by "gradients", "counts" or "ratings"."""
        if learns_by == "counts":
            for name in ("local_steps", "local_epochs", "local_lr", "batch", "server_lr"):
                value = getattr(self, name)
                if value != Training.model_fields[name].default:
                    raise ValueError(f"training.{name} = {value}: counts take no steps; leave it out")
            return
        if learns_by == "ratings":
            if self.local_epochs is not None:
                raise ValueError(f"training.local_epochs = {self.local_epochs}: ratings take local_steps")
            if self.batch != "full":
                raise ValueError(
                    f"training.batch = {self.batch}: ratings take all of a user's at each step; leave it out"
                )
        if (self.local_steps is None) == (self.local_epochs is None):
            given = "neither" if self.local_steps is None else "both"
            raise ValueError(f"training.local_steps, local_epochs: exactly one must be given, not {given}")
        if self.local_lr is None:
            raise ValueError("training.local_lr: must be given")
