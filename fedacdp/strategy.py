"""The strategy of a collective: what its members do with their data, their presence and their updates.

A strategy is one file in `strategies/`: subclass `Strategy`, give it a `name`, and override the hooks it needs. Hooks
see and return members' rows only, so no strategy can touch anybody else, and they are only called for members who act
in that round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny, model_validator

from fedacdp.keys import Key
from fedacdp.parts import Part, parse
from fedacdp.users import Examples, Schema, Users

Predict = Callable[[np.ndarray], np.ndarray]
"""x (m, *F) float32 -> predicted class (m,) int64."""

Records = Callable[[np.ndarray], Iterator[Users]]
"""Ids of members (m,) -> their own, unmodified records, block after block."""

Play = Literal["feature_label", "feature_only", "feature_only_x0", "naive_unplanting", "adaptive_unplanting", "erasing"]
"""What a collective plays, in the words of Gauthier, Bach and Jordan 2025 (arXiv 2502.04879)."""

Protocol = Literal["compliant", "fills_clip", "skips_noise", "noise_as_signal"]
"""How members treat the privacy protocol, see `Strategy`."""


class Strategy(Part):
    """What a collective does.

    alpha: share of all users that are members (the nearest whole number of them), nested: the members at a small alpha
    are members at every larger one. members_from: the natural group they are drawn from, default everybody.
    compliance: chance that a member acts in a round, drawn independently. start, stop: first and last round of action.
    coordination_noise: chance that a member who acts in a round does so off script, with another signal or target
    (`another`), drawn independently (after Karan et al. 2025, arXiv 2510.18933).

    protocol: how members who act treat the privacy protocol. `compliant`; `fills_clip`: they scale their update to the
    clip norm, up as well as down; `skips_noise`: they clip, but add no noise of their own; `noise_as_signal`: they send
    their update scaled to the norm of an honest message, sqrt(C^2 + P sigma^2), and add no noise (Cheu, Smith, Ullman
    2021, doi 10.29012/jpc.754, on members who leave the local randomiser).
    """

    alpha: float = Field(default=0.0, ge=0, le=1)
    members_from: str | None = None
    compliance: float = Field(default=1.0, ge=0, le=1)
    coordination_noise: float = Field(default=0.0, ge=0, le=1)
    start: PositiveInt = 1
    stop: PositiveInt | None = None
    protocol: Protocol = "compliant"
    leaves: ClassVar[bool] = False  # whether a member who sends nothing does not use the platform either
    about_ratings: ClassVar[bool] = False  # whether it can act where records are ratings

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.stop is not None and self.stop < self.start:
            raise ValueError(f"stop = {self.stop}: must not be before start = {self.start}")
        return self

    # What a strategy overrides.

    def check(self, schema: Schema) -> None:
        """Raise ValueError, naming the field, if this strategy cannot act on records of this schema."""

    def target_class(self, schema: Schema) -> int | None:
        """The class that the collective is about, None if there is none; its accuracy is reported apart."""
        return None

    def for_model(self, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """The strategy with what it needs to know of the model: the shape of each parameter by name, in the order of
        the flat vector. Called once, where a run is prepared; ValueError, naming the field, if it cannot act on it."""
        return self

    def agree(self, ids: np.ndarray, records: Records, schema: Schema, key: Key) -> Self:
        """The strategy with what the members agree on before the first round, when they may pool their own records;
        `ids` (m,) ascending, at least one. Must be the same wherever it is computed."""
        return self

    @property
    def play(self) -> Play | None:
        """What members who act play, if it is one of those that success can be certified for; such a strategy has a
        `signal`."""
        return None

    @property
    def estimating(self) -> np.ndarray | None:
        """Ids of the members who were set apart to choose, by their records, what all play; None where nobody was."""
        return None

    def another(self, step: int, schema: Schema) -> Strategy | None:
        """What a member follows who is off script: this strategy with another signal or target, picked by `step` (1 to
        classes - 1). None: the member does what everybody does."""
        return None

    def data(self, users: Users, round: int, key: Key) -> Users:
        """The records on which these members train in this round."""
        return users

    def participates(self, users: Users, round: int, key: Key) -> np.ndarray:
        """Whether each of these members sends an update in this round, (U,) bool."""
        return np.ones(len(users), dtype=bool)

    def update(self, updates: np.ndarray, users: Users, round: int, key: Key) -> np.ndarray:
        """The updates that these members hand to the privacy mechanism in place of their own, (U, P)."""
        return updates

    def update_at(self, model: np.ndarray, updates: np.ndarray, users: Users, round: int, key: Key) -> np.ndarray:
        """As `update`, for members who look at the model (P,) that the server sent them."""
        return self.update(updates, users, round, key)

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        """Success on held-out, unmodified records: `success` and, for parts of them, `success@group`."""
        return {}

    def measures(self, predict: Predict, test: Examples, model: np.ndarray, round: int) -> dict[str, float]:
        """All that the strategy measures after a round: `success`, and what needs the model (P,) or the round."""
        return self.success(predict, test)

    def ranked(self, hits: dict[str, float]) -> dict[str, float]:
        """Success where records are ratings, as `measures`, from the surfaced hits of `all`, and `staying`: those that
        it would be if nobody had left the platform."""
        return {}

    # What every strategy has.

    def members(self, group: np.ndarray, key: Key) -> np.ndarray:
        """Who is a member, (U,) bool, from every user's natural group (U,); ValueError if the group is too small."""
        count = round(self.alpha * len(group))
        eligible = np.ones(len(group), dtype=bool) if self.members_from is None else group == self.members_from
        if not eligible.any():
            groups = ", ".join(sorted(set(group.tolist()))[:20])
            raise ValueError(f"strategy.members_from = {self.members_from!r}: no such group; there are: {groups}")
        if count > eligible.sum():
            raise ValueError(
                f"strategy.alpha = {self.alpha}: {count} members wanted, but group {self.members_from!r} has only "
                f"{eligible.sum()} of {len(group)} users (alpha at most {eligible.mean():.4f})"
            )
        priority = np.where(eligible, key.uniforms(np.arange(len(group)), 1)[:, 0], 2.0)
        member = np.zeros(len(group), dtype=bool)
        member[np.argsort(priority, kind="stable")[:count]] = True
        return member

    def acts(self, users: Users, round: int, key: Key) -> np.ndarray:
        """Which users follow the strategy in this round, (U,) bool: members within start..stop who comply."""
        if round < self.start or (self.stop is not None and round > self.stop):
            return np.zeros(len(users), dtype=bool)
        if self.compliance == 1:
            return users.member.copy()
        return users.member & (key.uniforms(users.ids, 1)[:, 0] < self.compliance)

    # What every collective has; a strategy that holds several collectives does it for each of them.

    @property
    def without_members(self) -> Self:
        """The same strategy with nobody in it."""
        return self.model_copy(update={"alpha": 0.0})

    @property
    def alone(self) -> dict[str, Self]:
        """Where exactly two collectives act: by the name of each, the same strategy with nobody in the other."""
        return {}

    @property
    def stops(self) -> dict[str, int]:
        """The last round of action by group of `success`, for those who stop."""
        return {} if self.stop is None else {"all": self.stop}

    @property
    def protocols(self) -> set[Protocol]:
        """How members treat the privacy protocol."""
        return {self.protocol}

    def wanting(self, group: np.ndarray) -> np.ndarray:
        """Who wants what the collective wants, (U,) bool: the natural group that members are drawn from; nobody can be
        told where they are drawn from everybody."""
        return np.zeros(len(group), bool) if self.members_from is None else group == self.members_from

    def assigned(self, group: np.ndarray, key: Key) -> np.ndarray:
        """The number of each user's collective, (U,) int8, -1 for none; errors as in `members`."""
        return self.members(group, key).astype(np.int8) - np.int8(1)

    def on_platform(self, collective: np.ndarray, key: Key) -> np.ndarray:
        """Who is a user of the platform at all, (U,) bool; `collective` (U,) and `key` as in `assigned`. The others are
        never sampled, and the public number of users that sums are divided by is that of its own users."""
        return np.ones(len(collective), dtype=bool)

    def agreed(self, collective: np.ndarray, records: Records, schema: Schema, key: Key) -> Self:
        """The strategy with what was agreed on in each collective; `collective` (U,) as assigned."""
        ids = np.flatnonzero(collective >= 0)
        return self.agree(ids, records, schema, key) if len(ids) else self

    def plays(self, users: Users, collective: np.ndarray, round: int, key: Key) -> list[tuple[Strategy, np.ndarray]]:
        """What is followed in this round, and which of these users follow it, (U,) bool, disjoint."""
        acting = self.acts(users, round, key)
        if self.coordination_noise == 0:
            return [(self, acting)]
        draws = key.fold("coordination").uniforms(users.ids, 2)
        off = acting & (draws[:, 0] < self.coordination_noise)
        step = 1 + np.floor(draws[:, 1] * (len(users.schema.classes) - 1)).astype(np.int64)
        found: list[tuple[Strategy, np.ndarray]] = [(self, acting & ~off)]
        for picked in np.unique(step[off]).tolist():
            other = self.another(picked, users.schema)
            if other is not None:
                found.append((other, off & (step == picked)))
        return found

    @property
    def for_nodes(self) -> Self:
        """The strategy as it is told to nodes, who may be at work in another folder."""
        return self

    @property
    def needs(self) -> str | None:
        """How a model must learn for this strategy, as `Model.learns_by`; None if it does not matter."""
        return None

    @property
    def changes_users(self) -> bool:
        """Whether who is a user of the platform, and so the number that sums are divided by, depends on the members."""
        return type(self).on_platform is not Strategy.on_platform

    @property
    def on_ratings(self) -> bool:
        """Whether this strategy can act where records are ratings."""
        return self.about_ratings

    @property
    def edits_updates(self) -> bool:
        """Whether members' updates must be expanded because this strategy changes them."""
        return type(self).update is not Strategy.update or type(self).update_at is not Strategy.update_at


AnyStrategy = Annotated[
    SerializeAsAny[Strategy], BeforeValidator(lambda value: parse("strategy", "strategies", Strategy, value))
]
"""A strategy within a strategy, in a study file a table like `{ name = "planting", ... }`."""


def class_index(field: str, label: int | str, schema: Schema) -> int:
    """The class that `label` means, by position or by name; ValueError names the field and the classes."""
    if isinstance(label, str) and label in schema.classes:
        return schema.classes.index(label)
    if isinstance(label, int) and 0 <= label < len(schema.classes):
        return label
    raise ValueError(
        f"strategy.{field} = {label!r}: not a class; there are {len(schema.classes)}, by position 0 to "
        f"{len(schema.classes) - 1} or by name: {', '.join(schema.classes[:12])}"
    )
