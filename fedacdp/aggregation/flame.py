"""FLAME: the largest cluster of directions, clipped to the median norm."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.aggregation.stacked import cosines, gram, weighted


class Flame(Aggregation):
    """The mean of the messages whose directions form one cluster of more than half of all, each scaled down to the
    median norm of all messages if it is longer (Nguyen et al. 2022, USENIX Security; arXiv 2101.02281).

    Clusters: HDBSCAN on 1 - cosine, of at least floor(U / 2) + 1 messages. The paper compares directions of users'
    models, here those of updates are compared. Its noise is left out: it is no mechanism that is accounted for here.
    Where no half outweighs the other, HDBSCAN takes all for one cluster. Needs 3 messages, and makes no step in a round
    of fewer, or without a cluster. A message weighs 0 if it is outside, else by how much it is scaled.
    """

    name: Literal["flame"] = "flame"

    def enough(self, count: int) -> bool:
        return count >= 3

    def combine(self, messages: np.ndarray, ids: np.ndarray, cohort: float, memory: np.ndarray) -> Combined:
        products = gram(messages)
        lengths = np.sqrt(np.diag(products))
        kept = _majority(cosines(products))
        bound = np.median(lengths)
        weights = kept * np.where(lengths > bound, bound / np.where(lengths > 0, lengths, 1.0), 1.0)
        return Combined(cohort * weighted(messages, weights / max(1, kept.sum())), weights, memory)


def _majority(alike: np.ndarray) -> np.ndarray:
    """Which directions are in the cluster of more than half of them, (U,) bool, from their cosines (U, U)."""
    from sklearn.cluster import HDBSCAN  # half a second to import

    apart = 1 - alike
    np.fill_diagonal(apart, 0.0)
    clusters = HDBSCAN(
        min_cluster_size=len(alike) // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    )
    return np.asarray(clusters.fit_predict(apart)) == 0
