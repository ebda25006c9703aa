"""What an attack found, beside what chance gives, what theory allows, and what is found where nobody is a member."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from fedacdp.anonymity import RATES, Links, Roc
from fedacdp.privacy.base import Noisy
from fedacdp.setting import Setting
from fedacdp.theory.audit import auc_limit, interval, tpr_limit
from fedacdp.theory.detection import direction_auc
from fedacdp.watching import Seen, View

LEAST = 10
"""Others, or linked users, without whom nothing is told; of members there must be two."""


@dataclass(frozen=True)
class Finding:
    """One number of an attack, None where it is not measurable (`note` says why), its 95 % interval, what chance gives,
    the ceiling that a guarantee sets where it sets one, and the same number where the collective is absent."""

    attack: str
    measure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    ceiling: float | None = None
    control: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Ceiling:
    """How far the worlds that an attack tells apart can be: `mu` in Gaussian DP, or else a `curve`, delta (G,) at
    epsilon (G,); None where no guarantee is against who looks, which `why` says. `swaps`: the AUC orders two persons of
    one run, who are `swaps` mu apart from having swapped places; sqrt(2) is that of two runs of one person."""

    why: str
    mu: float | None = None
    swaps: float = math.sqrt(2)
    curve: tuple[np.ndarray, np.ndarray] | None = None

    def tpr(self, false_positive: float) -> float | None:
        """TPR <= Phi(Phi^-1(FPR) + mu), or that of the curve."""
        if self.curve is not None:
            return tpr_limit(false_positive, *self.curve)
        return None if self.mu is None else float(ndtr(ndtri(false_positive) + self.mu))

    @property
    def auc(self) -> float | None:
        """AUC <= Phi(swaps mu / 2): a test that says which of two scores is higher errs as often the other way round
        where the two have swapped places. Derived; with sqrt(2) it is the area under the curve of `tpr`."""
        if self.curve is not None:
            return auc_limit(*self.curve)
        return None if self.mu is None else float(ndtr(self.swaps * self.mu / 2))


def ceiling(setting: Setting, view: View, reports: int) -> Ceiling:
    """The ceiling for singling out members, where nobody sends more than `reports` messages. Exact for scores that look
    at one person's messages; for others, as far as one member more or less among everybody else does not matter.

    `local_update`: being a member is a replacement, mu is that of the guarantee, and the noises of two persons are
    independent. `central`, whose sum is seen together with who took part, so that sampling hides nothing: a replacement
    is 2 sqrt(reports) / z, and two persons in the same rounds share one noise.
    """
    mechanism, name = setting.mechanism, setting.mechanism.name
    if setting.strategy.protocols - {"compliant", "fills_clip"}:
        return Ceiling("members leave out their noise, nothing hides them")
    if isinstance(mechanism, Noisy) and mechanism.multiplier > 0:
        if name == "local_update" and view != "messages":
            return Ceiling("replacing all messages of a user", mechanism.releases(setting.plan).mu)
        if name == "central" and view == "sum":
            mu = 2 * math.sqrt(max(1, reports)) / mechanism.multiplier
            return Ceiling("replacing a user, where it is known who took part", mu, 2.0)
    return Ceiling(f"no guarantee of {name} to users is against who sees {_SEES[view]}")


def singled_out(setting: Setting, view: View, seen: Seen, control: Seen | None) -> tuple[list[Finding], dict[str, Roc]]:
    """How well each score singles out members, and its curve. `control`: the same run without its collective."""
    if view == "models":
        return [_nothing("singling out", "whose messages a model holds is not seen; see membership and canaries")], {}
    judged = (seen.pooled.counts > 0) & ~seen.guides
    member, other = judged & setting.member, judged & ~setting.member
    if member.sum() < 2 or other.sum() < LEAST:
        return [_nothing("singling out", f"{member.sum()} members and {other.sum()} others were seen")], {}
    limit = ceiling(setting, view, int(seen.pooled.counts[judged].max()))
    found, curves = [], {}
    for name in seen.pooled.sums:
        values = seen.pooled.of(name)
        roc = curves[name] = Roc(values[other], values[member])
        absent = None
        if control is not None and name in control.pooled.sums:
            sent = (control.pooled.counts > 0) & ~control.guides
            honest = control.pooled.of(name)
            if (sent & setting.member).any() and (sent & ~setting.member).any():
                absent = Roc(honest[sent & ~setting.member], honest[sent & setting.member])
        expected = ""
        if name == "direction" and view in ("messages", "noised") and seen.along is not None:
            expected = _expected(setting, seen, float(seen.pooled.counts[member].mean()))
        found += told(name, roc, limit, absent, expected)
        k = len(roc.members)
        share = k / (k + len(roc.others))
        found.append(
            Finding(
                name,
                f"precision at {k}",
                roc.precision,
                chance=share,
                control=None if absent is None else absent.precision,
            )
        )
    return found, curves


def told(attack: str, roc: Roc, limit: Ceiling, absent: Roc | None = None, note: str = "") -> list[Finding]:
    """AUC and true-positive rates of a curve; rates for which there are too few others are not measurable."""
    auc, error = roc.auc
    low, high = max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error)
    control = None if absent is None else absent.auc[0]
    found = [Finding(attack, "AUC", auc, low, high, 0.5, limit.auc, control, note)]
    for rate in RATES:
        name = f"TPR at {100 * rate:g} % FPR"
        try:
            value, low, high = roc.tpr(rate)
        except ValueError as error:
            found.append(Finding(attack, name, None, chance=rate, ceiling=limit.tpr(rate), note=str(error)))
            continue
        control = absent.tpr(rate)[0] if absent is not None and absent.measurable(rate) else None
        found.append(Finding(attack, name, value, low, high, rate, limit.tpr(rate), control))
    return found


def linked(setting: Setting, seen: Seen) -> list[Finding]:
    """How well two messages of one user can be told to be of one user: of everybody, and of members among members."""
    found = []
    for who, chosen in (("linking anybody", np.ones(len(seen.linked), bool)), ("linking members",
                        setting.member[seen.linked])):  # fmt: skip
        links = Links(seen.links.first[chosen], seen.links.second[chosen])
        n = len(links.first)
        if n < LEAST:
            found.append(_nothing(who, f"{n} such users of those who are followed sent twice, {LEAST} are needed"))
            continue
        auc, error = links.roc.auc
        found.append(Finding(who, "AUC", auc, max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error), 0.5))
        low, high = interval(links.matched, n)
        found.append(Finding(who, "nearest is the same", links.matched / n, low, high, 1 / n, note=f"{n} users"))
    return found


def _expected(setting: Setting, seen: Seen, reports: float) -> str:
    """What the closed form says of a known direction."""
    assert seen.along is not None
    noise = setting.mechanism.sigma if isinstance(setting.mechanism, Noisy) and setting.mechanism.own_noise else 0.0
    spread = float(np.hypot(noise, seen.along.spread))
    if spread == 0 or seen.along.distance <= 0:
        return ""
    auc = direction_auc(seen.along.distance, spread, max(1, round(reports)))
    return (
        f"members are {seen.along.distance:.3g} apart from others there, others' spread {seen.along.spread:.3g}, noise "
        f"{noise:.3g}, {reports:.3g} messages: Phi(D sqrt(T) / (sqrt(2) sigma)) = {auc:.3f}"
    )


def _nothing(attack: str, why: str) -> Finding:
    return Finding(attack, "AUC", None, chance=0.5, note=f"not measurable: {why}")


_SEES: dict[View, str] = {
    "messages": "updates before any noise",
    "noised": "each message",
    "sum": "the sum and who took part",
    "models": "the models",
}
