"""Noise correlated over rounds so that prefix sums are accurate: its factors, and how far one user moves them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def nodes(round: int) -> list[tuple[int, int]]:
    """The nodes (height, last round) of the binary tree that make up rounds 1 to `round`: each is a block of 2^height
    rounds, one for each one in the binary form of `round`, the largest first."""
    found, done = [], 0
    for height in reversed(range(round.bit_length())):
        if round >> height & 1:
            done += 1 << height
            found.append((height, done))
    return found


@lru_cache(maxsize=256)
def tree_sensitivity(rounds: int, times: int, separation: int) -> float:
    """A bound on the L2 distance by which a user of norm 1 moves the sums of all nodes that are ever released:
    sqrt(max sum over nodes of (times the user is in the node)^2).

    The user takes part at most `times`, at least `separation` rounds apart. Nodes are those of `nodes`, the left ones
    of a binary tree (Kairouz et al. 2021, arXiv 2103.00039; sums of squared counts as in google-research/DP-FTRL,
    privacy.py). Exact for separation 1. For larger ones a node of 2^h rounds holds at most ceil(2^h / separation)
    times, wherever the others are: an upper bound, exact where the separation is a power of two and times large.
    """
    blocks = [np.zeros(2)]  # by height: the most over the nodes within a block, by how often the user is in it
    for height in range(1, rounds.bit_length()):
        left, room = blocks[-1], 1 + min(times, -(-(1 << height) // separation))
        blocks.append(_most(left + np.arange(len(left)) ** 2.0, left)[:room])
    total = np.zeros(1)
    for height, _ in nodes(rounds):
        total = _most(total, blocks[height] + np.arange(len(blocks[height])) ** 2.0)
    return float(np.sqrt(total[: times + 1].max()))


def _most(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """max over i + j = k of first[i] + second[j], for every k."""
    found = np.full(len(first) + len(second) - 1, -np.inf)
    for at, value in enumerate(second):
        part = found[at : at + len(first)]
        np.maximum(part, first + value, out=part)
    return found


def band(bands: int) -> np.ndarray:
    """The first column, (bands,), of a lower triangular Toeplitz matrix C whose columns have norm 1: the square root of
    the matrix of prefix sums, 1, 1/2, 3/8, 5/16, ..., cut to so many bands (Kalinin and Lampert 2024, arXiv
    2405.13763, of Fichtenberger, Henzinger, Upadhyay 2023). Noise is C^-1 times independent noise. As the column is
    positive and falls, C^-1 stays bounded (Enestrom-Kakeya)."""
    steps = np.arange(1, bands)
    column = np.cumprod(np.concatenate([[1.0], (2 * steps - 1) / (2 * steps)]))
    return column / np.linalg.norm(column)
