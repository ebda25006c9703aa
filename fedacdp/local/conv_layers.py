"""The layers of a convolutional network for many users at once: how they work, and those without parameters.

A group is u users with b examples each, N = u b in all. Activations are (N, height, width, channels), channels last, so
that a convolution is one batched matrix product on patches.

A layer does not compute: it appends calls on fixed memory to a `Tape`, which is played at every step. What a call costs
before it computes anything, and memory allocated anew, would otherwise take a large part of the time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

Size = tuple[int, int]
"""Height and width."""
Side = tuple[int, int, int]
"""Kernel, stride and padding along the height or the width."""
Sides = tuple[Side, Side]
Maxima = list[tuple[torch.Tensor, torch.Tensor]]
"""For the first, second, ... element of every window: the element, and the maximum of those up to it."""

_aten: Any = torch.ops.aten


class Tape:
    """Calls in order."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        self.calls.append(partial(function, *args, **options))

    def play(self) -> None:
        for call in self.calls:
            call()


class Room:
    """Memory that is used again, by name and number; it grows when more is asked for than ever before."""

    def __init__(self, like: torch.Tensor):
        self._like = like
        self._held: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        size = math.prod(shape)
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = self._like.new_empty(size)
        return self._held[name][:size].view(shape)


class Layer(ABC):
    """A layer of a group. What must last lies in its own `room`, what the next calls use up on the `desk`, which all
    layers share: the less memory, the more of it stays in the cache."""

    def __init__(self, room: Room, desk: Room):
        self.room, self.desk = room, desk

    @abstractmethod
    def forward(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        """Where the output for x will be."""

    @abstractmethod
    def backward(self, tape: Tape, slope: torch.Tensor) -> torch.Tensor:
        """Where the gradient at the input will be, from that at the output, which may be overwritten."""


class Activation(Layer):
    """A function of each number with a derivative that follows from its value; in place of x if nobody needs x."""

    def __init__(self, room: Room, desk: Room, in_place: bool):
        super().__init__(room, desk)
        self.in_place = in_place

    def output(self, x: torch.Tensor) -> torch.Tensor:
        """Where the values go."""
        self.out = x if self.in_place else self.room("out", *x.shape)
        return self.out


class Tanh(Activation):
    """y = tanh x; backward e (1 - y^2)."""

    def forward(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        tape(np.tanh, x.numpy(), self.output(x).numpy())  # as exact as torch's, which takes seven times as long
        return self.out

    def backward(self, tape: Tape, slope: torch.Tensor) -> torch.Tensor:
        tape(_aten.tanh_backward.grad_input, slope, self.out, grad_input=slope)
        return slope


class Relu(Activation):
    """y = max(x, 0); backward e where y > 0."""

    def forward(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        tape(torch.clamp, x, min=0, out=self.output(x))
        return self.out

    def backward(self, tape: Tape, slope: torch.Tensor) -> torch.Tensor:
        tape(_aten.threshold_backward.grad_input, slope, self.out, 0, grad_input=slope)
        return slope


class Flatten(Layer):
    """Keeps the order height, width, channels: the weights of the next layer are in that order too."""

    def forward(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        self.shape = x.shape
        return x.flatten(1)

    def backward(self, tape: Tape, slope: torch.Tensor) -> torch.Tensor:
        return slope.view(self.shape)


class Pool(Layer):
    """The maximum of every window, along the width first and then along the height.

    The gradient goes to the first of equal maxima in reading order, as in PyTorch: to the first row that holds the
    window's maximum, and in that row to the first column that does.
    """

    def __init__(self, room: Room, desk: Room, sides: Sides):
        super().__init__(room, desk)
        self.sides = sides

    def forward(self, tape: Tape, x: torch.Tensor) -> torch.Tensor:
        self.across = self._maxima(tape, x, 2)
        self.down = self._maxima(tape, self.across[-1][1], 1)
        self.shape = x.shape
        return self.down[-1][1]

    def backward(self, tape: Tape, slope: torch.Tensor) -> torch.Tensor:
        return self._send(tape, self._send(tape, slope, self.down, 1, self.desk), self.across, 2, self.room)

    def _elements(self, x: torch.Tensor, dim: int) -> list[torch.Tensor]:
        """The first, second, ... element of every window of x along `dim`."""
        kernel, stride, _ = self.sides[dim - 1]
        return list(x.unfold(dim, kernel, stride).unbind(-1))

    def _maxima(self, tape: Tape, x: torch.Tensor, dim: int) -> Maxima:
        first, *others = self._elements(x, dim)
        maxima = [(first, first)]
        for at, other in enumerate(others):
            maxima.append((other, self.room(f"maximum {dim} {at}", *other.shape)))
            tape(torch.maximum, maxima[-2][1], other, out=maxima[-1][1])
        return maxima

    def _send(self, tape: Tape, slope: torch.Tensor, maxima: Maxima, dim: int, room: Room) -> torch.Tensor:
        """From the gradient at the maxima along `dim` to that at their elements, in that room: the last element of a
        window that exceeds all before it takes it, or else the first."""
        below = room("below", *slope.shape[:dim], self.shape[dim], *slope.shape[dim + 1 :])
        first, *others = self._elements(below, dim)
        taken = [self.desk(f"taken {at}", *slope.shape) for at in range(len(others))]
        covered = self.sides[dim - 1][1] == 1  # the first elements leave out only the end
        tape((below.narrow(dim, slope.shape[dim], len(others)) if covered else below).zero_)
        for at in reversed(range(len(others))):
            tape(torch.sub, maxima[at + 1][0], maxima[at][1], out=taken[at])
            tape(_aten.threshold_backward.grad_input, slope, taken[at], 0, grad_input=taken[at])
            tape(torch.sub, slope, taken[at], out=slope if at else first)
        for other, part in zip(others, taken, strict=True):
            tape(other.add_, part)
        if not others:
            tape(first.copy_, slope)
        return below
