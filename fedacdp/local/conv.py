"""Local training of convolutional networks by hand-written batched steps, SGD and DP-SGD, without autograd.

Users are trained in small groups, each user with weights of its own, channels last, so that a convolution is one matrix
product on patches. Only what the network's output depends on is computed: a stride or a pooling may leave the last rows
and columns of an image unread.
"""

from __future__ import annotations

import threading

import torch
from torch import nn

from fedacdp.keys import Key
from fedacdp.local.batches import Batches
from fedacdp.local.conv_layers import Flatten, Layer, Pool, Relu, Room, Tanh, Tape
from fedacdp.local.conv_plan import Plan, sides
from fedacdp.local.conv_weights import Conv, Dense, Weighted
from fedacdp.local.general import tensors
from fedacdp.models.base import Net
from fedacdp.privacy.base import ExampleRule
from fedacdp.users import Users

GROUP = 4
"""Users at once: more, and what a step computes leaves the cache; fewer, and calls cost more than what they do."""


def train(
    net: Net,
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
    images = x.movedim(2, -1).flatten(0, 1).contiguous()
    own = start[plan.order].repeat(len(users), 1)
    weights = torch.from_numpy(batches.weight if rule is None else batches.chosen).to(start)
    chosen, records = batches.chosen, x.shape[1]
    rows = torch.arange(len(users))[:, None, None] * records + torch.from_numpy(batches.index)
    truth = torch.eye(_classes(plan), dtype=start.dtype)[y.flatten()]
    groups, steps = _kept.groups(net, plan, start, lr, rule), rows.shape[1]
    for first in range(0, len(users), GROUP):
        mine = slice(first, first + GROUP)
        mine_own, noise, scale = own[mine], None, 0.0
        if rule is not None and rule.noise_multiplier and key is not None:
            scale = -lr / rule.batch * rule.noise_multiplier * rule.clip_norm
            noise = torch.from_numpy(key.normals(users.ids[mine], steps * len(start))).to(start)
            noise = noise.unflatten(1, (steps, -1))
        for step in range(steps):
            width = max(1, int(chosen[mine, step].sum(-1).max()))  # a batch's records come before its padding
            group = groups.of(len(mine_own), width)
            if step == 0:
                group.own.copy_(mine_own)
            group.step(images, truth, rows[mine, step, :width].flatten(), weights[mine, step, :width])
            if noise is not None:
                group.own.add_(noise[:, step], alpha=scale)
        mine_own.copy_(group.own)
    return own.index_select(1, plan.places).sub_(start)


class _Groups:
    """Groups by their numbers of users and of examples, which share memory: they work one after another."""

    def __init__(self, plan: Plan, like: torch.Tensor, lr: float, rule: ExampleRule | None):
        self._plan, self._lr, self._rule, self._widest = plan, lr, rule, 0
        self._own, self._rooms = like.new_empty(GROUP, len(like)), _Rooms(like)
        self._groups: dict[tuple[int, int], Group] = {}

    def of(self, users: int, batch: int) -> Group:
        """The group for so many users and examples each."""
        if batch > self._widest:  # larger memory: those that hold the smaller must go, or there would be both
            self._widest, self._groups, self._rooms = batch, {}, _Rooms(self._own)
        found = self._groups.get((users, batch))
        if found is None:
            found = Group(self._plan, self._own[:users], batch, self._rooms, self._lr, self._rule)
            self._groups[users, batch] = found
        return found


class _Kept(threading.local):
    """The groups that this thread used last: making one takes as long as a step."""

    def __init__(self) -> None:
        self._net: Net | None = None
        self._kind: tuple[float, ExampleRule | None, torch.dtype] | None = None

    def groups(self, net: Net, plan: Plan, start: torch.Tensor, lr: float, rule: ExampleRule | None) -> _Groups:
        """Those for this training; new ones if the last was another."""
        kind = (lr, rule, start.dtype)
        if self._net is not net or self._kind != kind:
            self._net, self._kind, self._found = net, kind, _Groups(plan, start, lr, rule)
        return self._found


_kept = _Kept()


class _Rooms:
    """Memory that groups use one after another: a room for each layer, one for the group itself, a desk for all."""

    def __init__(self, like: torch.Tensor):
        self._like, self._rooms, self.desk = like, dict[int, Room](), Room(like)

    def __getitem__(self, place: int) -> Room:
        return self._rooms.setdefault(place, Room(self._like))


class Group:
    """u users with their parameters `own` (u, P), as one step on batches of b examples that can be played again."""

    def __init__(self, plan: Plan, own: torch.Tensor, batch: int, rooms: _Rooms, lr: float, rule: ExampleRule | None):
        self.own, users, count = own, len(own), len(own) * batch
        room = rooms[-1]
        classes = _classes(plan)
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

    def step(self, images: torch.Tensor, truth: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> None:
        """One step on the records `rows` (u b,) of images (m, h, w, c) with one-hot labels `truth` (m, classes)."""
        torch.index_select(images, 0, rows, out=self.images)
        torch.index_select(truth, 0, rows, out=self.truth)
        self.weight.copy_(weight)
        self.tape.play()

    def _descend_clipped(self, layers: list[Weighted], rate: float, clip: float, room: Room) -> None:
        """Each example's gradient is clipped as a whole, and those that are not finite are left out."""
        count = self.weight.numel()
        norms, every = room("norms of parts", 2 * len(layers), count), room("norms", count)
        factors = room("factors", *self.weight.shape)
        for layer, weights, bias in zip(layers, norms[::2], norms[1::2], strict=True):
            layer.norms(self.tape, weights, bias)

        def clip_factors() -> None:
            torch.linalg.vector_norm(norms, dim=0, out=every)
            torch.div(clip, every.clamp(min=clip), out=factors.view(-1))
            factors.mul_(self.weight)
            if not every.sum().isfinite():
                wrong = ~every.isfinite()
                factors.view(-1)[wrong] = 0
                for layer in layers:
                    layer.forget(wrong)

        self.tape(clip_factors)
        for layer in layers:
            layer.descend_by(self.tape, factors, rate)


def _classes(plan: Plan) -> int:
    last = plan.layers[-1]
    assert isinstance(last, nn.Linear)
    return last.out_features


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
