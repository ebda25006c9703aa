"""Models as functions of a flat parameter vector."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.dlpack import from_dlpack

from fedacdp.keys import Key
from fedacdp.parts import Part
from fedacdp.products import linear
from fedacdp.users import Schema


class Model(Part):
    """A model, built for a schema. `learns_by` is what it asks of a user's records: gradients for local steps; just to
    be counted, which takes no steps, no learning rate and no batches; or that they are ratings, full-batch steps."""

    learns_by: ClassVar[Literal["gradients", "counts", "ratings"]]

    @abstractmethod
    def net(self, schema: Schema) -> Learner:
        """The model as functions of a flat parameter vector; ValueError if it does not fit the schema."""


class Network(Model):
    """A model that is a torch module. No batch statistics, no dropout, no state besides parameters."""

    learns_by: ClassVar[Literal["gradients", "counts", "ratings"]] = "gradients"

    @abstractmethod
    def module(self, schema: Schema) -> nn.Module:
        """The untrained module, x (m, *F) -> logits (m, classes); ValueError if it does not fit the schema."""

    def net(self, schema: Schema) -> Net:
        if schema.items:
            raise ValueError(f"model.name = {self.name!r}: tells classes apart; ratings need matrix_factorization")
        with torch.device("meta"):
            module = self.module(schema)
        if any(True for _ in module.buffers()):
            raise ValueError(f"model.name = {self.name!r}: modules with buffers (batch statistics) are not allowed")
        return Net(module)


class Learner(ABC):
    """A model without values of its own; P parameters live outside, in one flat vector. What users send is added up
    and moves that vector."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each parameter, in the order of the flat vector."""

    @cached_property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @abstractmethod
    def initial(self, key: Key) -> np.ndarray:
        """Starting values (P,), in the precision that they keep in every round."""

    def moved(self, flat: np.ndarray, total: np.ndarray, lr: float, cohort: float) -> np.ndarray:
        """The parameters (P,) after a round in which `total` (P,) float64 came together, noise included: nothing else
        of the round may be used. A step of lr * total / cohort; none where the platform has no users, cohort = 0."""
        step = lr / cohort if cohort else 0.0
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which the caller looks for
            found: np.ndarray = (flat + step * total).astype(flat.dtype)
        return found

    @abstractmethod
    def predict(self, flat: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The class of each record x (m, *F), (m,) int64, from flat parameters (P,)."""


@dataclass(frozen=True)
class Net(Learner):
    """A torch module as functions of its parameters, in the order of `named_parameters`."""

    module: nn.Module

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self.module.named_parameters()}

    @cached_property
    def dense(self) -> list[tuple[int, int]] | None:
        """(outputs, inputs) of each layer of a net that is Flatten, Linear, ReLU, Linear, ...; None for all others."""
        layers = list(self.module) if isinstance(self.module, nn.Sequential) else []
        expected = [nn.Flatten, nn.Linear] + [nn.ReLU, nn.Linear] * ((len(layers) - 2) // 2)
        if [type(layer) for layer in layers] != expected or any(getattr(layer, "bias", 0) is None for layer in layers):
            return None
        return [(layer.out_features, layer.in_features) for layer in layers if isinstance(layer, nn.Linear)]

    def activations(self, shape: tuple[int, ...]) -> int:
        """How many numbers the layers without layers of their own give for one record of `shape`, in all."""
        found = [0]
        layers = [layer for layer in self.module.modules() if not any(True for _ in layer.children())]
        hooks = [layer.register_forward_hook(lambda _, __, out: found.append(out.numel())) for layer in layers]
        with torch.device("meta"):
            self.module(torch.empty(1, *shape))
        for hook in hooks:
            hook.remove()
        return sum(found)

    def unflatten(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of flat (..., P) by name: (..., *shape)."""
        pieces = flat.split([math.prod(shape) for shape in self.shapes.values()], dim=-1)
        lead = flat.shape[:-1]
        return {
            name: piece.reshape(*lead, *shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def logits(self, parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Logits (m, classes) of x (m, *F)."""
        logits: torch.Tensor = torch.func.functional_call(self.module, parameters, (x,))
        return logits

    def predict(self, flat: np.ndarray, x: np.ndarray, block: int = 2048) -> np.ndarray:
        """The most likely class of each record, (m,) int64, from flat parameters (P,), a block of records at a time."""
        parameters = self.unflatten(torch.from_numpy(flat))
        logits = self.logits if self.dense is None else _dense_logits
        with torch.no_grad():  # from_dlpack, because from_numpy warns of records that are read-only
            found = [
                logits(parameters, from_dlpack(x[first : first + block])).argmax(-1)
                for first in range(0, len(x), block)
            ]
        return torch.cat(found).numpy() if found else np.zeros(0, np.int64)

    def initial(self, key: Key) -> np.ndarray:
        """Starting values (P,) float32: weights and biases uniform on +-1/sqrt(fan in) as torch draws them, norm
        layers at one and zero, embeddings standard normal."""
        rng, values = key.rng(), {}
        for path, layer in self.module.named_modules():
            for name, parameter in layer.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                values[full] = _initial(layer, name, tuple(parameter.shape), rng)
        return np.concatenate([values[name].ravel() for name in self.shapes]).astype(np.float32)


def _dense_logits(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """As `Net.logits` for a dense net, without autograd."""
    values = list(parameters.values())
    x = linear(x.flatten(1), values[0], values[1])
    for weights, bias in zip(values[2::2], values[3::2], strict=True):
        x = linear(x.relu_(), weights, bias)
    return x


def _initial(layer: nn.Module, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        return np.ones(shape) if name == "weight" else np.zeros(shape)
    if isinstance(layer, nn.Embedding):
        return rng.standard_normal(shape)
    weight = getattr(layer, "weight", None)
    fan_in = math.prod(weight.shape[1:]) if isinstance(weight, torch.Tensor) and weight.ndim > 1 else max(1, shape[-1])
    return rng.uniform(-1.0, 1.0, shape) / math.sqrt(fan_in)
