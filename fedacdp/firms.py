"""Rows of the tidy table that follow from the runs of two firms: data leverage power."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from fedacdp.config import Experiment
from fedacdp.strategy import Strategy
from fedacdp.theory.leverage import contribution_power, strike_power

Run = tuple[str, str]
"""A study and a run_id."""

POWER = "dlp"
"""Metric of the tidy table, of a run's last round (Vincent, Hecht 2021; the formulas are in `theory.leverage`)."""


def rows(table: pd.DataFrame, runs: Mapping[Run, Experiment]) -> pd.DataFrame:
    """Rows of POWER for a tidy table; score: accuracy on held-out records in the last round, of runs that are done.

    At the second firm (strategy `contribution`), group "all": of contribution with a strike at the first firm if the
    run's `strike` says so, else without; group `with_strike` or `without_strike`: the other one. The two differ in the
    first firm's score alone. At the first firm, and for the strategy `strike`, group "all": of the strike alone.

    Compared are runs of the same study that agree in everything but the firm, and, for the score on all data, in alpha;
    base is the worst score of the study's contributions and strikes that agree in everything but the strategy. No row
    where a run is missing, or where the scores give no number because there is nothing to lose or win.
    """
    accuracy = table[(table["metric"] == "accuracy") & (table["group"] == "all") & (table["status"] == "done")]
    last = accuracy.loc[accuracy.groupby(["study", "run_id"])["round"].idxmax()] if len(accuracy) else accuracy
    score = dict(zip(zip(last["study"], last["run_id"], strict=True), last["value"], strict=True))
    involved = {slot: experiment for slot, experiment in runs.items() if slot in score and _levers(experiment.strategy)}
    worst: dict[tuple[str, str], float] = {}
    for slot, experiment in involved.items():
        world = slot[0], _world(experiment)
        worst[world] = min(score[slot], worst.get(world, score[slot]))
    found = []
    for slot, experiment in involved.items():

        def at(strategy: Strategy, study: str = slot[0], own: Experiment = experiment) -> float | None:
            return score.get((study, own.with_strategy(strategy).run_id))

        base = worst[slot[0], _world(experiment)]
        for group, power in _powers(experiment.strategy, score[slot], at, base):
            found.append((*slot, group, power))
    powers = pd.DataFrame(found, columns=["study", "run_id", "group", "value"])
    powers = powers.astype({"group": "str", "value": "float64"})  # also where there are none
    return last.drop(columns=["group", "value"]).merge(powers, on=["study", "run_id"]).assign(metric=POWER)


def _levers(strategy: Strategy) -> bool:
    return strategy.name in ("contribution", "strike")


def _world(experiment: Experiment) -> str:
    fields = json.loads(experiment.text)
    del fields["strategy"]
    return json.dumps(fields, sort_keys=True)


def _powers(
    strategy: Strategy, own: float, at: Callable[[Strategy], float | None], base: float
) -> Iterator[tuple[str, float]]:
    """Group and power, where there is one; `at`: the score of the same experiment with another strategy."""
    strikes, second = getattr(strategy, "strike", True), getattr(strategy, "firm", "first") == "second"
    best = _on_all_data(strategy, at)
    if second:
        struck = best if strategy.alpha == 0 else at(strategy.model_copy(update={"firm": "first", "strike": True}))
        for strike, large, name in ((False, best, "without_strike"), (True, struck, "with_strike")):
            if large is not None and large != base:
                yield "all" if strike == strikes else name, contribution_power(own, large, base)
    elif strikes and best is not None and best != base:
        yield "all", strike_power(own, best, base)


def _on_all_data(strategy: Strategy, at: Callable[[Strategy], float | None]) -> float | None:
    """The first firm's score if nobody strikes: without members, or with members who do not strike."""
    if strategy.name == "strike":
        return at(strategy.without_members)
    for change in ({"alpha": 0.0, "strike": True}, {"alpha": 0.0, "strike": False}, {"strike": False}):
        found = at(strategy.model_copy(update={"firm": "first", **change}))
        if found is not None:
            return found
    return None
