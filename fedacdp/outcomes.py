"""What a collective achieved, from the rows of a run and of its baseline: pure functions of numbers.

The baseline is the same experiment without a collective, with the same random numbers, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def accuracy_drop(before: float, after: float, chance: float | None = None) -> float:
    """A(0) - A(alpha), what poisoning takes from the platform; with `chance`, the accuracy of guessing, as a share of
    all that can be taken: (A(0) - A(alpha)) / (A(0) - chance). ValueError if nothing can be taken."""
    return before - after if chance is None else gap_lost(before, after, chance)


def gap_lost(full: float, now: float, impersonal: float) -> float:
    """(full - now) / (full - impersonal): the share lost of what the model on everybody's data is better than one that
    tells nobody apart, as item means or the most frequent class (from Vincent, Hecht, Sen 2019, WWW). Any score where
    more is better, of the same records. ValueError if the full model is not better."""
    if full <= impersonal:
        raise ValueError(f"full = {full:g}: there is no gap above {impersonal:g}")
    return (full - now) / (full - impersonal)


def amplification(success: float, baseline: float, alpha: float) -> float:
    """(S(alpha) - S(0)) / alpha: the rise of the success per share of users who act; above 1, it is more than their
    share (after Baumann, Mendler-Duenner 2024, arXiv 2404.04269). ValueError for alpha = 0."""
    if alpha <= 0:
        raise ValueError(f"alpha = {alpha:g}: must be above 0")
    return (success - baseline) / alpha


def constructiveness(together: float, alone: float, nobody: float) -> float:
    """CT(i, j) = g_i(i and j) / g_i(nobody) - g_i(i) / g_i(nobody): what collective j adds to the success g_i of
    collective i, as a multiple of what it is when nobody acts; below 0, j hinders (Karan et al. 2025, arXiv
    2505.00195). ValueError if that is 0."""
    if nobody <= 0:
        raise ValueError(f"nobody = {nobody:g}: success without collectives must be above 0")
    return (together - alone) / nobody


def persistence(rounds: Sequence[int], success: Sequence[float], stop: int) -> tuple[int, bool] | None:
    """Rounds from `stop`, the last round of action, to the first in which success is below half of what it was when
    last measured by then, and whether that happened: if not, so many rounds at least. Of the measured rounds only.
    None if success was 0, or not measured before and after."""
    ordered = sorted(zip(rounds, success, strict=True))
    until, after = [pair for pair in ordered if pair[0] <= stop], [pair for pair in ordered if pair[0] > stop]
    if not until or not after or until[-1][1] <= 0:
        return None
    fallen = [number for number, value in after if value < until[-1][1] / 2]
    return (fallen[0] - stop, True) if fallen else (after[-1][0] - stop, False)


def utility(labels: Mapping[str, float], accuracy: Mapping[str, float]) -> float | None:
    """The mean over users of their chance to be answered rightly: sum of labels[c] * accuracy[c] over the classes,
    labels = the mean over users of the shares of their own records, accuracy = hits / held-out records of class c.
    Right if a user's records of a class are like everybody's. Classes without held-out records are left out of both
    sums; None if there are only such."""
    known = {name: share for name, share in labels.items() if name in accuracy}
    total = sum(known.values())
    return sum(share * accuracy[name] for name, share in known.items()) / total if total > 0 else None
