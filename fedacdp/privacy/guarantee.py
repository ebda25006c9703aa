"""What an epsilon means: the guarantee of a run, in fields and in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from fedacdp.privacy import accounting


@dataclass(frozen=True)
class Group:
    """What one group of users has of a guarantee: their share of all users, their epsilon, their expected share of what
    the sum weighs (`influence`), their chance to be sampled, their clip norm, and the epsilon spent by the end of each
    phase of the schedule, round -> epsilon."""

    share: float
    epsilon: float
    influence: float
    sampling_prob: float
    clip_norm: float
    spent: dict[int, float]


@dataclass(frozen=True)
class Guarantee:
    """What an epsilon means. Columns of the table and the statement of the page come from here and nowhere else."""

    mechanism: str
    unit: str
    observer: str
    adjacency: str
    epsilon: float
    delta: float
    noise_multiplier: float
    clip_norm: float
    sampler: str
    releases: str
    mu: float | None = None
    accountant: str = accounting.ACCOUNTANT
    opinions: dict[str, float] = field(default_factory=dict)
    per_message_epsilon: float | None = None
    warnings: tuple[str, ...] = ()
    groups: dict[str, Group] = field(default_factory=dict)
    forecast: bool = False  # whether it is that of a larger run, which this one simulates

    NOT_COVERED: ClassVar[str] = (
        "Not covered: test metrics, update norms, cohort sizes, data-set statistics used for standardising. "
        "Tuning not counted. Noise comes from a recorded seed: a simulation, not a private release."
    )

    @property
    def sentence(self) -> str:
        """The guarantee in words, with everything that gives the number its meaning (NIST SP 800-226)."""
        if not math.isfinite(self.epsilon):
            return f"{self.mechanism}: no privacy guarantee."
        once = (
            "" if self.per_message_epsilon is None else f" One message alone: epsilon = {self.per_message_epsilon:.3g}."
        )
        noise = f"noise multiplier {self.noise_multiplier:.4g}, clip norm {self.clip_norm:g}; "
        noise = "" if math.isnan(self.noise_multiplier) else noise
        each = "; ".join(
            f"{name} epsilon = {group.epsilon:.3g} ({group.share:.1%} of users, {group.influence:.1%} of the influence "
            "if all fill their clip norm)"
            for name, group in self.groups.items()
        )
        forecast = "A forecast of a larger run; this one has no such guarantee. " if self.forecast else ""
        return (
            f"{forecast}epsilon = {self.epsilon:.3g} at delta = {self.delta:g}"
            f"{f', the largest of those by group: {each}' if each else ''}; unit: {self.unit}; adjacency: "
            f"{self.adjacency.replace('_', '-')}; against {OBSERVERS[self.observer]}; {self.sampler}; {self.releases}; "
            f"{noise}{self.accountant}.{once} "
            f"{self.NOT_COVERED}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest; infinity as text and NaN as null, because JSON has neither."""
        stated = {"sentence": self.sentence, "not_covered": self.NOT_COVERED, "tuning": "not counted"}
        plain = asdict(self) | {"setting": SETTINGS.get(self.observer, self.observer)} | stated
        return {name: _json_value(value) for name, value in plain.items()}


OBSERVERS = {
    "model_holder": "anyone who sees every released model, not against the server",
    "server": "the server, which sees every message and its sender",
    "sum": "whoever sees the sum of each round's messages, the server included, not the single messages",
    "none": "nobody",
}


def delta_warnings(delta: float, users: int) -> tuple[str, ...]:
    """The warning of a delta that is too large for so many users."""
    if not users or delta < 1 / users:
        return ()
    return (f"delta = {delta:g} is not below 1/users = {1 / users:g}: it permits betraying a user",)


SETTINGS = {"model_holder": "central", "server": "local", "none": "none"}
"""Who is trusted: the server that adds the noise, or nobody."""


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _json_value(inner) for name, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value
