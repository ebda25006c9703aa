"""The mechanism: what happens to one example, to one user's update, to the sum, and the event that accounts for it."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, PositiveFloat, model_validator

from fedacdp.keys import Key
from fedacdp.parts import Part
from fedacdp.privacy import accounting
from fedacdp.privacy.guarantee import Guarantee, delta_warnings

if TYPE_CHECKING:
    from fedacdp.privacy.accounting import Gaussians
    from fedacdp.privacy.randomised_response import Response


@dataclass(frozen=True)
class Plan:
    """The public numbers of an experiment, all that a mechanism may depend on: users N, sampling_prob q, rounds T,
    local_steps, expected batch and the chance batch_prob that an example enters it; and `diameter`, how far apart two
    updates of norm at most 1 can be: 2, but sqrt(2) if none has a negative entry, |a - b|^2 = |a|^2 + |b|^2 - 2ab."""

    users: int
    sampling_prob: float
    rounds: int
    local_steps: int
    batch: float
    batch_prob: float
    diameter: float = 2.0

    @property
    def cohort(self) -> float:
        """The expected cohort qN: the public number that every sum is divided by."""
        return self.sampling_prob * self.users

    @property
    def usual_messages(self) -> int:
        """ceil(qT), the messages a user sends on average, rounded up."""
        return max(1, math.ceil(self.sampling_prob * self.rounds - 1e-9))


@dataclass(frozen=True)
class ExampleRule:
    """DP-SGD at each local step: every example enters with chance `batch_prob`, its gradient is clipped to `clip_norm`,
    N(0, (noise_multiplier * clip_norm)^2 I) is added to the sum, and the sum is divided by the expected batch."""

    clip_norm: float
    noise_multiplier: float
    batch_prob: float
    batch: float
    implementation: str


class Noise(NamedTuple):
    """A noise vector (P,) float64, how many draws of noise of the mechanism it stands for, the next included, and the
    noise on a count that the mechanism releases beside the sum."""

    vector: np.ndarray
    draws: int
    on_count: float = 0.0


class Mechanism(Part):
    """A privacy mechanism. The defaults are those of no privacy at all; a mechanism overrides what it changes.

    A mechanism is used through `calibrated(plan)`, which has a noise multiplier whatever was given.
    """

    needs: ClassVar[Literal["gradients", "counts"] | None] = None  # what the model must learn by
    clips: ClassVar[bool] = False  # whether updates are clipped
    own_noise: ClassVar[bool] = False  # whether users add noise to their messages, which members might leave out
    unit: ClassVar[str] = "none"
    observer: ClassVar[str] = "none"
    adjacency: ClassVar[str] = "none"

    def calibrated(self, plan: Plan) -> Self:
        """This mechanism with the noise that its epsilon asks for under `plan`."""
        return self

    def message_limit(self, plan: Plan) -> int | None:
        """The largest number of rounds a user may take part in, enforced by the sampler; None for no limit."""
        return None

    def example_rule(self, plan: Plan) -> ExampleRule | None:
        """What is done to per-example gradients in local training; None for plain SGD."""
        return None

    def response(self, plan: Plan) -> Response | None:
        """The randomised response by which each user tells its symbol; None to send counts as they are."""
        return None

    @property
    def on_messages(self) -> bool:
        """Whether each message has, when it arrives, all the noise there is: only then may a server use messages for
        anything else than their sum."""
        return True

    def for_users(self, group: np.ndarray, on_platform: np.ndarray) -> Self:
        """This mechanism with what it must know of every user's natural group, (N,) text, which is public, and of who
        uses the platform at all, (N,) bool."""
        return self

    def reveals(self, member: np.ndarray, wanting: np.ndarray) -> tuple[str, ...]:
        """Warnings of what the public numbers of the mechanism tell about who is a member, (N,) bool, where members
        are drawn from the users in `wanting` (N,) bool, nobody if from all."""
        return ()

    def chances(self, plan: Plan) -> float | np.ndarray:
        """The chance to be sampled in a round: of every user, or (N,) of each."""
        return plan.sampling_prob

    def eligible(self, last: np.ndarray, round: int) -> np.ndarray:
        """Who may be sampled in a round, (N,) bool, from the round in which each user was sampled last, (N,) int32, 0
        for never."""
        return np.ones(len(last), dtype=bool)

    def first_memory(self, plan: Plan, size: int) -> np.ndarray:
        """What lives between rounds beside the model of P = `size` parameters, before the first, (M,) float64."""
        return np.zeros(0)

    def clip_now(self, memory: np.ndarray) -> float:
        """The clip norm in force in a round, which every node is told; infinity where nothing is clipped."""
        return math.inf

    def clip_factors(self, norms: np.ndarray, ids: np.ndarray, clip: float) -> np.ndarray:
        """The factor on the update of each user in `ids` from its L2 norm, both (U,) float64, where the clip norm in
        force is `clip`; 0 for an update that is not finite."""
        return clip_factors(norms, self.largest_norms(ids, clip))

    def largest_norms(self, ids: np.ndarray, clip: float) -> float | np.ndarray:
        """The clip norm of every user, or (U,) of each user in `ids`, where the one in force is `clip`."""
        return clip

    def report_norm(self, size: int) -> float:
        """About the L2 norm of an honest message of P = `size` parameters that fills the clip, its noise included."""
        return math.inf

    def noise_of(self, user: int, size: int, key: Key) -> np.ndarray | None:
        """The noise (P,) float64 that one user adds to its message; None where users add none of their own."""
        return None

    def sum_noise(self, count: int, size: int, round: int, memory: np.ndarray, key: Key) -> Noise | None:
        """Noise on the sum of the `count` messages of a round that should carry noise; None for none. `key` is the same
        in all rounds."""
        return None

    def aborts(self, messages: int) -> bool:
        """Whether a round in which so many messages came is given up: charged, but nothing of it is released."""
        return False

    def next_memory(
        self, memory: np.ndarray, norms: np.ndarray, noise: Noise | None, plan: Plan, round: int, key: Key
    ) -> np.ndarray:
        """The memory after a round in which these updates came, of norms (U,), and this noise was on their sum."""
        return memory

    def draws(self, plan: Plan, messages: int) -> int:
        """How many noise vectors a whole run in which `messages` messages should carry noise must have drawn."""
        return 0

    def weakened(self, plan: Plan, deviating: int) -> tuple[str, ...]:
        """Warnings where so many users who leave out their own noise take from what `guarantee` promises to others."""
        return ()

    def guarantee(self, plan: Plan) -> Guarantee:
        """The guarantee of a whole run of `plan`."""
        return Guarantee(
            self.name, "none", "none", "none", math.inf, math.nan, 0.0, math.nan, "no noise", "no clipping"
        )


class Noisy(Mechanism):
    """A mechanism with clipping and Gaussian noise, given by exactly one of epsilon and noise_multiplier."""

    clips: ClassVar[bool] = True
    epsilon: PositiveFloat | None = None
    noise_multiplier: float | None = Field(default=None, ge=0)
    delta: float = Field(gt=0, lt=1)
    clip_norm: PositiveFloat

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            given = "neither" if self.epsilon is None else "both"
            raise ValueError(f"epsilon, noise_multiplier: exactly one must be given, not {given}")
        return self

    @abstractmethod
    def releases(self, plan: Plan) -> Gaussians:
        """The Gaussians that a run of `plan` releases about one unit, seen by the observer."""

    def ratio_to_multiplier(self, ratio: float, plan: Plan) -> float:
        """The noise multiplier at which sigma / sensitivity is `ratio` (add-or-remove: sensitivity = clip_norm)."""
        return ratio

    def calibrated(self, plan: Plan) -> Self:
        if self.noise_multiplier is not None:
            return self
        assert self.epsilon is not None
        shape = self.model_copy(update={"epsilon": None, "noise_multiplier": 1.0}).releases(plan)
        ratio = accounting.calibrate(self.epsilon, self.delta, shape.rate, shape.count)
        return self.model_copy(update={"epsilon": None, "noise_multiplier": self.ratio_to_multiplier(ratio, plan)})

    @property
    def multiplier(self) -> float:
        """The noise multiplier in force; only a calibrated mechanism has one."""
        if self.noise_multiplier is None:
            raise ValueError(f"privacy.noise_multiplier: {self.name} must be calibrated first")
        return self.noise_multiplier

    def clip_now(self, memory: np.ndarray) -> float:
        return self.clip_norm

    def report_norm(self, size: int) -> float:
        return self.clip_norm

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in the units of an update: noise_multiplier * clip_norm."""
        return self.multiplier * self.clip_norm

    def guarantee(self, plan: Plan) -> Guarantee:
        noisy = self.calibrated(plan)
        releases = noisy.releases(plan)
        return Guarantee(
            mechanism=self.name,
            unit=self.unit,
            observer=self.observer,
            adjacency=self.adjacency,
            epsilon=accounting.epsilon(releases, self.delta),
            delta=self.delta,
            noise_multiplier=noisy.multiplier,
            clip_norm=self.clip_norm,
            sampler=self.sampler(plan),
            releases=self.composition(plan),
            mu=releases.mu,
            warnings=delta_warnings(self.delta, plan.users),
        )

    @abstractmethod
    def sampler(self, plan: Plan) -> str:
        """The sampler that amplifies, in words."""

    @abstractmethod
    def composition(self, plan: Plan) -> str:
        """What is composed, in words."""


def clip_factors(norms: np.ndarray, bound: float | np.ndarray) -> np.ndarray:
    """min(1, bound / norm) in float64, 1 at norm 0 and 0 where the norm is not finite; (U,) from (U,)."""
    finite = np.isfinite(norms)
    over = finite & (norms > bound)
    return np.where(finite, np.where(over, bound / np.where(over, norms, 1.0), 1.0), 0.0)
