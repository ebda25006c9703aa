"""What a block of users would send: their updates, kept in whatever form is cheapest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import torch

from fedacdp.products import dots


class Updates(ABC):
    """Updates of U users, end of local training minus start, before any mechanism on updates; `draws` noise vectors
    were drawn while they were made."""

    draws: int = 0

    @property
    @abstractmethod
    def norms(self) -> np.ndarray:
        """L2 norm of each update over all parameters together, (U,) float64."""

    @abstractmethod
    def total(self, factors: np.ndarray) -> np.ndarray:
        """sum_u factors[u] * update_u, (P,) float64. An update with factor 0 contributes nothing, finite or not."""

    @abstractmethod
    def stack(self) -> torch.Tensor:
        """Every update, (U, P)."""

    def weighted(self, factors: np.ndarray) -> np.ndarray:
        """factors[u] * update_u, (U, P) float32; zeros where the factor is 0, whatever the update is."""
        rows = self.stack()
        found = rows * torch.from_numpy(np.asarray(factors)).to(rows.device)[:, None]
        found[torch.from_numpy(factors == 0).to(rows.device)] = 0
        weighted: np.ndarray = found.float().cpu().numpy()
        return weighted


class Stacked(Updates):
    """Updates as rows of a matrix (U, P)."""

    def __init__(self, rows: torch.Tensor, draws: int = 0):
        self.rows, self.draws = rows, draws

    @cached_property
    def norms(self) -> np.ndarray:
        norms: np.ndarray = squares(self.rows).sqrt_().cpu().numpy()
        return norms

    def total(self, factors: np.ndarray) -> np.ndarray:
        weights, rows = without_zeros(factors, self.rows)
        total: np.ndarray = (weights.to(rows) @ rows).double().cpu().numpy()
        return total

    def stack(self) -> torch.Tensor:
        return self.rows


def squares(rows: torch.Tensor) -> torch.Tensor:
    """Squared L2 norm of each row of (U, P), (U,) float64. Float32 adds up a thousand numbers at a time: over a million
    at once it would be off by 10^-5, and by so much a clipped update would exceed the clip norm."""
    whole = rows.shape[1] // _PIECE * _PIECE
    pieces, rest = rows[:, :whole].unflatten(1, (-1, _PIECE)), rows[:, whole:]
    return dots(pieces, pieces).double().sum(1) + dots(rest, rest).double()


_PIECE = 1024


def without_zeros(factors: np.ndarray, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (U,) float64 as a tensor, and the rows they weigh, with what has factor 0 left out."""
    kept = torch.from_numpy(np.flatnonzero(factors)).to(rows.device)
    weights = torch.from_numpy(np.asarray(factors, np.float64)).to(rows.device)
    return (weights, rows) if len(kept) == len(weights) else (weights[kept], rows[kept])
