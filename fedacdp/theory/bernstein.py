"""The margin of a certificate by variances instead of the worst case: frequencies of rare cells are known far better
than Hoeffding's inequality says."""

from __future__ import annotations

import numpy as np


def bernstein(
    mass: np.ndarray,
    own: np.ndarray,
    rivals: np.ndarray,
    members: np.ndarray,
    estimating: np.ndarray,
    rest: np.ndarray,
    level: float,
) -> np.ndarray:
    """N times the margin of `certificates.margins`, derived for this project as Theorem 3.3 is in the paper.

    P lies within sqrt(2 p (1-p) ln(2/d) / (k-1)) + 7 ln(2/d) / (3 (k-1)) of a frequency p of k records (empirical
    Bernstein, Maurer and Pontil 2009, COLT, Theorem 4), and a frequency of k further records within
    sqrt(2 P ln(1/d) / k) + ln(1/d) / (3 k) of P (Bernstein). Where Hoeffding goes from D to P and on to the platform's
    records, so does this; a label's frequency in D is bounded from both sides, which costs one more event.

    Frequencies mass and own (K,), rivals (K, R); numbers of records broadcast against (K,): `members` behind the mass,
    `estimating` behind own and rivals, `rest` of non-members; d = `level`.
    """
    once, twice = np.log(1 / level), np.log(2 / level)

    def width(p: np.ndarray, count: np.ndarray) -> np.ndarray:
        k = np.maximum(count - 1, 1e-9)  # one record says nothing
        return np.sqrt(2 * p * (1 - p) * twice / k) + 7 * twice / (3 * k)

    above = np.minimum(rivals + width(rivals, estimating[..., None]), 1).max(axis=-1)
    below, own_above = np.maximum(own - width(own, estimating), 0), np.minimum(own + width(own, estimating), 1)
    # P - sqrt(2 P c) grows in P from P = c / 2 on, and is smallest there.
    least = np.maximum(mass - width(mass, members), once / (2 * members))
    ours = members * least - np.sqrt(2 * least * once * members) - once / 3
    theirs = rest * (above - below) + np.sqrt(2 * once * rest) * (np.sqrt(above) + np.sqrt(own_above))
    return ours - theirs - np.where(rest > 0, 2 * once / 3, 0)
