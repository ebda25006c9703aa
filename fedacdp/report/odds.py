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
    """A bound in percent to one decimal, never rounded down, with more decimals where one would make it 100."""
    for places in range(1, 12):
        text = f"{math.ceil(percentage * 10**places - 1e-9) / 10**places:.{places}f}"
        if float(text) < 100:
            return text
    return "100"


def odds(guarantee: dict[str, Any]) -> str:
    """The odds sentence of a guarantee as the manifest has it. Wording after Nanayakkara et al. 2023, "What are the
    chances? Explaining the epsilon parameter in differential privacy" (USENIX Security)."""
    epsilon = float(guarantee["epsilon"])
    if not math.isfinite(epsilon):
        return "Nothing limits how well an attacker can tell who took part."
    bound = rounded_up(100 * detection_bound(epsilon, float(guarantee["delta"])))
    unit, replaced = guarantee["unit"], guarantee["adjacency"] == "replace_one"
    if unit == "user":
        verb = ("did not contribute what the attacker suspects", "did") if replaced else ("did not take part", "did")
        absent, present = f"100 people who {verb[0]}", f"100 who {verb[1]}"
    else:
        verb = ("are not what the attacker suspects", "are") if replaced else ("were not used in training", "were")
        absent, present = f"100 {unit}s that {verb[0]}", f"100 that {verb[1]}"
    return f"Of {absent}, an attacker who flags 1 by mistake flags at most {bound} of {present}."
