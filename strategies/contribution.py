"""Conscious data contribution: members give their data to a second firm, and may strike at the first."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from fedacdp.keys import Key
from fedacdp.strategy import Predict, Strategy
from fedacdp.users import Examples, Users


class Contribution(Strategy):
    """A run is the model of one `firm` (Vincent, Hecht 2021, CSCW, doi 10.1145/3449177). Both begin with the same model
    and have the same users, records, cohorts and members, so two runs that differ in `firm` alone are a pair.

    firm = "first": everybody is its user; members send it nothing if they `strike`, and what everybody sends if not. It
    divides by the number of all users, so that a strike costs it data and makes its steps smaller; if the strike is
    `noticed`, it divides by the number of those who are left, and is as a firm that never had the others.
    firm = "second": its users are the members, and of all users a share `customers` that it has anyway: nested, and
    independent of alpha. It divides by the number of its own users, and a firm without users keeps the initial model.
    A member who does not act (start, stop, compliance, coordination_noise) is there as if nothing happened: it sends
    its update to the first firm and none to the second, unless it is a customer; so customers count as no members here.

    Each firm's guarantee is its own. Who gives data to both is protected by neither of them alone against who sees both
    models: the two guarantees compose. The number of users of a firm is public.

    Success = accuracy on held-out records at the second firm, the error rate at the first. Data leverage power, metric
    `dlp` of the table, follows from the pairs.
    """

    name: Literal["contribution"] = "contribution"
    firm: Literal["first", "second"]
    strike: bool = False
    noticed: bool = False
    customers: float = Field(default=0.0, ge=0, le=1)
    _silent: bool = PrivateAttr(default=False)

    @model_validator(mode="after")
    def _gone_for_good(self) -> Self:
        if self.noticed and not self.strike:
            raise ValueError("noticed: belongs to strike = true")
        for knob in ("compliance", "coordination_noise", "start", "stop") if self.noticed else ():
            if getattr(self, knob) != Strategy.model_fields[knob].default:
                raise ValueError(f"{knob} = {getattr(self, knob)!r}: a strike that is noticed is that of all members")
        return self

    def assigned(self, group: np.ndarray, key: Key) -> np.ndarray:
        collective = super().assigned(group, key)
        return np.where(self._customers(len(group), key), np.int8(-1), collective)

    def on_platform(self, collective: np.ndarray, key: Key) -> np.ndarray:
        if self.firm == "first":
            return (collective < 0) | (not self.noticed)
        return (collective >= 0) | self._customers(len(collective), key)

    @property
    def changes_users(self) -> bool:
        return self.firm == "second" or self.noticed

    def _customers(self, users: int, key: Key) -> np.ndarray:
        """The customers of the second firm, (U,) bool; nobody at the first."""
        found = np.zeros(users, dtype=bool)
        if self.firm == "second":
            order = np.argsort(key.fold("customers").uniforms(np.arange(users), 1)[:, 0], kind="stable")
            found[order[: round(self.customers * users)]] = True
        return found

    def plays(self, users: Users, collective: np.ndarray, round: int, key: Key) -> list[tuple[Strategy, np.ndarray]]:
        found = super().plays(users, collective, round, key)
        if self.firm == "first":
            return found
        silent = self.model_copy()
        silent._silent = True
        return [*found, (silent, users.member & ~np.any([who for _, who in found], axis=0))]

    def participates(self, users: Users, round: int, key: Key) -> np.ndarray:
        gone = self._silent or (self.firm == "first" and self.strike)
        return np.full(len(users), not gone)

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        accuracy = float((predict(test.x) == test.y).mean())
        return {"success": accuracy if self.firm == "second" else 1 - accuracy}
