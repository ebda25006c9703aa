"""What share of a round is not local training.

    python -m benchmarks.share '{"experiment": ..., "execution": ...}'      # execution: engine local
A turn is at least LEAST seconds of rounds. `rate` is the share of their time outside local training, everything else
included: cohort, keys, data access, strategy, clipping, noise, the server's step, evaluation, metrics, rows. Beside it
the shares of the parts of that rest, as far as they are functions of their own.

Local training is `train_users` and two products of the dual form that belong to the gradients, which a plain loop has
at its steps and the dual form once, at the end: K c for the norms and c^T A for the sum. Their share is given too.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.turns import LEAST, answered
from fedacdp import rounds
from fedacdp.config import Execution, experiment_from
from fedacdp.data.base import Federation
from fedacdp.local.updates import Updates
from fedacdp.setting import prepare
from fedacdp.study import here

PRODUCTS = ("norms", "sum")
spent: dict[str, float] = defaultdict(float)


def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its seconds added to `spent[part]`."""

    def timing(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent[part] += time.perf_counter() - began

    return timing


class Timed(Updates):
    """Updates whose norms and sum are timed."""

    def __init__(self, updates: Updates):
        self._updates, self.draws = updates, updates.draws

    @property
    def norms(self) -> np.ndarray:
        return timed("norms", lambda: self._updates.norms)()

    def total(self, factors: np.ndarray) -> np.ndarray:
        return timed("sum", self._updates.total)(factors)

    def stack(self) -> torch.Tensor:
        return self._updates.stack()


def watch() -> None:
    """Put clocks around the parts of a round."""
    train = timed("training", rounds.train_users)
    rounds.train_users = lambda *args: Timed(train(*args))
    for part, name in (("cohort", "draw_cohort"), ("strategy", "act"), ("evaluation", "evaluate")):
        setattr(rounds, name, timed(part, getattr(rounds, name)))
    Federation.users = timed("data", Federation.users)  # type: ignore[method-assign]


def main() -> None:
    given = json.loads(sys.argv[1])
    execution = Execution.model_validate(given["execution"])
    setting = prepare(experiment_from(given["experiment"]), execution)
    watch()
    with here(execution) as compute:
        running, rows = rounds.run(setting, execution, compute), []
        rows.append(next(running)[1])
        going = answered({"ready": True})
        while going:
            spent.clear()
            began = time.perf_counter()
            while time.perf_counter() - began < LEAST:
                rows.append(next(running)[1])
            seconds = time.perf_counter() - began
            shares = {part: value / seconds for part, value in spent.items()}
            training = sum(shares.pop(part, 0.0) for part in ("training", *PRODUCTS))
            products = sum(spent[part] for part in PRODUCTS) / seconds
            going = answered({"rate": 1 - training, "products": products, **shares})


if __name__ == "__main__":
    main()
