"""The effective size of a collective: its share of what a learner weighs, after clipping, sampling and weights.

If a learner minimises sum_i w_i loss_i with weights that are constant among members and among the others, the floors
hold with alpha replaced by the share of weight (it is the same mixture); with weights that differ inside a group the
share is a diagnostic, not a guarantee. The notion is of Ben-Dov, Fawkes, Samadi, Sanyal (ICML 2024, arXiv 2405.06582,
paper); the formulas are derived for this project.
"""

from __future__ import annotations

import math

import numpy as np

from fedacdp.theory.domain import amounts, not_negative, positive, share, shares


def weight_share(weights: np.ndarray, member: np.ndarray) -> float:
    """alpha_eff = sum of members' weights / sum of all weights, (U,) and (U,) bool.

    Weights are what the learner gives a user: numbers of examples (FedAvg), 1 or 0 for an update that a robust rule
    keeps or drops, the share of kept coordinates for a trimmed mean, factors of clipping. Derived. ValueError if
    nobody has weight.
    """
    weights, member = amounts("weights", weights), np.asarray(member, dtype=bool)
    if member.shape != weights.shape:
        raise ValueError(f"member: has shape {member.shape}, weights have {weights.shape}")
    total = weights.sum()
    if total == 0:
        raise ValueError("weights: all are 0")
    return float(weights[member].sum() / total)


def clipped_weights(weights: np.ndarray, norms: np.ndarray, clip_norm: float) -> np.ndarray:
    """w_i min(1, C / ||update_i||), (U,): a user's weight after its update is clipped. Derived."""
    weights, norms = amounts("weights", weights), amounts("norms", norms)
    if norms.shape != weights.shape:
        raise ValueError(f"norms: have shape {norms.shape}, weights have {weights.shape}")
    bound = positive("clip_norm", clip_norm)
    return weights * bound / np.maximum(norms, bound)


def upweighted_share(alpha: float, factor: float, member_errors: float, other_errors: float) -> float:
    """alpha (1 + (l - 1) e_c) / (alpha (1 + (l - 1) e_c) + (1 - alpha)(1 + (l - 1) e_b)): the share after two-stage
    training that weighs the errors of a first model by l = `factor`; e_c and e_b are its error rates among members and
    among the others. Derived, for the learners of Ben-Dov et al. 2024 (paper)."""
    more = not_negative("factor", factor) - 1
    own = share("alpha", alpha) * (1 + more * share("member_errors", member_errors))
    rest = (1 - alpha) * (1 + more * share("other_errors", other_errors))
    if own + rest == 0:
        raise ValueError(f"factor = {factor}: nobody has weight")
    return own / (own + rest)


def drawn_members(members: int, users: int, cohort: int) -> tuple[float, float]:
    """Mean and standard deviation of the members in a cohort of fixed size drawn without replacement: hypergeometric,
    alpha n and sqrt(n alpha (1 - alpha)(N - n)/(N - 1)), n = cohort, N = users (textbook)."""
    alpha = _share_of(members, users)
    if not 0 <= cohort <= users:
        raise ValueError(f"cohort = {cohort}: must be between 0 and users = {users}")
    variance = cohort * alpha * (1 - alpha) * (users - cohort) / max(1, users - 1)
    return cohort * alpha, math.sqrt(variance)


def sampled_members(members: int, sampling_prob: float) -> tuple[float, float]:
    """Mean and standard deviation of the members in a Poisson cohort: binomial, q m, sqrt(m q (1 - q)) (textbook)."""
    q = share("sampling_prob", sampling_prob)
    not_negative("members", members)
    return members * q, math.sqrt(members * q * (1 - q))


def sampled_group_share(shares_of_users: np.ndarray, rates: np.ndarray, group: int) -> float:
    """r_G q_G / sum_p r_p q_p: the influence of group G when privacy groups are sampled at rates of their own (SAMPLE).

    shares_of_users r (G,), rates q (G,). Boenisch et al., NeurIPS 2023 (mechanism: paper; influence: derived).
    """
    return _influence(shares_of_users, shares("rates", rates), group)


def scaled_group_share(shares_of_users: np.ndarray, noise_multipliers: np.ndarray, group: int) -> float:
    """(r_G / s_G) / sum_p r_p / s_p: the influence of group G when privacy groups are clipped in inverse proportion to
    the noise multipliers s that they need (SCALE). Boenisch et al. 2023 (mechanism: paper; influence: derived)."""
    return _influence(shares_of_users, 1 / _noises("noise_multipliers", noise_multipliers), group)


def precision_weighted_share(shares_of_users: np.ndarray, noises: np.ndarray, group: int) -> float:
    """r_G s_G^-2 / sum_p r_p s_p^-2: the influence of group G when local reports are weighted by inverse variance.
    Derived."""
    return _influence(shares_of_users, _noises("noises", noises) ** -2.0, group)


def _influence(shares_of_users: np.ndarray, weights: np.ndarray, group: int) -> float:
    parts = shares("shares_of_users", shares_of_users)
    if parts.shape != weights.shape:
        raise ValueError(f"shares_of_users: has shape {parts.shape}, there are {len(weights)} groups")
    if not math.isclose(parts.sum(), 1, rel_tol=1e-6):
        raise ValueError(f"shares_of_users: sum to {parts.sum()}, must sum to 1")
    if not 0 <= group < len(parts):
        raise ValueError(f"group = {group}: must be between 0 and {len(parts) - 1}")
    return weight_share(parts * weights, np.arange(len(parts)) == group)


def _noises(name: str, values: np.ndarray) -> np.ndarray:
    vector = amounts(name, values)
    if (vector == 0).any():
        raise ValueError(f"{name}: an entry is 0; all must be above 0")
    return vector


def _share_of(members: int, users: int) -> float:
    if users < 1:
        raise ValueError(f"users = {users}: must be at least 1")
    if not 0 <= members <= users:
        raise ValueError(f"members = {members}: must be between 0 and users = {users}")
    return members / users
