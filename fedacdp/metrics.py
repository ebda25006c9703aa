"""Metrics of a round. Each has one definition, and its denominator is in its docstring."""

from __future__ import annotations

import numpy as np

Value = tuple[str, str, float]
"""A metric's name, the group it is about ("all" for everybody), and its value."""


def accuracy(guess: np.ndarray, truth: np.ndarray, target: int | None) -> list[Value]:
    """`accuracy`: correct / held-out records; by group: `target_class` records whose true class is the collective's
    target, `other_classes` the rest. Groups without records are left out."""
    hit = guess == truth
    values = [("accuracy", "all", float(hit.mean()))]
    if target is not None:
        for group, rows in {"target_class": truth == target, "other_classes": truth != target}.items():
            if rows.any():
                values.append(("accuracy", group, float(hit[rows].mean())))
    return values


def by_class(guess: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> list[Value]:
    """`class_accuracy`, group = a class: correct / held-out records of that class. Classes without any are left out."""
    total = np.bincount(truth, minlength=len(classes))
    hits = np.bincount(truth[guess == truth], minlength=len(classes))
    return [("class_accuracy", name, float(h / t)) for name, h, t in zip(classes, hits, total, strict=True) if t]


def successes(found: dict[str, float]) -> list[Value]:
    """What a strategy's `success` returned: `success` of group "all", `success@group` of that group. Its denominator is
    in the strategy's docstring."""
    return [(name.partition("@")[0], name.partition("@")[2] or "all", value) for name, value in found.items()]


def cohort(
    sampled: int, norms: np.ndarray, factors: np.ndarray, acting: np.ndarray, weights: np.ndarray, clip: float
) -> list[Value]:
    """What the server's side of the simulation saw in a round, from `sampled` users of whom len(norms) sent an update:

    `cohort_size`: users sampled. `messages`: updates sent; group `acting`: by members following the strategy; where
    there is `dropout` also group `lost`: messages of sampled users that did not arrive, which are in no other number.
    `update_norm`: median L2 norm before clipping, for all, for acting members and for others. `clipped_fraction`:
    updates scaled down / updates sent. `nonfinite_updates`: updates with infinity or NaN, which count as zero.
    `effective_share` of group `acting`: their share of `weights`, what updates weigh in the step: the factors of
    clipping, times what a robust rule leaves of messages (Ben-Dov et al. 2024, arXiv 2405.06582); left out where
    nothing weighs, as in a round of too few messages for the rule. `clip_norm`: in force. A round that the privacy
    mechanism gave up also has `aborted`, 1.
    """
    finite = np.isfinite(norms)
    values = [
        ("cohort_size", "all", float(sampled)),
        ("messages", "all", float(len(norms))),
        ("messages", "acting", float(acting.sum())),
        ("nonfinite_updates", "all", float((~finite).sum())),
        ("clipped_fraction", "all", float(((factors < 1) & finite).mean()) if len(norms) else 0.0),
    ]
    if weights.sum() > 0:
        values.append(("effective_share", "acting", float(weights[acting].sum() / weights.sum())))
    if np.isfinite(clip):
        values.append(("clip_norm", "all", clip))
    for group, rows in {"all": finite, "acting": finite & acting, "others": finite & ~acting}.items():
        if rows.any():
            values.append(("update_norm", group, float(np.median(norms[rows]))))
    return values
