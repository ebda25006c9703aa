"""What rules compute of a round's messages (U, P) float32: in float64, some columns at a time, so that no second copy
of the messages is made, and in an order that depends on shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

BLOCK = 2**20
"""Numbers that are looked at at once."""


def columns(messages: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of columns, (U, B) float64, and which they are."""
    width = max(1, BLOCK // len(messages))
    for first in range(0, messages.shape[1], width):
        place = slice(first, min(first + width, messages.shape[1]))
        yield place, messages[:, place].astype(np.float64)


def weighted(messages: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_u weights[u] * messages[u], (P,) float64."""
    total = np.zeros(messages.shape[1])
    for place, block in columns(messages):
        total[place] = weights @ block
    return total


def distances(messages: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """L2 distance of each message to `centre` (P,), (U,) float64."""
    squares = np.zeros(len(messages))
    for place, block in columns(messages):
        apart = block - centre[place]
        squares += np.einsum("up,up->u", apart, apart)
    return np.sqrt(squares)


def norms(messages: np.ndarray) -> np.ndarray:
    """L2 norm of each message, (U,) float64."""
    return distances(messages, np.zeros(messages.shape[1]))


def gram(messages: np.ndarray) -> np.ndarray:
    """Inner products of all pairs, (U, U) float64."""
    total = np.zeros((len(messages), len(messages)))
    for _, block in columns(messages):
        total += block @ block.T
    return (total + total.T) / 2


def cosines(products: np.ndarray) -> np.ndarray:
    """Cosine of the angle of each pair, (U, U), from the products of all pairs; 0 where one of them is zero."""
    lengths = np.sqrt(np.diag(products))
    scale = np.where(lengths > 0, lengths, 1.0)
    return np.clip(products / scale[:, None] / scale[None, :], -1.0, 1.0)


def squared_distances(messages: np.ndarray) -> np.ndarray:
    """Squared L2 distance of each pair, (U, U) float64; what cannot be told from 0 in float64 is 0."""
    products = gram(messages)
    squares = np.diag(products)
    both = squares[:, None] + squares[None, :]
    found = both - 2 * products
    found[found <= 1e-12 * both] = 0
    return found


def trimmed(messages: np.ndarray, cut: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each coordinate without its `cut` smallest and `cut` largest numbers, 2 cut < U, (P,) float64; and
    the share of coordinates in which a message is kept, (U,). Equal numbers share equally in what is kept of them, or
    coordinates that nobody changes would all count for the same user."""
    kept = len(messages) - 2 * cut
    centre, shares = np.zeros(messages.shape[1]), np.zeros(len(messages))
    for place, block in columns(messages):
        rows = np.ascontiguousarray(block.T)
        ranked = np.partition(rows, (cut, len(messages) - cut - 1), axis=1)
        low, high = ranked[:, cut, None], ranked[:, len(messages) - cut - 1, None]
        weights = ((rows > low) & (rows < high)).astype(np.float64)
        for edge in (low, high):
            same = rows == edge
            below = (rows < edge).sum(axis=1)
            ties = same.sum(axis=1)
            stay = np.minimum(below + ties, len(messages) - cut) - np.maximum(below, cut)
            weights = np.where(same, (stay / ties)[:, None], weights)
        centre[place] = np.einsum("pu,pu->p", weights, rows) / kept
        shares += weights.sum(axis=0)
    return centre, shares / messages.shape[1]


def whole_part(share: float, count: int) -> int:
    """floor(share * count), of numbers as they are written: 0.29 of 100 is 29, though in float64 it is less."""
    return math.floor(round(share * count, 9))
