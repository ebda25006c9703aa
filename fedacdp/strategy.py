"""The strategy of a collective: what its members do with their data, their presence and their updates.

A strategy is one file in `strategies/`: subclass `Strategy`, give it a `name`, and override the hooks it needs. Hooks
see and return members' rows only, so no strategy can touch anybody else, and they are only called for members who act
in that round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from fedacdp.keys import Key
from fedacdp.parts import Part
from fedacdp.users import Examples, Schema, Users

Predict = Callable[[np.ndarray], np.ndarray]
"""x (m, *F) float32 -> predicted class (m,) int64."""


class Strategy(Part):
    """What a collective does.

    alpha: share of all users that are members (the nearest whole number of them), nested: the members at a small alpha
    are members at every larger one. members_from: the natural group they are drawn from, default everybody.
    compliance: chance that a member acts in a round, drawn independently. start, stop: first and last round of action.
    """

    alpha: float = Field(default=0.0, ge=0, le=1)
    members_from: str | None = None
    compliance: float = Field(default=1.0, ge=0, le=1)
    start: PositiveInt = 1
    stop: PositiveInt | None = None

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

    def data(self, users: Users, round: int, key: Key) -> Users:
        """The records on which these members train in this round."""
        return users

    def participates(self, users: Users, round: int, key: Key) -> np.ndarray:
        """Whether each of these members sends an update in this round, (U,) bool."""
        return np.ones(len(users), dtype=bool)

    def update(self, updates: np.ndarray, users: Users, round: int, key: Key) -> np.ndarray:
        """The updates that these members hand to the privacy mechanism in place of their own, (U, P)."""
        return updates

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        """Success on held-out, unmodified records: `success` and, for parts of them, `success@group`."""
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

    @property
    def edits_updates(self) -> bool:
        """Whether members' updates must be expanded because this strategy changes them."""
        return type(self).update is not Strategy.update


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
