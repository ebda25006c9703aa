"""Local training of convolutional networks, all users of a block at once, without autograd.

`general` maps over users, which turns convolutions with a user's own weights into grouped ones. Here they are batched
matrix products on patches (`conv_layers`), a few users at a time so that what they touch stays in the cache. At each
step users with equally large batches go together, so that hardly any padding is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from fedacdp.keys import Key
from fedacdp.local.batches import Batches
from fedacdp.local.conv_layers import Conv, Dense, Flatten, Layer, Pool, Relu, Room, Side, Tanh, Weighted
from fedacdp.local.general import tensors
from fedacdp.models.base import Net
from fedacdp.privacy.base import ExampleRule
from fedacdp.users import Users

_GROUP_BYTES = 2**22  # what the examples of a group of users keep between the passes forward and backward
_BLOCK = 64  # users trained through all their steps before the next

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray], None]
"""One step of u users with b examples each: parameters (u, P), which it changes, x (u b, height, width, channels),
y (u b,), which examples count (u, b), and the users' positions."""


def applies(net: Net) -> bool:
    """Whether a net is Conv2d, MaxPool2d and activations, then Flatten, then Linear and activations, beginning with a
    convolution and ending with a dense layer, every one of the plain kind."""
    modules = list(net.module) if isinstance(net.module, nn.Sequential) else []
    kinds = [type(module) for module in modules]
    if kinds.count(nn.Flatten) != 1 or kinds[0] is not nn.Conv2d or kinds[-1] is not nn.Linear:
        return False
    cut = kinds.index(nn.Flatten)
    images, rows = {nn.Conv2d, nn.MaxPool2d, nn.Tanh, nn.ReLU}, {nn.Linear, nn.Tanh, nn.ReLU}
    own = [at for at, kind in enumerate(kinds) if kind in (nn.Conv2d, nn.Linear)]
    return (
        images.issuperset(kinds[:cut])
        and rows.issuperset(kinds[cut + 1 :])
        and list(net.shapes) == [f"{at}.{name}" for at in own for name in ("weight", "bias")]
        and all(_plain(module) for module in modules)
    )


def sgd(net: Net, start: torch.Tensor, users: Users, batches: Batches, lr: float) -> torch.Tensor:
    """SGD steps of all users on the mean cross entropy of each batch, (U, P)."""
    network = _Network(net, users.schema.shape, start)

    def step(own: torch.Tensor, x: torch.Tensor, y: torch.Tensor, chosen: torch.Tensor, users: np.ndarray) -> None:
        slope = network.slope(own, x, y).mul_((chosen / chosen.sum(1, keepdim=True)).view(-1, 1))
        for layer in network.backward(slope, own):
            layer.descend(own, lr)

    return network.train(start, users, batches, step, idle=False)


def dpsgd(
    net: Net, start: torch.Tensor, users: Users, batches: Batches, lr: float, rule: ExampleRule, key: Key
) -> torch.Tensor:
    """DP-SGD steps of all users under `rule`, (U, P)."""
    network = _Network(net, users.schema.shape, start)
    noise = [key.fold(int(user)).rng() for user in users.ids]
    rate = lr / rule.batch

    def step(own: torch.Tensor, x: torch.Tensor, y: torch.Tensor, chosen: torch.Tensor, users: np.ndarray) -> None:
        layers = list(network.backward(network.slope(own, x, y), own)) if len(x) else []
        if layers:
            norms = torch.stack([layer.squares() for layer in layers]).sum(0).sqrt()
            kept = torch.isfinite(norms)
            factors = chosen * torch.where(kept, rule.clip_norm / norms.clamp(min=rule.clip_norm), 0.0).view_as(chosen)
            for layer in layers:
                if not kept.all():
                    layer.forget(~kept)
                layer.descend_clipped(own, factors, rate)
        if rule.noise_multiplier > 0:
            draws = np.empty((len(own), len(start)), np.float32)
            for row, user in zip(draws, users, strict=True):
                noise[user].standard_normal(dtype=np.float32, out=row)
            ordered = torch.from_numpy(draws).to(start).index_select(1, network.order)
            own.sub_(ordered, alpha=rate * rule.noise_multiplier * rule.clip_norm)

    return network.train(start, users, batches, step, idle=True)


class _Network:
    """The layers of a net for images of one shape. `order` (P,): where each number of the layers' parameters lies in
    the net's flat vector, which has (outputs, channels, height, width)."""

    def __init__(self, net: Net, shape: tuple[int, ...], like: torch.Tensor):
        modules = [module for module in net.module.children()]
        sizes = list(zip(*(_extents(modules, shape[1 + dim], dim) for dim in (0, 1)), strict=True))
        channels, area, at = shape[0], sizes[-1], 0
        self.layers: list[Layer] = []
        order: list[torch.Tensor] = []
        for module, size in zip(modules, sizes[1:], strict=True):
            room, sides = Room(like), (_side(module, 0), _side(module, 1))
            if isinstance(module, nn.Conv2d):
                window, outputs = (sides[0][0], sides[1][0]), module.out_channels
                layer: Layer = Conv(room, at, outputs, channels, sides, size)
            elif isinstance(module, nn.Linear):
                window, area, outputs = area, (1, 1), module.out_features
                layer = Dense(room, at, outputs, module.in_features)
            else:
                simple = {nn.Tanh: Tanh, nn.ReLU: Relu, nn.Flatten: Flatten}
                self.layers.append(
                    Pool(room, sides) if isinstance(module, nn.MaxPool2d) else simple[type(module)](room)
                )
                continue
            assert isinstance(layer, Weighted)
            self.layers.append(layer)
            flat = torch.arange(at, layer.end)
            weights = flat[: layer.middle - at].view(outputs, channels, *window)
            order += [weights.permute(0, 2, 3, 1).flatten(), flat[layer.middle - at :]]
            channels, at = outputs, layer.end
        self.order = torch.cat(order).to(like.device)
        floats = sum(layer.floats for layer in self.layers)
        self.rows = max(1, _GROUP_BYTES // (floats * like.element_size()))

    def slope(self, own: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The gradient of each example's cross entropy at the logits, (N, classes)."""
        for layer in self.layers:
            x = layer.forward(x, own)
        slope = x.softmax(1)
        return slope.scatter_add_(1, y[:, None], slope.new_full((len(y), 1), -1.0))

    def backward(self, slope: torch.Tensor, own: torch.Tensor) -> Iterator[Weighted]:
        """The layers with parameters from the last to the first, each when its gradient is known and its parameters
        are no longer needed."""
        for layer in reversed(self.layers[1:]):
            slope = layer.backward(slope, own)
            if isinstance(layer, Weighted):
                yield layer
        first = self.layers[0]
        assert isinstance(first, Weighted)
        first.keep(slope, own)
        yield first

    def train(self, start: torch.Tensor, users: Users, batches: Batches, step: Step, idle: bool) -> torch.Tensor:
        """All steps of all users, (U, P); `idle` says whether a step is also done by users with no example in it."""
        x, y = tensors(users, start)
        begin, back = start[self.order], self.order.argsort()
        counts = batches.chosen.sum(-1)
        index = np.take_along_axis(batches.index, np.argsort(~batches.chosen, axis=-1, kind="stable"), -1)
        updates = torch.empty(len(users), len(start), dtype=start.dtype, device=start.device)
        for first in range(0, len(users), _BLOCK):
            block = slice(first, first + _BLOCK)
            images = x[block].permute(0, 1, 3, 4, 2).flatten(0, 1).contiguous()
            labels, slots = y[block].flatten(), users.y.shape[1]
            own = begin.repeat(len(x[block]), 1)
            for number in range(index.shape[1]):
                for members, width in self._groups(counts[block, number], idle):
                    rows = torch.from_numpy((members[:, None] * slots + index[first + members, number, :width]).ravel())
                    chosen = torch.from_numpy(np.arange(width) < counts[first + members, number, None]).to(start)
                    held = own[members]
                    step(held, images[rows], labels[rows], chosen, first + members)
                    own[members] = held
            updates[block] = (own - begin).index_select(1, back)
        return updates

    def _groups(self, counts: np.ndarray, idle: bool) -> Iterator[tuple[np.ndarray, int]]:
        """Users with about equally many examples (U,) in a step, and the most of any of them, group by group."""
        ranking = np.argsort(-counts, kind="stable")
        ranking = ranking if idle else ranking[counts[ranking] > 0]
        while len(ranking):
            width = int(counts[ranking[0]])
            size = max(1, self.rows // max(1, width))
            yield np.sort(ranking[:size]), width
            ranking = ranking[size:]


def _side(module: nn.Module, dim: int) -> Side:
    """Kernel, stride and padding along the height (0) or the width (1); those of a single position for other layers."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d):
        return 1, 1, 0
    numbers = (module.kernel_size, module.stride, module.padding)
    kernel, stride, padding = (number if isinstance(number, int) else int(number[dim]) for number in numbers)
    return kernel, stride, padding


def _extents(modules: list[nn.Module], size: int, dim: int) -> list[int]:
    """Rows (or columns) at the input of each layer and at the last output that reach a later layer's output at all."""
    sides = [_side(module, dim) for module in modules]
    full = [size]
    for kernel, stride, padding in sides:
        full.append((full[-1] + 2 * padding - kernel) // stride + 1)
    needed = [full[-1]]
    for (kernel, stride, padding), there in zip(reversed(sides), reversed(full[:-1]), strict=True):
        needed.append(min(there, (needed[-1] - 1) * stride + kernel - padding))
    return needed[::-1]


def _plain(module: nn.Module) -> bool:
    """Whether a layer has none of the options that are not done here."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d):
        return True
    if isinstance(module.padding, str) or module.dilation not in (1, (1, 1)):
        return False
    if isinstance(module, nn.MaxPool2d):
        return module.padding in (0, (0, 0)) and not module.ceil_mode and not module.return_indices
    fits = all(padding < kernel for kernel, padding in zip(module.kernel_size, module.padding, strict=True))
    return fits and module.groups == 1 and module.padding_mode == "zeros"
