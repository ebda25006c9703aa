"""Floors: success that a collective is guaranteed, and the critical mass at which it is.

Success of planting is S(alpha) = Pr[f(g(x)) = y*]. The forms without a suboptimality are for a learner that predicts
the most frequent label at every point of the exact mixture alpha P* + (1 - alpha) P0 (Hardt, Mazumdar, Mendler-Duenner,
Zrnic, ICML 2023, arXiv 2302.04262: shapes of the theorems second-hand, proofs derived for this project). A floor is cut
at 0, which says that nothing is guaranteed. A critical mass is infinite where no collective suffices.

gap: Delta, the largest max_{y' != y*} P0(y'|x) - P0(y*|x) over the signal set, 0 if that is negative.
mass: xi = P0(signal set). target_rate: p, the smallest P0(y*|x) over all x. wanted: the success S* that is asked for.
"""

from __future__ import annotations

import math
from typing import Literal

from fedacdp.theory.domain import inside, not_negative, one_of, positive, share

Budget = Literal["table", "cell"]
"""What the suboptimality bounds: the total variation moved in the whole table, or at each point apart."""


def feature_label(alpha: float, gap: float, mass: float, suboptimality: float = 0.0, budget: Budget = "table") -> float:
    """S >= 1 - ((1 - alpha) gap mass + 2 e) / alpha, with e = suboptimality of the learner in total variation.

    Strategy (g(x), y*). e = 0: Hardt et al. 2023, Theorem 1 (shape second-hand). e > 0: derived; with budget = "cell",
    S >= 1 - (1 - alpha)/alpha * mass (gap + 2e) / (1 - 2e), which needs e < 1/2. Not the paper's own term in e.
    """
    rivals, moved = _rivals(gap, mass, suboptimality, budget)
    return _floor(share("alpha", alpha), (1 - alpha) * rivals + moved, alpha)


def feature_label_mass(
    wanted: float, gap: float, mass: float, suboptimality: float = 0.0, budget: Budget = "table"
) -> float:
    """alpha* = (gap mass + 2e) / (1 - S* + gap mass), the alpha at which `feature_label` reaches `wanted`. Derived."""
    rivals, moved = _rivals(gap, mass, suboptimality, budget)
    return _mass(rivals + moved, 1 - share("wanted", wanted) + rivals)


def feature_only(alpha: float, target_rate: float, mass: float) -> float:
    """S >= 1 - (1 - p) mass / (alpha p). Strategy (g(x), y*) where y = y*, otherwise (x, y) unchanged.

    Hardt et al. 2023, Theorem 2 (shape second-hand, via Gauthier et al. 2025), proof derived.
    """
    p = share("target_rate", target_rate)
    return _floor(share("alpha", alpha), (1 - p) * share("mass", mass), alpha * p)


def feature_only_mass(wanted: float, target_rate: float, mass: float) -> float:
    """alpha* = (1 - p) mass / (p (1 - S*)). Derived from `feature_only`."""
    p = share("target_rate", target_rate)
    return _mass((1 - p) * share("mass", mass), p * (1 - share("wanted", wanted)), p)


def feature_only_x0(alpha: float, target_rate: float, gap: float, mass: float) -> float:
    """S >= 1 - (1 - alpha) gap mass / (alpha p). Strategy (g(x), y*) where y = y*, otherwise (x0, y).

    x0 lies outside the signal set. Strategy of Gauthier, Bach, Jordan 2025 (arXiv 2502.04879, Definition 3.4); floor
    derived.
    """
    p = share("target_rate", target_rate)
    rivals = share("gap", gap) * share("mass", mass)
    return _floor(share("alpha", alpha), (1 - alpha) * rivals, alpha * p)


def feature_only_x0_mass(wanted: float, target_rate: float, gap: float, mass: float) -> float:
    """alpha* = gap mass / (p (1 - S*) + gap mass). Derived from `feature_only_x0`."""
    p = share("target_rate", target_rate)
    rivals = share("gap", gap) * share("mass", mass)
    return _mass(rivals, p * (1 - share("wanted", wanted)) + rivals, p)


def erasing(alpha: float, spread: float) -> float:
    """S = Pr[f(g(x)) = f(x)] >= 1 - 2 (1 - alpha) tau / alpha, tau = `spread` = E max_y |P0(y|x) - P0(y|g(x))|.

    Strategy (x, modal label at g(x)); needs g(g(x)) = g(x). Hardt et al. 2023 (shape second-hand), proof derived.
    """
    return _floor(share("alpha", alpha), 2 * (1 - alpha) * share("spread", spread), alpha)


def erasing_mass(wanted: float, spread: float) -> float:
    """alpha* = 2 tau / (1 - S* + 2 tau). Derived from `erasing`."""
    tau = share("spread", spread)
    return _mass(2 * tau, 1 - share("wanted", wanted) + 2 * tau)


def off_script(alpha: float, gap: float, mass: float, off: float, rival: float) -> float:
    """S >= 1 - (1 - alpha) gap mass / (alpha (1 - rho - r)), for `feature_label` with members off script.

    off: rho, the share of members that does not play (g, y*). rival: r <= rho, the largest share of members that plays
    g with one same wrong label. Nobody else touches the signal set. Derived. 0 where rho + r >= 1.
    """
    rho, r = share("off", off), share("rival", rival)
    if r > rho:
        raise ValueError(f"rival = {r}: must not exceed off = {rho}")
    rivals = share("gap", gap) * share("mass", mass)
    return _floor(share("alpha", alpha), (1 - alpha) * rivals, alpha * (1 - rho - r))


def redirecting(distance: float, rate: float, lr: float, rounds: int) -> float:
    """-(1 - lr B)^T distance, a floor on -||theta_T - theta*|| without noise; 0 < lr B < 1.

    distance: ||theta_0 - theta*||; rate: B = alpha kappa, the pull of the collective's mean gradient
    kappa (theta - theta*). Hardt et al. 2023 (gradient redirecting, second-hand), proof derived.
    """
    return -(_contraction(rate, lr) ** _rounds(rounds)) * not_negative("distance", distance)


def neutralising_mass(gradient_norm: float, clip_norm: float) -> float:
    """alpha >= ||g0|| / (||g0|| + C): the share whose gradients, clipped to C, can cancel the others' mean g0.
    Derived."""
    norm, bound = not_negative("gradient_norm", gradient_norm), positive("clip_norm", clip_norm)
    return norm / (norm + bound)


def feasible_rate(alpha: float, gradient_norm: float, clip_norm: float, distance: float) -> float:
    """B <= max(0, alpha C - (1 - alpha) ||g0||) / ||theta - theta*||: rates that clipped gradients can give. Derived.

    By the triangle inequality, so sufficient; infinite at distance 0 if the collective can cancel the others.
    """
    norm, bound = not_negative("gradient_norm", gradient_norm), positive("clip_norm", clip_norm)
    left = max(0.0, share("alpha", alpha) * bound - (1 - alpha) * norm)
    far = not_negative("distance", distance)
    return left / far if far > 0 else (math.inf if left > 0 else 0.0)


def noise_growth(rate: float, lr: float, rounds: int) -> float:
    """f1 = lr sqrt((1 - (1 - lr B)^(2T)) / (1 - (1 - lr B)^2)): noise of all rounds per noise on a round. Derived."""
    _contraction(rate, lr)  # is in range
    pull = lr * rate
    return lr * math.sqrt(-math.expm1(2 * _rounds(rounds) * math.log1p(-pull)) / (pull * (2 - pull)))


def norm_bound(dimension: int, failure: float) -> float:
    """f2 = sqrt(d) + sqrt(2 ln(1 / failure)), exceeded by a standard normal in d dimensions with at most that chance.

    Gaussian concentration of a 1-Lipschitz function. `failure` is a chance of failure, not a delta of privacy.
    """
    return math.sqrt(positive("dimension", dimension)) + math.sqrt(-2 * math.log(inside("failure", failure)))


def contraction(
    distance: float, rate: float, lr: float, rounds: int, noise: float, dimension: int, failure: float
) -> float:
    """-(1 - lr B)^T distance - s f1 f2, a floor on -||theta_T - theta*|| with probability 1 - failure under noise.

    For theta_{t+1} - theta* = (1 - lr B)(theta_t - theta*) + lr N(0, s^2 I_d), 0 < lr B < 1, with s = `noise`, the
    standard deviation per coordinate on the MEAN of a round: z C / n central, sigma_l / sqrt(n) local. Shape of
    Solanki, Bhange, Aivodji, Creager 2025 (arXiv 2505.05707, Theorem 2, second-hand), constants derived. It is about
    parameters: a worse floor does not show that success is lower. `redirecting` at noise 0.
    """
    s = not_negative("noise", noise)
    penalty = s * noise_growth(rate, lr, rounds) * norm_bound(dimension, failure)
    return redirecting(distance, rate, lr, rounds) - penalty


def _rivals(gap: float, mass: float, suboptimality: float, budget: Budget) -> tuple[float, float]:
    """The rivals' mass in the floor, and the total variation that the learner may move besides."""
    one_of("budget", budget, ("table", "cell"))
    rivals, e = share("gap", gap) * share("mass", mass), not_negative("suboptimality", suboptimality)
    if budget == "table":
        return rivals, 2 * e
    if e >= 0.5:
        raise ValueError(f"suboptimality = {e}: must be below 1/2 with budget = 'cell'")
    return mass * (gap + 2 * e) / (1 - 2 * e), 0.0


def _floor(alpha: float, against: float, own: float) -> float:
    """1 - against / own, 0 if that is negative or nobody is there."""
    return 1 - against / own if alpha > 0 and own > against else 0.0


def _mass(against: float, room: float, own: float = 1.0) -> float:
    """against / room as a critical mass, infinite above 1; `own` is what a member puts on the target."""
    if own == 0:
        return math.inf
    if against == 0:
        return 0.0
    return against / room if against <= room else math.inf


def _contraction(rate: float, lr: float) -> float:
    """1 - lr B, what is left of a distance after a round."""
    keep = 1 - positive("lr", lr) * positive("rate", rate)
    if keep <= 0:
        raise ValueError(f"lr * rate = {lr * rate}: must be below 1")
    return keep


def _rounds(rounds: int) -> int:
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}: must be at least 1")
    return rounds
