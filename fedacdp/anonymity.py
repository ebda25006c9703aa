"""How well messages give their senders away: scores of messages, and what a score is worth to who looks.

A score is higher the more likely its sender is to be a member. Which way it points was fixed beforehand, never by who
is a member: an area below 0.5 says that members look more ordinary than others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from fedacdp.theory.audit import FAILURE, interval

RATES = (0.1, 0.01, 0.001)
"""False-positive rates at which true-positive rates are told."""

NEEDED = 10
"""False alarms that must be expected at a rate before anything is said about it: 10 / rate others must be there."""

SCORES = {
    "norm": "the norm",
    "cosine_to_mean": "minus the cosine to the mean of all messages: who pulls elsewhere",
    "pairwise_cosine": "the largest cosine to another message: who acts alike (as FoolsGold)",
    "distance_to_median": "the distance to the coordinate-wise median",
    "krum": "the sum of the distances to the nearest half of the others (as Krum)",
    "spectral": "the projection on the top singular vector of the centred messages, without its sign",
    "direction": "the projection on the campaign's direction, tried out on records of people who are not judged",
}
"""Name of a score -> what it is."""


def scores(messages: np.ndarray, direction: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Every score of the messages (U, P) of a round, U >= 3: (U,) float64 each. `direction` (P,): that in which the
    campaign pulls, where somebody knows it. Of messages that are all zero cosines are 0."""
    rows = messages.astype(np.float64)
    inner = rows @ rows.T
    squares = np.maximum(np.diag(inner), 0)
    norms = np.sqrt(squares)
    mean = inner.mean(axis=1)  # of each message with the mean
    length = math.sqrt(max(0.0, float(mean.mean())))
    cosines = _ratio(inner, norms[:, None] * norms[None, :])
    np.fill_diagonal(cosines, -np.inf)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * inner, 0))
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : max(1, (len(rows) - 1) // 2)]
    centred = inner - mean[:, None] - mean[None, :] + mean.mean()
    values, vectors = np.linalg.eigh(centred)
    found = {
        "norm": norms,
        "cosine_to_mean": -_ratio(mean, norms * length),
        "pairwise_cosine": cosines.max(axis=1),
        "distance_to_median": np.linalg.norm(rows - np.median(rows, axis=0), axis=1),
        "krum": nearest.sum(axis=1),
        "spectral": np.abs(vectors[:, -1]) * math.sqrt(max(0.0, float(values[-1]))),
    }
    if direction is not None:
        found["direction"] = rows @ direction
    return found


def standardised(values: np.ndarray) -> np.ndarray:
    """Scores of a round in standard deviations from their mean, (U,): rounds become comparable. Zeros if all agree."""
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))


class Pooled:
    """Standardised scores of N users over rounds: their mean over a user's messages, times the square root of how many
    it sent, so that those who send seldom are not taken for outliers."""

    def __init__(self, users: int):
        self.sums: dict[str, np.ndarray] = {}
        self.counts = np.zeros(users, np.int64)

    def add(self, ids: np.ndarray, found: dict[str, np.ndarray]) -> None:
        """The scores (U,) of the users `ids` (U,), each once, in one round, standardised."""
        self.counts[ids] += 1
        for name, values in found.items():
            self.sums.setdefault(name, np.zeros(len(self.counts)))[ids] += values

    def of(self, name: str) -> np.ndarray:
        """(N,) float64, 0 for who sent nothing."""
        return self.sums[name] / np.sqrt(np.maximum(self.counts, 1))


@dataclass(frozen=True)
class Roc:
    """Scores of others (A,) and of members (B,), each at least one, and what thresholds make of them. Everybody is
    judged by one threshold: rates are pooled over people."""

    others: np.ndarray
    members: np.ndarray

    @property
    def auc(self) -> tuple[float, float]:
        """The chance that a member scores higher than another, ties half, and its standard error (DeLong, DeLong,
        Clarke-Pearson 1988)."""
        a, b = len(self.others), len(self.members)
        ranks = rankdata(np.concatenate([self.others, self.members]))
        of_others = 1 - (ranks[:a] - rankdata(self.others)) / b
        of_members = (ranks[a:] - rankdata(self.members)) / a
        error = [float(part.var(ddof=1)) / len(part) if len(part) > 1 else math.nan for part in (of_others, of_members)]
        return float(of_members.mean()), math.sqrt(sum(error))

    def rates(self, false_positive: float) -> tuple[int, int]:
        """How many others and members are flagged by the lowest threshold that flags at most this share of others.
        A score that many share is flagged for all of them or for none."""
        allowed = int(false_positive * len(self.others) + 1e-9)
        falling = np.sort(self.others)[::-1]
        bar = falling[allowed] if allowed < len(falling) else -math.inf  # flagged: who is above
        return int((self.others > bar).sum()), int((self.members > bar).sum())

    def measurable(self, false_positive: float) -> bool:
        """Whether there are 10 / rate others."""
        return len(self.others) >= NEEDED / false_positive - 1e-9

    def tpr(self, false_positive: float) -> tuple[float, float, float]:
        """The true-positive rate at this false-positive rate and its 95 % interval (Clopper, Pearson 1934), for the
        threshold as it is. ValueError where there are too few others to say."""
        if not self.measurable(false_positive):
            raise ValueError(f"{len(self.others)} others: {NEEDED / false_positive:.0f} are needed, not measurable")
        hits = self.rates(false_positive)[1]
        return (hits / len(self.members), *interval(hits, len(self.members), FAILURE))

    @property
    def precision(self) -> float:
        """The share of members among the k highest scores, k = their number; those who tie for the last places count
        as they would on average."""
        k = len(self.members)
        bar = np.sort(np.concatenate([self.others, self.members]))[::-1][k - 1]
        above, tied = ((part > bar).sum() for part in (self.members, self.others)), self.members == bar
        sure, wrong = above
        ties = int(tied.sum() + (self.others == bar).sum())
        return float((sure + (k - sure - wrong) * tied.sum() / ties) / k)

    def curve(self, points: int = 200) -> list[tuple[float, float]]:
        """(false-positive rate, true-positive rate) of thresholds, rising, evenly spread on a logarithmic axis."""
        bars = np.unique(np.geomspace(1, len(self.others), points).astype(int))
        found = [self.rates(int(bar) / len(self.others)) for bar in bars]
        return sorted({(alarms / len(self.others), hits / len(self.members)) for alarms, hits in found})


@dataclass(frozen=True)
class Links:
    """How far two messages, of different rounds, give away that they come from one user: n users' first and second
    messages, (n, P) each, both less what is common to the round. Score: their cosine."""

    first: np.ndarray
    second: np.ndarray

    @property
    def cosines(self) -> np.ndarray:
        """Of every first message with every second one, (n, n)."""
        lengths = np.linalg.norm(self.first, axis=1)[:, None] * np.linalg.norm(self.second, axis=1)[None, :]
        return _ratio(self.first @ self.second.T, lengths)

    @property
    def roc(self) -> Roc:
        """Pairs of two users against pairs of one."""
        cosines = self.cosines
        return Roc(cosines[~np.eye(len(cosines), dtype=bool)], np.diag(cosines))

    @property
    def matched(self) -> int:
        """For how many first messages the nearest second one is of the same user; chance: one."""
        return int((self.cosines.argmax(axis=1) == np.arange(len(self.first))).sum())


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.zeros_like(over, dtype=np.float64), where=under > 0)
