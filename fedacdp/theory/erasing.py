"""Erasing, certified without the assumption of Theorem 3.9 of Gauthier, Bach and Jordan 2025 (arXiv 2502.04879)."""

from __future__ import annotations

import numpy as np

from fedacdp.theory.certificates import Cells, own_and_rivals


def erasing_unassumed(natural: np.ndarray, anchor: np.ndarray, labels: np.ndarray) -> Cells:
    """Members keep x and send the label `labels` (K,) of the cell of g(x), whatever it was chosen by, D included.

    Derived here: where the margins of x and of g(x) are both positive, f(x) and f(g(x)) are that label. No label needs
    to lead anywhere, and any number of members may do. The label is not known beforehand, so that all frequencies are
    bounded from both sides in D and in the others' records: delta~ = delta / (2 + 2 K + 4 K Y). natural (K, Y) and
    anchor (K,) as in `certificates.erasing`. ValueError if g is not idempotent or there are no records.
    """
    natural = np.asarray(natural, float)
    if not np.array_equal(anchor[anchor], anchor):
        raise ValueError("anchor: the signal must be idempotent, g(g(x)) = g(x)")
    if natural.sum() <= 0:
        raise ValueError("counts: the members must have at least one record")
    held = natural / natural.sum()
    share, events = held.sum(axis=1), 2 + 2 * len(held) + 4 * held.size
    return Cells(share, share, *own_and_rivals(held, labels[anchor]), events, anchor=anchor, eta=None)
