"""The small convolutional network of the DP-SGD tutorials."""

from typing import Literal

from torch import nn

from fedacdp.models.base import Network
from fedacdp.users import Schema


class Cnn(Network):
    """Two tanh convolutions with max pooling and two dense layers: 26,010 parameters on 28 x 28 grey images
    (Papernot et al. 2021, arXiv 2007.14191, and the tutorials of TensorFlow Privacy and Opacus)."""

    name: Literal["cnn"] = "cnn"

    def module(self, schema: Schema) -> nn.Module:
        if not schema.image:
            raise ValueError('model.name = "cnn": for images only, these records are rows of a table')
        sides = [_side_after(side) for side in schema.shape[1:]]
        if min(sides) < 1:
            raise ValueError(f'model.name = "cnn": needs images of at least 14 pixels, not {schema.shape[1:]}')
        return nn.Sequential(
            nn.Conv2d(schema.shape[0], 16, 8, 2, padding=3),
            nn.Tanh(),
            nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2),
            nn.Tanh(),
            nn.MaxPool2d(2, 1),
            nn.Flatten(),
            nn.Linear(32 * sides[0] * sides[1], 32),
            nn.Tanh(),
            nn.Linear(32, len(schema.classes)),
        )


def _side_after(side: int) -> int:
    first = (side + 6 - 8) // 2 + 1 - 1
    return (first - 4) // 2 + 1 - 1
