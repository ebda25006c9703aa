"""The layers with parameters of a convolutional network for many users at once, each user with weights of its own.

A user's parameters are one row of `own` (u, P), layer after layer: a matrix (outputs, inputs), where the inputs of a
convolution are (kernel height, kernel width, channels), and a bias (outputs,).
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch

from fedacdp.local.conv_layers import Layer, Room, Sides, Size, Tape
from fedacdp.products import each_add, each_linear


class Weighted(Layer):
    """h = x W^T + b on rows x (m, inputs) of each user, W (outputs, inputs); its parameters begin at `at` in `own`.

    After both passes `seen` (u, m, inputs) holds the rows and `slope` (u, m, outputs) the gradient at h.
    """

    def __init__(self, room: Room, desk: Room, own: torch.Tensor, at: int, outputs: int, inputs: int):
        super().__init__(room, desk)
        self.users, self.outputs, self.inputs = len(own), outputs, inputs
        self.weights = own[:, at : at + outputs * inputs]
        self.matrix = self.weights.view(-1, outputs, inputs)
        self.bias = own[:, at + outputs * inputs : at + outputs * (inputs + 1)]

    def multiply(self, tape: Tape, rows: torch.Tensor) -> torch.Tensor:
        """h for rows (u m, inputs), (u, m, outputs)."""
        self.seen = rows.view(self.users, -1, self.inputs)
        out = self.room("out", *self.seen.shape[:2], self.outputs)
        tape(each_linear, self.seen, self.matrix, self.bias, out=out)
        return out

    def keep(self, slope: torch.Tensor) -> None:
        """All of `backward` that the first layer needs."""
        self.slope = slope.view(self.users, -1, self.outputs)

    def divide(self, tape: Tape, slope: torch.Tensor, room: Room) -> torch.Tensor:
        """The gradient at the rows, (u, m, inputs), in that room."""
        self.keep(slope)
        below = room("rows", *self.seen.shape)
        tape(each_linear, self.slope, self.matrix.mT, out=below)
        return below

    def descend(self, tape: Tape, rate: float) -> None:
        """W -= rate E^T X and b -= rate E^T 1, with the gradient E at h."""
        total = self.desk("total", *self.bias.shape)
        tape(each_add, self.matrix, self.slope.mT, self.seen, -rate)
        tape(torch.sum, self.slope, 1, out=total)
        tape(self.bias.sub_, total, alpha=rate)

    @abstractmethod
    def norms(self, tape: Tape, weights: torch.Tensor, bias: torch.Tensor) -> None:
        """The norms of each example's gradient, both (N,)."""

    @abstractmethod
    def descend_by(self, tape: Tape, factors: torch.Tensor, rate: float) -> None:
        """Descend by the sum of each example's gradient times its factor (u, b); after `norms`."""

    @abstractmethod
    def forget(self, examples: torch.Tensor) -> None:
        """At once: from here on the gradient of these examples, (N,) bool, is zero whatever it was."""


class Dense(Weighted):
    """A dense layer. An example's gradient is the outer product of its slope e and (x, 1): norms |e| |x| and |e|."""

    def forward(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(tape, x).flatten(0, 1)

    def backward(self, tape: Tape, slope: torch.Tensor) -> torch.Tensor:
        return self.divide(tape, slope, self.room).flatten(0, 1)

    def norms(self, tape: Tape, weights: torch.Tensor, bias: torch.Tensor) -> None:
        tape(torch.linalg.vector_norm, self.slope.flatten(0, 1), dim=1, out=bias)
        tape(torch.linalg.vector_norm, self.seen.flatten(0, 1), dim=1, out=weights)
        tape(weights.mul_, bias)

    def descend_by(self, tape: Tape, factors: torch.Tensor, rate: float) -> None:
        tape(self.slope.mul_, factors[:, :, None])
        self.descend(tape, rate)

    def forget(self, examples: torch.Tensor) -> None:
        self.seen.flatten(0, 1)[examples] = 0
        self.slope.flatten(0, 1)[examples] = 0


class Conv(Weighted):
    """A convolution as a product on patches, m = b height width of its output; an example's gradient is formed.

    Only `size` (height, width) of the output is computed; from the input, with zeros around it, that takes `read`.
    """

    def __init__(
        self, room: Room, desk: Room, own: torch.Tensor, at: int, outputs: int, channels: int, sides: Sides, size: Size
    ):
        ((self.tall, self.down, self.top), (self.wide, self.right, self.left)) = sides
        super().__init__(room, desk, own, at, outputs, self.tall * self.wide * channels)
        self.channels, self.size, self.read = channels, size, read_by(sides, size)

    def forward(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        self.below = x.shape
        return self.multiply(tape, self._patches(tape, self._padded(tape, x))).view(len(x), *self.size, self.outputs)

    def backward(self, tape: Tape, slope: torch.Tensor) -> torch.Tensor:
        rows = self.divide(tape, slope, self.desk).view(len(slope), -1, self.channels)
        below = self.room("input", len(slope), math.prod(self.read), self.channels)
        places = torch.arange(math.prod(self.read)).view(self.read)
        places = places.unfold(0, self.tall, self.down).unfold(1, self.wide, self.right).flatten()
        tape(below.zero_)
        tape(below.index_add_, 1, places, rows)
        inner = self._inner(below.view(len(slope), *self.read, self.channels))
        if inner.is_contiguous():
            return inner
        packed = self.room("packed", *self.below)
        tape(packed.copy_, inner)
        return packed

    def norms(self, tape: Tape, weights: torch.Tensor, bias: torch.Tensor) -> None:
        slope, seen = (rows.view(len(bias), -1, rows.shape[2]) for rows in (self.slope, self.seen))
        self.each = self.room("each", len(bias), self.outputs, self.inputs)
        self.each_bias = self.room("each bias", len(bias), self.outputs)
        tape(torch.bmm, slope.mT, seen, out=self.each)
        tape(torch.sum, slope, 1, out=self.each_bias)
        tape(torch.linalg.vector_norm, self.each.flatten(1), dim=1, out=weights)
        tape(torch.linalg.vector_norm, self.each_bias, dim=1, out=bias)

    def descend_by(self, tape: Tape, factors: torch.Tensor, rate: float) -> None:
        for numbers, each in ((self.weights, self.each), (self.bias, self.each_bias)):
            tape(numbers[:, None].baddbmm_, factors[:, None], each.view(*factors.shape, -1), alpha=-rate)

    def forget(self, examples: torch.Tensor) -> None:
        self.each[examples] = 0
        self.each_bias[examples] = 0

    def _inner(self, read: torch.Tensor) -> torch.Tensor:
        """The part of what is read, (N, *read, c), that is input and not zeros around it."""
        return read[:, self.top :, self.left :][:, : self.below[1], : self.below[2]]

    def _padded(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        """What is read, (N, *read, c), of x (N, height, width, c)."""
        if (self.top, self.left) == (0, 0) and x.shape[1:3] == self.read:
            return x
        padded = self.desk("padded", len(x), *self.read, self.channels)
        inner = self._inner(padded)
        tape(padded.zero_)
        tape(inner.copy_, x[:, : inner.shape[1], : inner.shape[2]])
        return padded

    def _patches(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        """The patches (N, height, width, tall, wide c) of x (N, *read, c). Made in two steps, along the width first, so
        that what is copied lies together in memory."""
        strips = self.desk("rows", len(x), self.size[1], self.read[0], self.wide, self.channels)
        patches = self.room("patches", len(x), *self.size, self.tall, self.wide * self.channels)
        tape(strips.copy_, x.unfold(2, self.wide, self.right).permute(0, 2, 1, 4, 3))
        tape(patches.copy_, strips.flatten(3).unfold(2, self.tall, self.down).permute(0, 2, 1, 4, 3))
        return patches


def read_by(sides: Sides, size: Size) -> Size:
    """Height and width of the padded input that windows with an output of `size` read."""
    (height, width), ((tall, down, _), (wide, right, _)) = size, sides
    return (height - 1) * down + tall, (width - 1) * right + wide
