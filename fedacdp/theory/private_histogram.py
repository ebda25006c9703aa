"""The platform as a table of counts, private by Gaussian noise on each of them: exact, so that it needs no run.

The platform counts (cell, label) and predicts the most frequent label of a cell. All formulas are derived for this
project; one record is one user, and members run the randomiser as it is shipped.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import ndtr

from fedacdp.theory.certificates import Cells
from fedacdp.theory.thresholds import first

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(96)
_WEIGHTS = _WEIGHTS / np.sqrt(2 * np.pi)


def predictions(counts: np.ndarray) -> np.ndarray:
    """(K,): the most frequent label of each cell, from counts (K, Y); the first label of those that tie, also in a cell
    without records."""
    return np.asarray(counts).argmax(axis=1)


def noise_sd(mu: float, where: Literal["central", "local"], users: int) -> float:
    """Standard deviation of the noise on each count that makes the table mu-GDP when one user's record is replaced.

    The one-hot record moves by sqrt(2): `central` noise sqrt(2)/mu on the table, `local` the same on every user's
    record, sqrt(2 N)/mu on the sum. ValueError if mu is not positive.
    """
    if not mu > 0:
        raise ValueError(f"mu = {mu}: must be above 0")
    return float(np.sqrt(2 * (users if where == "local" else 1)) / mu)


def total_variation(sd: float, cells: int, labels: int, users: int, failure: float) -> float:
    """eps_s of the private table, with probability 1 - failure: half the sum of |noise| over its K Y counts, over N.

    (sd / (2 N)) (K Y sqrt(2/pi) + sqrt(2 K Y ln(1/failure))), as the sum is sqrt(K Y)-Lipschitz in standard normals
    (Gaussian concentration). For a certificate, `Terms.noise_sd` is sharper: a cell is flipped by its own noise alone.
    """
    size = cells * labels
    return float(sd * (size * np.sqrt(2 / np.pi) + np.sqrt(2 * size * np.log(1 / failure))) / (2 * users))


def win_probability(leads: np.ndarray, sd: float) -> np.ndarray:
    """Probability that a label whose count leads R rivals by `leads` (..., R) is predicted, (...), under noise sd > 0:

    integral of phi(t) prod over rivals of Phi(t + lead / sd) dt, which is Phi(lead / (sqrt(2) sd)) for one rival.
    """
    leads = np.asarray(leads, float) / sd
    if leads.shape[-1] == 1:
        return ndtr(leads[..., 0] / np.sqrt(2))
    found = np.zeros(leads.shape[:-1])
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        found += weight * ndtr(node + leads).prod(axis=-1)
    return found


def agreement(one: np.ndarray, other: np.ndarray, sd: float) -> np.ndarray:
    """Probability that two cells with independent noises are predicted alike, (...): sum over labels of the product of
    their chances. one, other (..., R): the leads of one and the same label over the R others, in the same order."""
    found = win_probability(one, sd) * win_probability(other, sd)
    for rival in range(one.shape[-1]):
        chances = []
        for lead in (one, other):
            turned = lead - lead[..., [rival]]  # of the rival over the others
            turned[..., rival] = -lead[..., rival]
            chances.append(win_probability(turned, sd))
        found += chances[0] * chances[1]
    return found


def leads(cells: Cells, platform_size: int, members: np.ndarray | float) -> np.ndarray:
    """Expected lead of the own label over each rival, in records: (n - n_e) mass - (N - n) (rival - own), (K, R) for
    sizes n that are a number or (K,)."""
    n = np.broadcast_to(np.asarray(members, float), cells.mass.shape)[:, None]
    acting = np.maximum(n - cells.estimators, 0)
    return acting * cells.mass[:, None] - (platform_size - n) * (cells.rivals - cells.own[:, None])


def members_to_win(cells: Cells, platform_size: int, sd: float, wanted: float) -> np.ndarray:
    """(K,): the smallest n that wins each cell with probability `wanted` in (0, 1), at expected counts; inf if none."""
    return first(
        lambda n: win_probability(leads(cells, platform_size, n), sd) >= wanted, 0, platform_size, len(cells.mass)
    )
