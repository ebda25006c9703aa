"""Biased matrix factorisation of ratings, of which users keep what is theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from fedacdp.keys import Key
from fedacdp.models.base import Learner, Model
from fedacdp.users import Schema

WEIGHT = 0.1
"""What a user sends for each of its items to be counted: small beside its changes, so that clipping is about these."""


class MatrixFactorization(Model):
    """r = mean + b_i + b_u + q_i . p_u (Koren, Bell, Volinsky 2009, IEEE Computer 42(8)), trained by federated
    reconstruction (Singhal et al. 2021, NeurIPS, arXiv 2102.03448).

    Mean, item biases b_i and item factors q_i (`factors` of them) are shared. In each round a user solves for its own
    b_u and p_u exactly: least squares on its ratings plus `ridge` * (b_u^2 + |p_u|^2). Then it takes local steps on the
    rows of its items, error * (1, p_u) - decay * (b_i, q_i), and sends what has changed, and that these items are among
    its own. b_u and p_u are forgotten: nobody stores them and nobody sees them.

    The server knows from the sums how many users it is that have an item, as they have been sent so far, clipped and
    noised, and moves the item by the sum of its changes over that number, to which it adds the share `rare` of all
    users: an item of few moves little, and noise moves it little. What one divides by is itself a sum that has been
    released, so it costs no privacy. Under noise take a larger `rare`.
    """

    name: Literal["matrix_factorization"] = "matrix_factorization"
    learns_by: ClassVar[Literal["gradients", "counts", "ratings"]] = "ratings"
    factors: PositiveInt = 8
    ridge: PositiveFloat = 5.0
    decay: float = Field(default=0.2, ge=0)
    rare: PositiveFloat = 0.05

    def net(self, schema: Schema) -> Factors:
        if not schema.items:
            raise ValueError(f"model.name = {self.name!r}: learns from ratings of items, not from records of classes")
        return Factors(schema, self.factors, self.ridge, self.decay, self.rare)


class Items(NamedTuple):
    """Views of a flat vector: `rounds` so far, `raters` (I + 1,) the share of users who have each item, added up over
    rounds, and last that of everybody, which clipping makes less than one; `mean`, `bias` (I,), `factors` (I, k)."""

    rounds: np.ndarray
    raters: np.ndarray
    mean: np.ndarray
    bias: np.ndarray
    factors: np.ndarray


@dataclass(frozen=True)
class Factors(Learner):
    """Item parameters as a flat vector (P,) float64."""

    schema: Schema
    factors: int
    ridge: float
    decay: float
    rare: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        items = self.schema.items
        return {
            "rounds": (1,),
            "raters": (items + 1,),
            "mean": (1,),
            "bias": (items,),
            "factors": (items, self.factors),
        }

    def items(self, flat: np.ndarray) -> Items:
        """The parts of a flat vector (P,), as views."""
        ends = np.cumsum([np.prod(shape) for shape in self.shapes.values()])[:-1]
        pieces = np.split(flat, ends)
        return Items(*(piece.reshape(shape) for piece, shape in zip(pieces, self.shapes.values(), strict=True)))

    def initial(self, key: Key) -> np.ndarray:
        """Factors normal with standard deviation 0.1, the mean in the middle of the scale, all else zero."""
        flat = np.zeros(self.size)
        found = self.items(flat)
        found.mean[:] = (self.schema.scale[0] + self.schema.scale[-1]) / 2
        found.factors[:] = 0.1 * key.rng().standard_normal(found.factors.shape)
        return flat

    def moved(self, flat: np.ndarray, total: np.ndarray, lr: float, cohort: float) -> np.ndarray:
        """Every item moves by lr * (sum of its changes) / (its raters + rare * everybody), both by round; the mean by
        its changes over everybody."""
        after, now = flat.copy(), self.items(total)
        found = self.items(after)
        found.rounds[:] += 1
        found.raters[:] += now.raters / (WEIGHT * cohort)
        everybody = max(found.raters[-1], 1e-3 * found.rounds[0])  # which noise alone could make nothing or less
        each = (np.maximum(found.raters[:-1], 0) + self.rare * everybody) * (cohort / found.rounds[0])
        found.mean[:] += lr * now.mean / (everybody * cohort / found.rounds[0])
        found.bias[:] += lr * now.bias / each
        found.factors[:] += lr * now.factors / each[:, None]
        return after

    def predict(self, flat: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The class that is nearest to mean + b_i, what is known without knowing the user."""
        found, scale = self.items(flat), self.schema.scale
        rating = found.mean + found.bias[x[:, 0].astype(np.int64)]
        return np.abs(rating[:, None] - scale).argmin(axis=1)
