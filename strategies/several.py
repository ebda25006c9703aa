"""Several collectives at once, each with its own members, strategy and success."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from fedacdp.keys import Key
from fedacdp.strategy import AnyStrategy, Predict, Protocol, Records, Strategy
from fedacdp.users import Examples, Schema, Users


class Several(Strategy):
    """`collectives`, by name: each a strategy with its own alpha, knobs and members, whom no two share; `alpha` is the
    sum of theirs and need not be given.

    Members of one collective are nested in its alpha, and do not depend on the other collectives as long as each of the
    m collectives wants at most 1/m of its natural group, or of everybody: users are dealt to the collectives at random,
    each takes its own share first, and only who wants more takes from the others' shares, from their ends.

    What a collective NAME measures is reported as group NAME: `success@NAME`, and `success@NAME.part` for its parts.
    """

    name: Literal["several"] = "several"
    collectives: dict[str, AnyStrategy] = Field(min_length=1, max_length=100)

    @field_validator("collectives")
    @classmethod
    def _in_order(cls, value: dict[str, Strategy]) -> dict[str, Strategy]:
        for name, strategy in value.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name):
                raise ValueError(f"{name!r} is no name: 1 to 32 letters, digits, _ and -")
            if isinstance(strategy, Several):
                raise ValueError(f"{name}: several collectives cannot be one of several")
            if strategy.changes_users:
                raise ValueError(f"{name}: decides who uses the platform at all, so it cannot be one of several")
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _sum(self) -> Self:
        for knob in ("members_from", "compliance", "coordination_noise", "start", "stop", "protocol"):
            if getattr(self, knob) != Strategy.model_fields[knob].default:
                raise ValueError(f"{knob} = {getattr(self, knob)!r}: belongs to each of the collectives")
        total = round(sum(strategy.alpha for strategy in self.collectives.values()), 12)
        if total > 1:
            raise ValueError(f"collectives: their alphas add up to {total:g}; at most 1")
        if "alpha" in self.model_fields_set and abs(self.alpha - total) > 1e-9:
            raise ValueError(f"alpha = {self.alpha:g}: is the sum of the collectives' alphas, {total:g}; leave it out")
        self.__dict__["alpha"] = total  # frozen for everybody else
        return self

    def check(self, schema: Schema) -> None:
        for name, strategy in self.collectives.items():
            with _named(name):
                strategy.check(schema)

    def target_class(self, schema: Schema) -> int | None:
        targets = {strategy.target_class(schema) for strategy in self.collectives.values()}
        return targets.pop() if len(targets) == 1 else None

    def _with(self, collectives: dict[str, Strategy]) -> Self:
        return self.model_copy(update={"collectives": collectives})

    @property
    def without_members(self) -> Self:
        nobody = {name: strategy.without_members for name, strategy in self.collectives.items()}
        return self._with(nobody).model_copy(update={"alpha": 0.0})

    @property
    def alone(self) -> dict[str, Self]:
        acting = {name for name, strategy in self.collectives.items() if strategy.alpha > 0}
        if len(acting) != 2:
            return {}
        return {
            name: self._with(
                {other: s if other == name else s.without_members for other, s in self.collectives.items()}
            ).model_copy(update={"alpha": round(self.collectives[name].alpha, 12)})
            for name in acting
        }

    @property
    def needs(self) -> str | None:
        return next((each.needs for each in self.collectives.values() if each.needs), None)

    @property
    def on_ratings(self) -> bool:
        return all(each.on_ratings for each in self.collectives.values())

    @property
    def edits_updates(self) -> bool:
        return any(each.edits_updates for each in self.collectives.values())

    @property
    def protocols(self) -> set[Protocol]:
        return set().union(*(each.protocols for each in self.collectives.values()))

    @property
    def stops(self) -> dict[str, int]:
        return {name: strategy.stop for name, strategy in self.collectives.items() if strategy.stop is not None}

    def wanting(self, group: np.ndarray) -> np.ndarray:
        return np.any([strategy.wanting(group) for strategy in self.collectives.values()], axis=0)

    def assigned(self, group: np.ndarray, key: Key) -> np.ndarray:
        number, order = len(self.collectives), np.argsort(key.uniforms(np.arange(len(group)), 1)[:, 0], kind="stable")
        found, wishes = np.full(len(group), -1, np.int8), []
        for place, (name, strategy) in enumerate(self.collectives.items()):
            with _named(name):
                strategy.members(group, key)  # says what is wrong with the group or alpha
            eligible = strategy.members_from is None or group[order] == strategy.members_from
            own = np.arange(len(order)) % number == place
            count = round(strategy.alpha * len(group))
            mine = order[own & eligible]
            found[mine[:count]] = place
            wishes.append((name, place, count - len(mine), order[~own & eligible][::-1]))
        for name, place, more, others in wishes:
            free = others[found[others] < 0]
            if more > len(free):
                raise ValueError(
                    f"strategy.collectives.{name}.alpha: {more - len(free)} members too many: the other collectives "
                    f"leave only {(found == place).sum() + len(free)} of {len(group)} users to draw them from"
                )
            found[free[: max(0, more)]] = place
        return found

    def for_model(self, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        found = {}
        for name, strategy in self.collectives.items():
            with _named(name):
                found[name] = strategy.for_model(shapes)
        return self._with(found)

    @property
    def for_nodes(self) -> Self:
        return self._with({name: strategy.for_nodes for name, strategy in self.collectives.items()})

    def agreed(self, collective: np.ndarray, records: Records, schema: Schema, key: Key) -> Self:
        return self._with(
            {
                name: strategy.agreed(np.where(collective == place, 0, -1), records, schema, key)
                for place, (name, strategy) in enumerate(self.collectives.items())
            }
        )

    def plays(self, users: Users, collective: np.ndarray, round: int, key: Key) -> list[tuple[Strategy, np.ndarray]]:
        found = []
        for place, strategy in enumerate(self.collectives.values()):
            own = np.where(collective == place, 0, -1)
            found += strategy.plays(users.replace(member=own == 0), own, round, key)
        return found

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        return self._measured({name: s.success(predict, test) for name, s in self.collectives.items()})

    def measures(self, predict: Predict, test: Examples, model: np.ndarray, round: int) -> dict[str, float]:
        return self._measured({name: s.measures(predict, test, model, round) for name, s in self.collectives.items()})

    def ranked(self, hits: dict[str, float]) -> dict[str, float]:
        return self._measured({name: strategy.ranked(hits) for name, strategy in self.collectives.items()})

    def _measured(self, found: dict[str, dict[str, float]]) -> dict[str, float]:
        return {
            f"{metric.replace('@', f'@{name}.', 1) if '@' in metric else f'{metric}@{name}'}": value
            for name, values in found.items()
            for metric, value in values.items()
        }


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Faults of this collective's fields are told with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("strategy.", f"strategy.collectives.{name}.", 1)) from None
