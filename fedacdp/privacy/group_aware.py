"""Central, user-level differential privacy with a budget for each group of users, and noise that may change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PrivateAttr, model_validator

from fedacdp.keys import Key
from fedacdp.privacy import budgets as groups
from fedacdp.privacy.base import Mechanism, Noise, Plan
from fedacdp.privacy.budgets import Phase, Schedule
from fedacdp.privacy.guarantee import Group, Guarantee, delta_warnings
from fedacdp.theory import effective_size


class GroupAware(Mechanism):
    """As `central`, but each natural group of users has an epsilon of its own (IDP-SGD: Boenisch et al. 2023).

    `budgets = { Female = 4.0, others = 1.0 }`: of every user for the whole run; `others` are all groups not named.

    way = "sample": one noise multiplier z; group p is sampled with chance q_p, and the mean of the chances over users
    is `sampling_prob`. way = "scale": everybody is sampled with that chance; the updates of group p are clipped to
    C_p = C s / s_p, where s_p is the noise multiplier that its epsilon takes, and the noise is s C with
    1/s = sum_p r_p / s_p over the shares r_p of users, so that the mean clip norm is C.

    Instead of budgets the numbers themselves: `noise_multiplier` (z or s, in units of C) with `sampling_probs` or
    `clip_norms` by group; with both, the numbers are refused if they exceed a budget. `schedule`: phases, the last
    until the end, whose noise is a factor times the noise multiplier. Groups and schedule are public and fixed before.
    """

    name: Literal["group_aware"] = "group_aware"
    clips: ClassVar[bool] = True
    unit: ClassVar[str] = "user"
    observer: ClassVar[str] = "model_holder"
    adjacency: ClassVar[str] = "add_or_remove"
    way: Literal["sample", "scale"]
    budgets: dict[str, PositiveFloat] | None = Field(default=None, min_length=1)
    noise_multiplier: float | None = Field(default=None, ge=0)
    sampling_probs: dict[str, float] | None = Field(default=None, min_length=1)
    clip_norms: dict[str, PositiveFloat] | None = Field(default=None, min_length=1)
    schedule: tuple[Phase, ...] = ()
    delta: float = Field(gt=0, lt=1)
    clip_norm: PositiveFloat
    _part: np.ndarray | None = PrivateAttr(default=None)  # (N,) the place of each user's group among `parts`
    _shares: np.ndarray | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        own, other = ("sampling_probs", "clip_norms") if self.way == "sample" else ("clip_norms", "sampling_probs")
        if getattr(self, other) is not None:
            raise ValueError(f'{other}: belongs to way = "{"scale" if self.way == "sample" else "sample"}"')
        given = self.noise_multiplier is not None, getattr(self, own) is not None
        if given[0] != given[1]:
            raise ValueError(f"noise_multiplier, {own}: both must be given, or neither")
        if not given[0] and self.budgets is None:
            raise ValueError(f"budgets: must be given, or noise_multiplier with {own}")
        if given[0] and self.budgets is not None and set(self.budgets) != set(getattr(self, own)):
            raise ValueError(f"budgets, {own}: must be of the same groups")
        for group, chance in (self.sampling_probs or {}).items():
            if not 0 <= chance <= 1:
                raise ValueError(f"sampling_probs.{group} = {chance}: must be from 0 to 1")
        ends = [phase.until for phase in self.schedule]
        if ends != sorted(set(ends)):
            raise ValueError(f"schedule: phases end in rounds {ends}; each must end after the one before")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """The groups that have a budget."""
        return tuple(sorted(self.budgets or self.sampling_probs or self.clip_norms or {}))

    def for_users(self, group: np.ndarray, on_platform: np.ndarray) -> Self:
        found = self.model_copy()
        found._part = groups.placed(self.parts, group)
        counts = np.bincount(found._part[on_platform] if on_platform.any() else found._part, minlength=len(self.parts))
        found._shares = counts / counts.sum()
        return found

    def calibrated(self, plan: Plan) -> Self:
        schedule = self._schedule(plan)
        if self.noise_multiplier is not None:
            self._check_numbers(plan)
            return self.model_copy(update={"budgets": None})
        assert self.budgets is not None
        shares, wanted = self.shares, np.array([self.budgets[part] for part in self.parts])
        rate, here = plan.sampling_prob, shares > 0
        if self.way == "sample":
            found = groups.rates_for(wanted[here], shares[here], self.delta, rate, schedule)
            if found is None:
                names = [part for part, there in zip(self.parts, here, strict=True) if there]
                raise ValueError(groups.cannot(names, wanted[here], shares[here], self.delta, rate, schedule))
            rates = np.zeros(len(wanted))
            rates[here] = found[1]
            return self._with(found[0], sampling_probs=dict(zip(self.parts, rates.tolist(), strict=True)))
        ratios = np.array([groups.ratio_for(float(each), self.delta, rate, schedule) for each in wanted])
        mean = 1 / float((shares / ratios).sum())
        clips = (self.clip_norm * mean / ratios).tolist()
        return self._with(mean, clip_norms=dict(zip(self.parts, clips, strict=True)))

    def _with(self, multiplier: float, **by_group: dict[str, float]) -> Self:
        return self.model_copy(update={"budgets": None, "noise_multiplier": multiplier, **by_group})

    def _check_numbers(self, plan: Plan) -> None:
        """ValueError if the numbers given do not fit the plan, or exceed a budget."""
        if self.sampling_probs is not None and self._shares is not None:
            mean = float(self.shares @ self._by_part(self.sampling_probs))
            if not math.isclose(mean, plan.sampling_prob, rel_tol=1e-6):
                raise ValueError(
                    f"privacy.sampling_probs: their mean over users is {mean:g}; must be training.sampling_prob = "
                    f"{plan.sampling_prob:g}, because sums are divided by that share of the users"
                )
        for part, budget in (self.budgets or {}).items():
            whole = self._spent(part, plan, plan.rounds)
            if whole > budget:
                ratio, rate = self._ratio(part), self._rate(part, plan)
                last = groups.rounds_within(budget, ratio, rate, self._schedule(plan), self.delta)
                raise ValueError(
                    f"privacy.budgets.{part} = {budget:g}: the schedule spends {whole:.4g} of each of its users in "
                    f"{plan.rounds} rounds; the budget lasts for {last}"
                )

    def _schedule(self, plan: Plan) -> Schedule:
        return groups.phases(self.schedule, plan.rounds)

    @property
    def shares(self) -> np.ndarray:
        """The share of each group among the users, in the order of `parts`."""
        if self._shares is None:
            raise ValueError("privacy.budgets: group_aware must be told every user's group first")
        return self._shares

    def _by_part(self, by_group: Mapping[str, float]) -> np.ndarray:
        return np.array([by_group[part] for part in self.parts])

    def chances(self, plan: Plan) -> float | np.ndarray:
        if self.sampling_probs is None or self._part is None:
            return plan.sampling_prob
        return self._by_part(self.sampling_probs)[self._part]

    def clip_now(self, memory: np.ndarray) -> float:
        return self.clip_norm

    def largest_norms(self, ids: np.ndarray, clip: float) -> float | np.ndarray:
        if self.clip_norms is None or self._part is None:
            return clip
        return self._by_part(self.clip_norms)[self._part[ids]]

    def report_norm(self, size: int) -> float:
        return self.clip_norm

    @property
    def on_messages(self) -> bool:
        return False

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise:
        assert self.noise_multiplier is not None
        factor = next((phase.noise for phase in self.schedule if round <= phase.until), 1.0)
        sigma = self.noise_multiplier * factor * self.clip_norm
        return Noise(key.fold(round).rng().normal(0.0, sigma, size), 1)

    def draws(self, plan: Plan, messages: int) -> int:
        return plan.rounds

    def _ratio(self, part: str) -> float:
        """sigma / sensitivity for one user of a group, before the schedule's factor."""
        assert self.noise_multiplier is not None
        return self.noise_multiplier * (1 if self.clip_norms is None else self.clip_norm / self.clip_norms[part])

    def _rate(self, part: str, plan: Plan) -> float:
        return plan.sampling_prob if self.sampling_probs is None else self.sampling_probs[part]

    def _spent(self, part: str, plan: Plan, rounds: int) -> float:
        schedule = groups.first_rounds(self._schedule(plan), rounds)
        return groups.spent(self._ratio(part), self._rate(part, plan), schedule, self.delta)

    def guarantee(self, plan: Plan) -> Guarantee:
        noisy = self.calibrated(plan)
        assert noisy.noise_multiplier is not None
        schedule = noisy._schedule(plan)
        ends = np.cumsum([count for _, count in schedule]).tolist()
        rates = np.array([noisy._rate(part, plan) for part in self.parts])
        ratios = np.array([noisy._ratio(part) for part in self.parts])
        weights = rates / ratios if noisy.noise_multiplier else rates * noisy._clips()
        each = {}
        for place, part in enumerate(self.parts):
            spent = {end: noisy._spent(part, plan, end) for end in ends}
            influence = effective_size.weight_share(self.shares * weights, np.arange(len(weights)) == place)
            clip, share = float(noisy._clips()[place]), float(self.shares[place])
            each[part] = Group(share, spent[ends[-1]], influence, float(rates[place]), clip, spent)
        top = max(each, key=lambda part: each[part].epsilon)
        exact = noisy.noise_multiplier > 0 and (rates == 1).all()
        total = sum(count / factor**2 for factor, count in schedule)
        return Guarantee(
            mechanism=self.name,
            unit=self.unit,
            observer=self.observer,
            adjacency=self.adjacency,
            epsilon=each[top].epsilon,
            delta=self.delta,
            noise_multiplier=noisy.noise_multiplier,
            clip_norm=self.clip_norm,
            sampler=noisy._sampler(plan),
            releases=noisy._composition(plan),
            mu=math.sqrt(total) / float(ratios.min()) if exact else None,
            warnings=delta_warnings(self.delta, plan.users),
            groups=each,
        )

    def reveals(self, member: np.ndarray, wanting: np.ndarray) -> tuple[str, ...]:
        if self._part is None or not (member & wanting).any() or len(self.parts) == 1:
            return ()
        part = self._part
        chances = [member[part == place].mean() if (part == place).any() else 0.0 for place in range(len(self.parts))]
        likely = int(np.argmax(chances))
        seen = ", and so does how often they are sampled, to the server" * (self.way == "sample")
        return (
            f"budgets are public by group, and members are drawn from one: {chances[likely]:.3g} of the users of "
            f"{self.parts[likely]} are members, {member.mean():.3g} of all; to have that budget tells it{seen}",
        )

    def _clips(self) -> np.ndarray:
        return np.full(len(self.parts), self.clip_norm) if self.clip_norms is None else self._by_part(self.clip_norms)

    def _sampler(self, plan: Plan) -> str:
        text = f"cohorts by Poisson sampling of users, q = {plan.sampling_prob:g} of N = {plan.users}"
        if self.sampling_probs is None:
            clips = ", ".join(f"{part} {norm:.4g}" for part, norm in (self.clip_norms or {}).items())
            return f"{text}; clip norm by group: {clips}"
        return f"{text} on average, by group: " + ", ".join(f"{p} {q:.4g}" for p, q in self.sampling_probs.items())

    def _composition(self, plan: Plan) -> str:
        if not self.schedule:
            return f"{plan.rounds} rounds, every model released"
        phases = ", ".join(f"{factor:g} in {count} rounds" for factor, count in self._schedule(plan))
        return f"{plan.rounds} rounds, every model released, noise multiplier times {phases}"
