"""Multinomial logistic regression."""

import math
from typing import Literal

from torch import nn

from fedacdp.models.base import Network
from fedacdp.users import Schema


class Logistic(Network):
    """One dense layer from the flattened record to the classes."""

    name: Literal["logistic"] = "logistic"

    def module(self, schema: Schema) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(schema.shape), len(schema.classes)))
