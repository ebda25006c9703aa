"""Leverage: what a strike takes from a platform and what contributed data give to its rival, as closed forms."""

from __future__ import annotations

import math

from fedacdp.theory.domain import not_negative, positive


def contribution_power(small: float, large: float, base: float) -> float:
    """DLP = (small - base)/(large - base), of data given to a competitor, with or without a strike at the incumbent.

    Scores, higher is better: small of the competitor, large of the incumbent (the score on all data if nobody strikes),
    base the worst score seen. Vincent, Hecht, CSCW 2021, doi 10.1145/3449177 (paper). ValueError if large = base.
    """
    return _fraction("large", small - base, large - base)


def strike_power(large: float, best: float, base: float) -> float:
    """DLP = (large - best)/(base - best), of a strike alone; best: score on all data. Vincent, Hecht 2021 (paper)."""
    return _fraction("best", large - best, base - best)


def gap_lost(full: float, struck: float, item_mean: float) -> float:
    """(SH_full - SH_strike)/(SH_full - SH_itemmean), the share of the gain by personalisation that a strike destroys.

    Surfaced hits of all users with all data, after the strike, and of the item mean. Derived from the percentages of
    Vincent, Hecht, Sen, WWW 2019, doi 10.1145/3308558.3313742.
    """
    return _fraction("item_mean", full - struck, full - item_mean)


def similar_user_ratio(similar: float, dissimilar: float) -> float:
    """Relative change of surfaced hits for non-members who resemble the strikers, over that for those who do not.

    Vincent, Hecht, Sen 2019 (paper). ValueError if dissimilar is 0.
    """
    return _fraction("dissimilar", similar, dissimilar)


def power_law_loss(data: float, scale: float, exponent: float, limit: float) -> float:
    """L(D) = L0 D^(-b) + L_inf, the loss on D records: scale L0, exponent b, limit L_inf (textbook)."""
    return not_negative("scale", scale) * positive("data", data) ** -positive("exponent", exponent) + limit


def power_law_strike(remaining: float, least: float, exponent: float) -> float:
    """Strike power (f^-b - 1)/(r - 1) under a power-law loss, where a share f = `remaining` of the data is left.

    least: D_min/D_max, the share that gives the worst score; r = least^-b. L0 and L_inf cancel. N. Vincent, notebook
    2021 (second-hand; exponents there: language .095, ImageNet .31, CIFAR-100 .7); proof: insert L into `strike_power`.
    """
    left, worst = _powers("remaining", remaining, least, exponent)
    return left / worst


def power_law_contribution(given: float, least: float, exponent: float) -> float:
    """Contribution power (r - f^-b)/(r - 1) under a power-law loss, where a share f = `given` of the data is given.

    Arguments and source as `power_law_strike`; proof: insert L into `contribution_power`.
    """
    left, worst = _powers("given", given, least, exponent)
    return (worst - left) / worst


def _powers(name: str, held: float, least: float, exponent: float) -> tuple[float, float]:
    """held^-b - 1 and least^-b - 1, without cancellation."""
    if not 0 < least < 1:
        raise ValueError(f"least = {least}: must be above 0 and below 1")
    if not least <= held <= 1:
        raise ValueError(f"{name} = {held}: must be between least = {least} and 1")
    b = positive("exponent", exponent)
    return math.expm1(-b * math.log(held)), math.expm1(-b * math.log(least))


def _fraction(name: str, part: float, whole: float) -> float:
    if not (math.isfinite(part) and math.isfinite(whole)) or whole == 0:
        raise ValueError(f"{name}: the scores give {part} / {whole}, which is no number")
    return part / whole
