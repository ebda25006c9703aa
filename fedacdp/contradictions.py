"""Measured success against its bounds: which of them do the runs of a table contradict?

A ceiling bounds the expectation over training noise, so it is compared with the mean over seeds and its uncertainty; a
certified floor may fail with probability delta in each run, so failures are counted. Where every bound holds, anything
at all is flagged in at most a share LEVEL of all tables: the level is divided by the number of points (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import optimize, stats

from fedacdp.theory import ceilings

LEVEL = 0.05
SAID = "contradicted: "
"""How the note of a contradicted bound begins."""


def least_mean(values: Sequence[float] | np.ndarray, level: float) -> float:
    """A lower confidence limit, one-sided at `level`, of the mean of n independent values in [0, 1].

    Student's: mean - t(1 - level, n - 1) s / sqrt(n). Where there is one value or all are equal, so that s says nothing
    (success sticks to 0 and 1), Hoeffding's, which holds for every distribution on [0, 1]: the mu below the mean at
    which n kl(mean, mu) = ln(1 / level), kl that of two coins (Hoeffding 1963, theorem 1).
    """
    given = np.asarray(values, float)
    mean, n = float(given.mean()), len(given)
    spread = float(given.std(ddof=1)) if n > 1 else 0.0
    if spread > 0:
        return max(0.0, mean - float(stats.t.isf(level, n - 1)) * spread / math.sqrt(n))
    if mean <= 0:
        return 0.0

    def short(mu: float) -> float:
        kl = mean * math.log(mean / mu) + (0 if mean == 1 else (1 - mean) * math.log((1 - mean) / (1 - mu)))
        return n * kl - math.log(1 / level)

    lowest = 1e-300
    return float(optimize.brentq(short, lowest, mean, xtol=1e-12)) if short(lowest) > 0 else 0.0


def above_ceiling(success: Sequence[float], baseline: Sequence[float], shift: float, level: float) -> str:
    """How the runs of one point contradict the ceiling Phi(Phi^-1(S0) + shift), empty if they do not: the lower limit
    of mean success is above the ceiling at the upper limit of the mean baseline, each limit at level / 2."""
    low = least_mean(success, level / 2)
    most = 1 - least_mean(1 - np.asarray(baseline, float), level / 2)
    ceiling = ceilings.separated(most, shift)
    if low <= ceiling:
        return ""
    return (
        f"{SAID}mean success {np.mean(success):.3f} over {len(success)} runs, at least {low:.3f}, is above the "
        f"ceiling, at most {ceiling:.3f}"
    )


def below_floor(success: Sequence[float], floor: Sequence[float], delta: float, level: float) -> str:
    """How the runs of one point contradict floors that hold with probability 1 - delta each, empty if they do not: so
    many failures, or more, have a chance below `level` (binomial)."""
    failures, runs = int((np.asarray(success) < np.asarray(floor)).sum()), len(success)
    if failures == 0 or stats.binom.sf(failures - 1, runs, delta) >= level:
        return ""
    return f"{SAID}{failures} of {runs} runs are below a floor that may fail with probability {delta:g}"


def told(frame: pd.DataFrame) -> list[str]:
    """The contradictions of a tidy table, a sentence for each point."""
    flagged = frame[frame["note"].str.startswith(SAID)]
    points = flagged.drop_duplicates(["study", "setting", "alpha", "metric", "group", "note"])
    return [
        f"{row.setting}, alpha = {row.alpha:g}, {row.metric} of {row.group}: {row.note.removeprefix(SAID)}"
        for row in points.itertuples()
    ]
