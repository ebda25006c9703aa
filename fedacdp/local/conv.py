"""Local training of convolutional networks by hand-written batched steps, SGD and DP-SGD, without autograd.

Users are trained in small groups, each user with weights of its own, channels last, so that a convolution is one matrix
product on patches. Only what the network's output depends on is computed: a stride or a pooling may leave the last rows
and columns of an image unread.
"""

from __future__ import annotations

import torch
from torch import nn

from fedacdp.keys import Key
from fedacdp.local.batches import Batches
from fedacdp.local.conv_layers import Flatten, Layer, Pool, Relu, Room, Tanh, Tape
from fedacdp.local.conv_plan import Plan, sides
from fedacdp.local.conv_weights import Conv, Dense, Weighted
from fedacdp.local.general import tensors
from fedacdp.privacy.base import ExampleRule
from fedacdp.users import Users

GROUP = 4
"""Users at once: more, and what a step computes leaves the cache; fewer, and calls cost more than what they do."""


def train(
    plan: Plan,
    start: torch.Tensor,
    users: Users,
    batches: Batches,
    lr: float,
    rule: ExampleRule | None = None,
    key: Key | None = None,
) -> torch.Tensor:
    """All steps of all users, (U, P): SGD on the mean cross entropy of each batch, or DP-SGD under `rule`."""
    x, y = tensors(users, start)
    images = x.movedim(2, -1).contiguous()
    own = start[plan.order].repeat(len(users), 1)
    weights = torch.from_numpy(batches.weight if rule is None else batches.chosen).to(start)
    index, chosen = torch.from_numpy(batches.index), batches.chosen
    rooms = _Rooms(start)
    for first in range(0, len(users), GROUP):
        mine = slice(first, first + GROUP)
        noise = None
        if rule is not None and rule.noise_multiplier and key is not None:
            draws = key.normals(users.ids[mine], index.shape[1] * len(start))
            noise = torch.from_numpy(draws).to(start).unflatten(1, (index.shape[1], -1))
        groups: dict[int, Group] = {}
        for step in range(index.shape[1]):
            width = max(1, int(chosen[mine, step].sum(-1).max()))  # a batch's records come before its padding
            if width not in groups:
                groups[width] = Group(plan, own[mine], width, rooms, lr, rule)
            groups[width].step(images[mine], y[mine], index[mine, step, :width], weights[mine, step, :width])
            if noise is not None and rule is not None:
                scale = -lr / rule.batch * rule.noise_multiplier * rule.clip_norm
                own[mine].add_(noise[:, step], alpha=scale)
    return own.index_select(1, plan.order.argsort()).sub_(start)


class _Rooms:
    """Memory that groups use one after another: a room for each layer, and a desk for all."""

    def __init__(self, like: torch.Tensor):
        self._like, self._rooms, self.desk = like, dict[int, Room](), Room(like)

    def __getitem__(self, place: int) -> Room:
        return self._rooms.setdefault(place, Room(self._like))


class Group:
    """u users with their parameters `own` (u, P), as one step on batches of b examples that can be played again."""

    def __init__(self, plan: Plan, own: torch.Tensor, batch: int, rooms: _Rooms, lr: float, rule: ExampleRule | None):
        users, count = len(own), len(own) * batch
        room = rooms[-1]
        classes = plan.layers[-1].out_features
        assert isinstance(classes, int)
        self.images = room("images", count, *plan.image)
        self.truth, self.weight = room("truth", count, classes), room("weight", users, batch)
        self.layers = _layers(plan, own, rooms)
        self.tape = Tape()
        x = self.images
        for layer in self.layers:
            x = layer.forward(self.tape, x)
        slope = _loss(self.tape, x, self.truth, room)
        if rule is None:
            self.tape(slope.mul_, self.weight.view(-1, 1))
        for layer in reversed(self.layers[1:]):
            slope = layer.backward(self.tape, slope)
        first = self.layers[0]
        assert isinstance(first, Weighted)
        first.keep(slope)
        weighted = [layer for layer in self.layers if isinstance(layer, Weighted)]
        if rule is None:
            for layer in weighted:
                layer.descend(self.tape, lr)
        else:
            self._descend_clipped(weighted, lr / rule.batch, rule.clip_norm, room)

    def step(self, images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> None:
        """One step on the records `index` (u, b) of images (u, n, h, w, c) and labels (u, n)."""
        rows = (torch.arange(len(index))[:, None] * images.shape[1] + index).flatten()
        torch.index_select(images.flatten(0, 1), 0, rows, out=self.images)
        self.truth.zero_().scatter_(1, labels.flatten()[rows][:, None], 1.0)
        self.weight.copy_(weight)
        self.tape.play()

    def _descend_clipped(self, layers: list[Weighted], rate: float, clip: float, room: Room) -> None:
        """Each example's gradient is clipped as a whole, and those that are not finite are left out."""
        count = self.weight.numel()
        norms = [(room(f"norm {n}", count), room(f"bias norm {n}", count)) for n in range(len(layers))]
        every, factors = room("norms", count), room("factors", *self.weight.shape)
        for layer, (weights, bias) in zip(layers, norms, strict=True):
            layer.norms(self.tape, weights, bias)

        def clip_factors() -> None:
            every.zero_()
            for pair in norms:
                for part in pair:
                    every.addcmul_(part, part)
            every.sqrt_()
            torch.div(clip, every.clamp(min=clip), out=factors.view(-1))
            factors.mul_(self.weight)
            wrong = ~every.isfinite()
            if wrong.any():
                factors.view(-1)[wrong] = 0
                for layer in layers:
                    layer.forget(wrong)

        self.tape(clip_factors)
        for layer in layers:
            layer.descend_by(self.tape, factors, rate)


def _layers(plan: Plan, own: torch.Tensor, rooms: _Rooms) -> list[Layer]:
    """The layers of a group, each on its part of `own`."""
    found: list[Layer] = []
    at, channels = 0, plan.image[2]
    for place, layer in enumerate(plan.layers):
        room, desk = rooms[place], rooms.desk
        if isinstance(layer, nn.Conv2d):
            conv = Conv(room, desk, own, at, layer.out_channels, channels, sides(layer), plan.sizes[place + 1])
            at, channels = at + layer.out_channels * (conv.inputs + 1), layer.out_channels
            found.append(conv)
        elif isinstance(layer, nn.Linear):
            found.append(Dense(room, desk, own, at, layer.out_features, layer.in_features))
            at += layer.out_features * (layer.in_features + 1)
        elif isinstance(layer, nn.MaxPool2d):
            found.append(Pool(room, desk, sides(layer)))
        elif isinstance(layer, nn.Flatten):
            found.append(Flatten(room, desk))
        else:
            alone = isinstance(plan.layers[place - 1], nn.Conv2d | nn.Linear)  # nobody else needs what it is given
            found.append((Tanh if isinstance(layer, nn.Tanh) else Relu)(room, desk, in_place=alone))
    return found


def _loss(tape: Tape, logits: torch.Tensor, truth: torch.Tensor, room: Room) -> torch.Tensor:
    """The gradient of cross entropy at the logits, softmax - truth, in place."""
    top = room("top", len(logits), 1)
    tape(torch.amax, logits, 1, keepdim=True, out=top)
    tape(logits.sub_, top)
    tape(logits.exp_)
    tape(torch.sum, logits, 1, keepdim=True, out=top)
    tape(logits.div_, top)
    tape(logits.sub_, truth)
    return logits
