"""Which convolutional networks can be trained by `conv.py`, and how much of each layer has to be computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from fedacdp.local.conv_layers import Sides, Size
from fedacdp.local.conv_weights import read_by
from fedacdp.models.base import Net

_Pair = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """A network that this form can train: its layers on images (height, width, channels), and the place (P,) of each
    parameter of a user's row (channels last) in the network's own order; `places` (P,) is the way back."""

    layers: tuple[nn.Module, ...]
    sizes: tuple[Size, ...]
    image: tuple[int, int, int]
    order: torch.Tensor
    places: torch.Tensor


@lru_cache(maxsize=8)
def plan_of(net: Net, shape: tuple[int, ...]) -> Plan | None:
    """The plan for images (channels, height, width) if the net is a Sequential of convolutions with tanh or ReLU and
    max pooling, Flatten, and dense layers; None for anything else."""
    layers = tuple(net.module) if isinstance(net.module, nn.Sequential) else ()
    flat = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Flatten)]
    if len(shape) != 3 or len(flat) != 1 or not layers or not isinstance(layers[0], nn.Conv2d):
        return None
    spatial, dense = layers[: flat[0]], layers[flat[0] + 1 :]
    if not all(_is_spatial(layer) for layer in spatial) or not all(_is_dense(layer) for layer in dense):
        return None
    whole = layers[flat[0]]
    assert isinstance(whole, nn.Flatten)
    if not dense or not isinstance(dense[-1], nn.Linear) or (whole.start_dim, whole.end_dim) != (1, -1):
        return None
    sizes: list[Size] = [(shape[1], shape[2])]
    for layer in spatial:
        sizes.append(_whole(layer, sizes[-1]))
    if min(sizes[-1]) < 1:
        return None
    channels = [layer.out_channels for layer in spatial if isinstance(layer, nn.Conv2d)][-1]
    order = _order(net, (channels, *sizes[-1]))
    for place in range(len(spatial) - 1, -1, -1):  # what the layer above reads
        sizes[place] = _needed(spatial[place], sizes[place + 1], sizes[place])
    return Plan(layers, tuple(sizes), (shape[1], shape[2], shape[0]), order, order.argsort())


def _order(net: Net, image: tuple[int, int, int]) -> torch.Tensor:
    """For each place in a user's row, channels last, the place in the net's own order, (P,)."""
    first_dense = True
    found = []
    for name, places in net.unflatten(torch.arange(net.size)).items():
        layer = net.module.get_submodule(name.rpartition(".")[0])
        if places.ndim == 4:
            found.append(places.movedim(1, -1).flatten())
        elif places.ndim == 2 and first_dense and isinstance(layer, nn.Linear):
            found.append(places.unflatten(1, image).movedim(1, -1).flatten())
            first_dense = False
        else:
            found.append(places.flatten())
    return torch.cat(found)


def _is_spatial(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        plain = (layer.groups, layer.dilation, layer.padding_mode) == (1, (1, 1), "zeros")
        return plain and layer.bias is not None and isinstance(layer.padding, tuple)
    if isinstance(layer, nn.MaxPool2d):
        return (_two(layer.padding), _two(layer.dilation), layer.ceil_mode) == ((0, 0), (1, 1), False)
    return type(layer) in (nn.Tanh, nn.ReLU)


def _is_dense(layer: nn.Module) -> bool:
    return type(layer) in (nn.Tanh, nn.ReLU) or (isinstance(layer, nn.Linear) and layer.bias is not None)


def sides(layer: nn.Module) -> Sides:
    """Kernel, stride and padding along the height and along the width."""
    assert isinstance(layer, nn.Conv2d | nn.MaxPool2d)
    kernel, stride, padding = _two(layer.kernel_size), _two(layer.stride), _two(layer.padding)
    return (kernel[0], stride[0], padding[0]), (kernel[1], stride[1], padding[1])


def _whole(layer: nn.Module, size: Size) -> Size:
    """Height and width of a layer's whole output."""
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
        return size
    (tall, wide) = size
    height, width = (
        (side + 2 * pad - kernel) // stride + 1
        for side, (kernel, stride, pad) in zip((tall, wide), sides(layer), strict=True)
    )
    return height, width


def _needed(layer: nn.Module, above: Size, whole: Size) -> Size:
    """How much of a layer's input, `whole`, its output of size `above` depends on."""
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
        return above
    both = sides(layer)
    height, width = (
        min(side, read - pad) for side, read, (_, _, pad) in zip(whole, read_by(both, above), both, strict=True)
    )
    return height, width


def _two(value: object) -> _Pair:
    return value if isinstance(value, tuple) else (int(value), int(value))  # type: ignore[call-overload]
