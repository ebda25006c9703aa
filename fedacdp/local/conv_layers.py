"""The layers of a convolutional network for many users at once, each user with weights of its own.

A group is u users with b examples each, N = u b in all. Activations are (N, height, width, channels), channels last, so
that a convolution is one batched matrix product on patches. A user's parameters are one row of `own` (u, P), layer
after layer: a matrix (outputs, inputs), a convolution's inputs as (kernel height, kernel width, channels), and a bias.
Every tensor that is kept lies in a `Room`, so nothing large is allocated twice.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

Side = tuple[int, int, int]
"""Kernel, stride and padding along the height or the width."""


class Room:
    """Memory that is used again: asked for by name, allocated only when more is needed than ever before."""

    def __init__(self, like: torch.Tensor):
        self._like, self.device = like, like.device
        self._held: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        size = math.prod(shape)
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = self._like.new_empty(size)
        return self._held[name][:size].view(shape)


class Layer(ABC):
    """A layer without parameters; `floats` is about how many numbers it keeps per example."""

    floats = 0

    def __init__(self, room: Room):
        self.room = room

    @abstractmethod
    def forward(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The output for x. What the way back needs is kept until the next call."""

    @abstractmethod
    def backward(self, slope: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The gradient at the input from the gradient at the output, which may be overwritten."""


class Tanh(Layer):
    """y = tanh x; backward e (1 - y^2)."""

    def forward(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        self.out = self.room("out", *x.shape)
        if x.device.type == "cpu":
            np.tanh(x.numpy(), out=self.out.numpy())  # as exact as torch's, which takes seven times as long
        else:
            torch.tanh(x, out=self.out)
        return self.out

    def backward(self, slope: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.tanh_backward.grad_input(slope, self.out, grad_input=slope)


class Relu(Layer):
    """y = max(x, 0); backward e where y > 0."""

    def forward(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        self.out = torch.clamp(x, min=0, out=self.room("out", *x.shape))
        return self.out

    def backward(self, slope: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.threshold_backward.grad_input(slope, self.out, 0, grad_input=slope)


class Flatten(Layer):
    """Keeps the order height, width, channels: the weights of the next layer are in that order too."""

    def forward(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        self.shape = x.shape
        return x.flatten(1)

    def backward(self, slope: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return slope.view(self.shape)


class Pool(Layer):
    """The maximum of every window, along the width first and then along the height.

    The gradient goes to the first of equal maxima in reading order, as in PyTorch: to the first row that holds the
    window's maximum, and in that row to the first column that does. Windows cover the input.
    """

    def __init__(self, room: Room, sides: tuple[Side, Side]):
        super().__init__(room)
        self.sides = sides

    def forward(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        self.across = self._maxima(x, 2)
        self.down = self._maxima(self.across[-1], 1)
        self.shape = x.shape
        self.x = x
        return self.down[-1]

    def backward(self, slope: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return self._send(self._send(slope, self.across[-1], self.down, 1), self.x, self.across, 2)

    def _views(self, x: torch.Tensor, dim: int) -> list[torch.Tensor]:
        """The first, second, ... element of every window along `dim`."""
        kernel, stride, _ = self.sides[dim - 1]
        last = x.shape[dim] - kernel
        return [
            x.narrow(dim, at, last + 1)[(slice(None),) * dim + (slice(None, None, stride),)] for at in range(kernel)
        ]

    def _maxima(self, x: torch.Tensor, dim: int) -> list[torch.Tensor]:
        """The maximum of the first element of every window along `dim`, of the first two, ..., of all."""
        first, *others = self._views(x, dim)
        maxima = [first]
        for at, other in enumerate(others):
            maxima.append(torch.maximum(maxima[-1], other, out=self.room(f"maxima {dim} {at}", *other.shape)))
        return maxima

    def _send(self, slope: torch.Tensor, x: torch.Tensor, maxima: list[torch.Tensor], dim: int) -> torch.Tensor:
        """From the gradient at the maxima of x along `dim` to that at x: an element that exceeds all before it in its
        window takes what those after it have left."""
        below = self.room(f"below {dim}", *x.shape).zero_()
        parts, views = self._views(below, dim), self._views(x, dim)
        for at in range(len(views) - 1, 0, -1):
            taken = self.room("taken", *slope.shape)
            torch.sub(views[at], maxima[at - 1], out=taken)
            torch.ops.aten.threshold_backward.grad_input(slope, taken, 0, grad_input=taken)
            parts[at].add_(taken)
            slope.sub_(taken)
        parts[0].add_(slope)
        return below


class Weighted(Layer):
    """h = x W^T + b on rows x (m, inputs) of each user, W (outputs, inputs); its parameters begin at `at` in `own`.

    `seen` (u, m, inputs) are the rows of the last forward call and `slope` (u, m, outputs) the gradient at the output.
    """

    def __init__(self, room: Room, at: int, outputs: int, inputs: int):
        super().__init__(room)
        self.outputs, self.inputs = outputs, inputs
        self.middle, self.end = at + outputs * inputs, at + outputs * (inputs + 1)
        self.at = at
        self.seen = self.slope = torch.empty(0)

    def matrix(self, own: torch.Tensor) -> torch.Tensor:
        """W of each user, a view (u, outputs, inputs)."""
        return own[:, self.at : self.middle].view(-1, self.outputs, self.inputs)

    def multiply(self, rows: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The outputs for rows (u m, inputs), (u, m, outputs)."""
        self.seen = rows.view(len(own), -1, self.inputs)
        out = self.room("out", *self.seen.shape[:2], self.outputs)
        return torch.baddbmm(own[:, None, self.middle : self.end], self.seen, self.matrix(own).mT, out=out)

    def divide(self, slope: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The gradient at the rows, (u, m, inputs)."""
        return torch.bmm(slope, self.matrix(own), out=self.room("below", *self.seen.shape))

    def descend(self, own: torch.Tensor, rate: float) -> None:
        """W -= rate E^T X and b -= rate E^T 1, with the gradients E as they came back."""
        self.matrix(own).baddbmm_(self.slope.mT, self.seen, alpha=-rate)
        own[:, self.middle : self.end].sub_(self.slope.sum(1), alpha=rate)

    def keep(self, slope: torch.Tensor, own: torch.Tensor) -> None:
        """The part of `backward` that the layer itself needs: all there is to do in the first layer."""
        self.slope = slope.view(len(own), -1, self.outputs)

    @abstractmethod
    def squares(self) -> torch.Tensor:
        """The squared norm of each example's gradient, (N,)."""

    @abstractmethod
    def forget(self, examples: torch.Tensor) -> None:
        """Let these examples (N,) bool have a gradient of zero whatever they are."""

    @abstractmethod
    def descend_clipped(self, own: torch.Tensor, factors: torch.Tensor, rate: float) -> None:
        """Take each example's gradient times its factor (u, b), rate times."""


class Dense(Weighted):
    """A dense layer: an example's gradient is the outer product e (x, 1)^T, so its squared norm is |e|^2 (|x|^2 + 1)."""

    def forward(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, own).flatten(0, 1)

    def backward(self, slope: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        self.keep(slope, own)
        return self.divide(self.slope, own).flatten(0, 1)

    def squares(self) -> torch.Tensor:
        squares = self.slope.square().sum(2) * (self.seen.square().sum(2) + 1)
        return squares.flatten()

    def forget(self, examples: torch.Tensor) -> None:
        self.seen.flatten(0, 1)[examples] = 0
        self.slope.flatten(0, 1)[examples] = 0

    def descend_clipped(self, own: torch.Tensor, factors: torch.Tensor, rate: float) -> None:
        self.slope.mul_(factors[:, :, None])
        self.descend(own, rate)


class Conv(Weighted):
    """A convolution as a product on patches, m = b height width of its output; an example's gradient is formed."""

    def __init__(
        self, room: Room, at: int, outputs: int, channels: int, sides: tuple[Side, Side], size: tuple[int, int]
    ):
        super().__init__(room, at, outputs, sides[0][0] * sides[1][0] * channels)
        self.sides, self.size, self.channels = sides, size, channels
        self.floats = math.prod(size) * (self.inputs + 3 * outputs)
        (tall, down, self.top), (wide, right, self.left) = sides
        self.read = ((size[0] - 1) * down + tall, (size[1] - 1) * right + wide)
        positions = torch.arange(math.prod(self.read), device=room.device).view(self.read)
        self.positions = positions.unfold(0, tall, down).unfold(1, wide, right).flatten()
        self.each = self.each_bias = torch.empty(0)

    def forward(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        self.below = x.shape
        return self.multiply(self._patches(self._padded(x)), own).view(len(x), *self.size, self.outputs)

    def backward(self, slope: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        self.keep(slope, own)
        rows = self.divide(self.slope, own)
        below = self.room("input", len(slope), math.prod(self.read), self.channels).zero_()
        below.index_add_(1, self.positions, rows.view(len(slope), -1, self.channels))
        inner = below.view(len(slope), *self.read, self.channels)[:, self.top :, self.left :]
        return inner[:, : self.below[1], : self.below[2]].contiguous()

    def squares(self) -> torch.Tensor:
        examples = self.below[0]
        slope = self.slope.view(examples, -1, self.outputs)
        self.each = self.room("each", examples, self.outputs, self.inputs)
        torch.bmm(slope.mT, self.seen.view(examples, -1, self.inputs), out=self.each)
        self.each_bias = slope.sum(1)
        return torch.linalg.vector_norm(self.each.flatten(1), dim=1).square() + self.each_bias.square().sum(1)

    def forget(self, examples: torch.Tensor) -> None:
        self.each[examples] = 0
        self.each_bias[examples] = 0

    def descend_clipped(self, own: torch.Tensor, factors: torch.Tensor, rate: float) -> None:
        for change, first, last in ((self.each, self.at, self.middle), (self.each_bias, self.middle, self.end)):
            rows = change.view(*factors.shape, -1)
            own[:, None, first:last].baddbmm_(factors[:, None], rows, alpha=-rate)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        """What the windows read of x, (N, *read, c): with zeros around it, without what no window reaches."""
        if x.shape[1:3] == self.read:
            return x
        padded = self.room("padded", len(x), *self.read, self.channels).zero_()
        inner = padded[:, self.top :, self.left :]
        height, width = min(x.shape[1], inner.shape[1]), min(x.shape[2], inner.shape[2])
        inner[:, :height, :width] = x[:, :height, :width]
        return padded

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        """Patches (N, height, width, kernel height, kernel width c) of x (N, *read, c). Made in two steps, along the
        width first, so that what is copied lies together in memory."""
        ((tall, down, _), (wide, right, _)), (height, width) = self.sides, self.size
        strips = self.room("strips", len(x), width, x.shape[1], wide, self.channels)
        strips.copy_(x.unfold(2, wide, right).permute(0, 2, 1, 4, 3))
        patches = self.room("patches", len(x), height, width, tall, wide * self.channels)
        return patches.copy_(strips.flatten(3).unfold(2, tall, down).permute(0, 2, 1, 4, 3))
