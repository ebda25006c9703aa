"""A multi-layer perceptron."""

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from fedacdp.models.base import Network
from fedacdp.users import Schema


class Mlp(Network):
    """Dense layers of the sizes `hidden` with ReLU between them, then a dense layer to the classes."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)

    def module(self, schema: Schema) -> nn.Module:
        sizes = (math.prod(schema.shape), *self.hidden, len(schema.classes))
        layers: list[nn.Module] = [nn.Flatten()]
        for wide, narrow in pairwise(sizes):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
