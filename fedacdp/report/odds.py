"""What an (epsilon, delta) means as odds: how well the best attacker can tell who was there."""

from __future__ import annotations

import math
from typing import Any

FALSE_ALARMS = 0.01
"""The share of absent people whom the attacker of the page flags by mistake."""


def detection_bound(epsilon: float, delta: float, false_positive_rate: float = FALSE_ALARMS) -> float:
    """The largest true-positive rate that (epsilon, delta)-DP leaves to any attacker with this false-positive rate:

    TPR <= min(e^epsilon FPR + delta, 1 - e^-epsilon (1 - delta - FPR)), at most 1.

    Kairouz, Oh, Viswanath 2015, "The composition theorem for differential privacy", Theorem 2.1 (both error regions).
    """
    first = math.exp(min(epsilon, 700.0)) * false_positive_rate + delta
    return min(1.0, first, 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positive_rate))


def rounded_up(percentage: float) -> str:
    """A bound in percent, never rounded down, and written as 100 only if it is 100."""
    if percentage >= 100:
        return "100"
    digits = 1 if percentage < 99 else math.ceil(-math.log10(100 - percentage)) + 1
    for places in range(max(1, digits), 16):
        text = f"{math.ceil(percentage * 10**places - 1e-9) / 10**places:.{places}f}"
        if float(text) < 100:
            return text
    return "100"


def odds(guarantee: dict[str, Any]) -> str:
    """The odds sentence of a guarantee as the manifest has it (wording after Nanayakkara et al. 2023, "What are the
    chances? Explaining the epsilon parameter in differential privacy")."""
    epsilon = float(guarantee["epsilon"])
    if not math.isfinite(epsilon):
        return "Nothing limits how well an attacker can tell who took part."
    bound = rounded_up(100 * detection_bound(epsilon, float(guarantee["delta"])))
    things = "people" if guarantee["unit"] == "user" else f"{guarantee['unit']}s"
    if guarantee["adjacency"] == "replace_one":
        absent, present = f"100 {things} whose data are not what the attacker suspects", "whose data are"
    else:
        absent, present = f"100 {things} {'who' if things == 'people' else 'that'} did not take part", "who did"
        if things != "people":
            absent, present = f"100 {things} that were not used in training", "that were"
    return (
        f"Of {absent}, an attacker who flags 1 by mistake flags at most {bound} of 100 {present}. "
        "This is the worst case that the guarantee allows, not what was measured."
    )
