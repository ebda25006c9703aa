"""Unplanting: members keep the model from answering `y_star` where it sees the signal."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, PrivateAttr, model_validator

from fedacdp.keys import Key
from fedacdp.signals import AnySignal, Cells
from fedacdp.strategy import Play, Predict, Records, Strategy, class_index
from fedacdp.users import Examples, Schema, Users


class Unplanting(Strategy):
    """Members train on (g(x), y') with y' other than y*. Success = Pr[f(g(x)) != y*] on held-out records (Gauthier,
    Bach, Jordan 2025, arXiv 2502.04879).

    form: `naive` one y' for all records, `label`, or the best: the one with the largest certificate of planting when
    all frequencies are what the members' own records show (Theorem 3.3 without its finite-sample terms), of those the
    most frequent; `adaptive` (Definition 3.6) y' is the most frequent label other than y* in the cell of g(x) among the
    records of `estimators`, a share of the members, or `estimator_count` of them. All members act, as in Theorem 3.7;
    the authors' code leaves the estimators out. `cells`: categorical columns that tell cells apart, see `Cells`. Off
    script: the labels moved by one or more classes.
    """

    name: Literal["unplanting"] = "unplanting"
    y_star: int | str
    signal: AnySignal
    form: Literal["naive", "adaptive"] = "naive"
    label: int | str = "best"
    estimators: float = Field(default=0.1, gt=0, le=1)
    estimator_count: PositiveInt | None = None
    cells: tuple[str, ...] = ()
    _labels: np.ndarray | None = PrivateAttr(default=None)
    _chosen: np.ndarray | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.form == "adaptive" and self.label != "best":
            raise ValueError('label: belongs to form = "naive"')
        if self.form == "naive" and "estimators" in self.model_fields_set and self.estimators != 0.1:
            raise ValueError('estimators: belongs to form = "adaptive"')
        if self.estimator_count is not None and (self.form == "naive" or self.estimators != 0.1):
            raise ValueError('estimator_count: stands in place of estimators, with form = "adaptive"')
        return self

    def check(self, schema: Schema) -> None:
        target = self.target_class(schema)
        self.signal.check(schema)
        Cells(self.signal, self.cells, schema)
        if self.label != "best" and class_index("label", self.label, schema) == target:
            raise ValueError(f"strategy.label = {self.label!r}: is y_star itself")

    def target_class(self, schema: Schema) -> int:
        return class_index("y_star", self.y_star, schema)

    @property
    def play(self) -> Play:
        return "naive_unplanting" if self.form == "naive" else "adaptive_unplanting"

    @property
    def estimating(self) -> np.ndarray | None:
        return self._chosen

    def agree(self, ids: np.ndarray, records: Records, schema: Schema, key: Key) -> Self:
        cells, target = Cells(self.signal, self.cells, schema), self.target_class(schema)
        if self.form == "adaptive":
            some = self.estimator_count or max(1, round(self.estimators * len(ids)))
            chosen = np.sort(ids[np.argsort(key.uniforms(ids, 1)[:, 0], kind="stable")[:some]])
            votes = cells.votes(records(chosen))
            votes[:, target] = -1
            found = self._with(votes.argmax(axis=1))
            found._chosen = chosen
            return found
        if self.label != "best":
            return self._with(np.full(cells.count, class_index("label", self.label, schema)))
        return self._with(np.full(cells.count, self._best(*cells.tally(records(ids)), target)))

    def _best(self, natural: np.ndarray, everything: np.ndarray, target: int) -> int:
        """The label with the largest certificate: the mass of cells that alpha of all users win for it."""
        total, mass = everything.sum(), everything.sum(axis=1) / everything.sum()
        scores = []
        for label in range(natural.shape[1]):
            gap = (np.delete(natural, label, axis=1).max(axis=1) - natural[:, label]) / total
            won = mass[self.alpha * mass > (1 - self.alpha) * gap].sum()
            scores.append((label != target, float(won), int(natural[:, label].sum()), int(everything[:, label].sum())))
        return max(range(len(scores)), key=lambda label: (scores[label], -label))

    def _with(self, labels: np.ndarray) -> Self:
        found = self.model_copy()
        found._labels = labels
        return found

    def another(self, step: int, schema: Schema) -> Unplanting:
        assert self._labels is not None
        return self._with((self._labels + step) % len(schema.classes))

    def data(self, users: Users, round: int, key: Key) -> Users:
        assert self._labels is not None, "agree() comes first"
        marked = self.signal.place(users.x, users.schema)
        return users.replace(x=marked, y=self._labels[Cells(self.signal, self.cells, users.schema).of(marked)])

    def success(self, predict: Predict, test: Examples) -> dict[str, float]:
        target = self.target_class(test.schema)
        away = predict(self.signal.marked(test)) != target
        found = {"success": float(away.mean())}
        return found | ({"success@target": float(away[test.y == target].mean())} if (test.y == target).any() else {})
