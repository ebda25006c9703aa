"""Erasing a signal: members teach the model that it makes no difference."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import PrivateAttr

from fedacdp.keys import Key
from fedacdp.signals import AnySignal, Cells
from fedacdp.strategy import Play, Predict, Records, Strategy
from fedacdp.users import Examples, Schema, Users


class Erasing(Strategy):
    """Members train on (x, y*_g(x)): the label changes, the features do not. Success = Pr[f(g(x)) = f(x)] on held-out
    records (Gauthier, Bach, Jordan 2025, arXiv 2502.04879, Definition 3.8).

    y*_g(x) is the most frequent label in the cell of g(x) among the members' own records (see `Cells.votes`); `cells`:
    the categorical columns that tell cells apart. The signal must be idempotent. Success is high before anybody acts
    where the model hardly uses what the signal sets: compare with the baseline. Off script: the labels moved by one or
    more classes.
    """

    name: Literal["erasing"] = "erasing"
    signal: AnySignal
    cells: tuple[str, ...]
    _labels: np.ndarray | None = PrivateAttr(default=None)

    def check(self, schema: Schema) -> None:
        self.signal.check(schema)
        if schema.image:
            raise ValueError(
                "strategy.name = 'erasing': for tables only; images have no cells with labels of their own"
            )
        Cells(self.signal, self.cells, schema)
        once = self.signal.place(np.zeros((1, *schema.shape), np.float32), schema)
        if not np.array_equal(self.signal.place(once, schema), once):
            raise ValueError(f"strategy.signal = {self.signal.name!r}: erasing needs g(g(x)) = g(x)")

    @property
    def play(self) -> Play:
        return "erasing"

    def agree(self, ids: np.ndarray, records: Records, schema: Schema, key: Key) -> Self:
        return self._with(Cells(self.signal, self.cells, schema).votes(records(ids)).argmax(axis=1))

    def _with(self, labels: np.ndarray) -> Self:
        found = self.model_copy()
        found._labels = labels
        return found

    def another(self, step: int, schema: Schema) -> Erasing:
        assert self._labels is not None
        return self._with((self._labels + step) % len(schema.classes))

    def data(self, users: Users, round: int, key: Key) -> Users:
        assert self._labels is not None, "agree() comes first"
        cells = Cells(self.signal, self.cells, users.schema)
        return users.replace(y=self._labels[cells.of(self.signal.place(users.x, users.schema))])

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        return {"success": float((predict(self.signal.marked(test)) == predict(test.x)).mean())}
