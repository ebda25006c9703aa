"""The floors and ceilings that apply to a run, beside its measured success, or the reason why none does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fedacdp import contradictions
from fedacdp.config import Experiment
from fedacdp.strategy import Strategy
from fedacdp.theory import ceilings

CEILING, FLOOR = "success_ceiling", "success_floor"
"""Metrics of the tidy table. A ceiling bounds success in expectation over noise: the mean over seeds, never one run."""

_POINT = ["study", "setting", "alpha", "group"]
NO_FLOOR = (
    "the floors are about a learner that predicts the most frequent label at every point; how far a trained network is "
    "from it is not known"
)


def no_floor(experiment: Experiment) -> dict[str, Any]:
    """What stands for the certificate of a run whose manifest has none."""
    return {"note": "its manifest keeps no certificate" if experiment.model.learns_by == "counts" else NO_FLOOR}


def no_ceiling(experiment: Experiment) -> str | None:
    """Why no ceiling on success applies to this experiment; None if one does."""
    strategy, privacy = experiment.strategy, experiment.privacy
    if strategy.alpha == 0:
        return "there is no collective"
    if strategy.changes_users:
        return "without the collective the platform has other users, and divides by their number"
    if experiment.model.learns_by == "ratings":
        return "what members are shown depends on what they send themselves, not on the released model alone"
    if privacy.unit == "none":
        return "without noise nothing is out of reach"
    if privacy.unit != "user":
        return f"the noise protects one {privacy.unit}, but a member changes all of its records"
    if strategy.protocols - {"compliant", "fills_clip"}:
        return "members who leave out their noise are not bounded by what honest messages would be"
    if experiment.aggregation.needs_messages:
        return f"the server does not add messages up ({experiment.aggregation.name})"
    if getattr(privacy, "noise_cohort", None) is not None:
        return "the noise is that of a larger cohort (noise_cohort), in which a member weighs less"
    if privacy.name not in ("central", "central_adaptive", "local_update"):
        return f"no ceiling is known for {privacy.name}"
    each = [strategy, *getattr(strategy, "collectives", {}).values()]
    if any(s.leaves for s in each):
        return "success counts members who are gone as not served, whatever the released model is"
    if privacy.name == "local_update" and any(type(s).participates is not Strategy.participates for s in each):
        return "members who send nothing take their noise with them"
    return None


def shifts(experiment: Experiment, noise_multiplier: float, rounds: pd.DataFrame) -> dict[int, float]:
    """After each round, how far apart in Gaussian DP the collective can have moved the models so far.

    rounds: a run's rows. From the members who acted, the updates sent and the users sampled, as they were logged
    (`ceilings.central_shift`, `ceilings.local_mean_shift`: the server sees the sum alone). The count that adapts a clip
    norm is charged in the noise multiplier, and a member moves it as it does the sum: by one unit of its sensitivity
    when missing, by two when changed. ValueError where `no_ceiling`.
    """
    reason = no_ceiling(experiment)
    if reason is not None:
        raise ValueError(f"experiment: {reason}")
    by_round = rounds[rounds["metric"].isin(["messages", "cohort_size"])].pivot(
        index="round", columns=["metric", "group"], values="value"
    )
    acting, sent, sampled = (
        by_round[name].to_numpy() for name in (("messages", "acting"), ("messages", "all"), ("cohort_size", "all"))
    )
    if experiment.privacy.observer == "model_holder":
        lost = by_round[("messages", "lost")].to_numpy() if ("messages", "lost") in by_round else np.zeros(len(sent))
        silent = sampled - sent - lost  # a message is lost whether its sender is in a collective or not
        each = [ceilings.central_shift(acting[[t]], noise_multiplier, silent[[t]]) for t in range(len(by_round))]
    else:
        each = [ceilings.local_mean_shift(acting[[t]], sent[[t]], noise_multiplier) for t in range(len(by_round))]
    total = np.sqrt(np.cumsum(np.square(each)))  # Gaussians compose by root sum of squares
    return {int(at): float(shift) for at, shift in zip(by_round.index, total, strict=True)}


def rows(
    table: pd.DataFrame,
    runs: Mapping[tuple[str, str], tuple[Experiment, float, pd.DataFrame]],
    certificates: Mapping[tuple[str, str], Mapping[str, Any]],
) -> pd.DataFrame:
    """Rows of CEILING and FLOOR for a tidy table.

    runs: by study and run_id the experiment, its noise multiplier and its rows. For each `success_baseline` where a
    ceiling applies: the ceiling at the mean baseline of the repetitions (runs that agree in study, setting and alpha)
    and their largest shift; it bounds the mean of their success. It is concave in the baseline and rises with the
    shift, so the mean over seeds is bounded by it; the mean baseline itself is an estimate. The floor is the run's
    certificate, as its manifest keeps it (see `certified.certificate`), at its last success. At the last round the
    `note` says where the runs contradict their bounds (`contradictions`). Where there is no bound, one row at the run's
    last success with the value NaN and the reason in `note`.
    """
    success = table[table["metric"] == "success"]
    last = _goals(success[success["round"] == success.groupby(["study", "run_id"])["round"].transform("max")])
    slots = list(zip(last["study"], last["run_id"], strict=True))
    compared = table[table["metric"] == "success_baseline"]
    have = set(zip(compared["study"], compared["run_id"], strict=True))
    moved, reasons = {}, []
    for slot in slots:
        experiment, noise_multiplier, rounds = runs[slot]
        reason = no_ceiling(experiment) or (None if slot in have else "there is no run without the collective")
        if reason is None and not ((rounds["metric"] == "messages") & (rounds["group"] == "acting")).any():
            reason = "its rounds do not say how many members acted"
        reasons.append(reason)
        if reason is None and slot not in moved:
            moved[slot] = shifts(experiment, noise_multiplier, rounds)
    floors = [certificates.get(slot) or no_floor(runs[slot][0]) for slot in slots]
    floor = last.assign(
        metric=FLOOR,
        value=[found.get("value", math.nan) for found in floors],
        note=[found["note"] for found in floors],
        success=last["value"],
        delta=[found.get("delta", math.nan) for found in floors],
    )
    absent = last.assign(metric=CEILING, value=math.nan, note=reasons)[
        np.array([reason is not None for reason in reasons], dtype=bool)
    ]
    keys = list(zip(compared["study"], compared["run_id"], compared["round"], strict=True))
    bounded = compared[np.array([key[:2] in moved for key in keys], dtype=bool)].copy()
    bounded["shift"] = [moved[study, run_id][at] for study, run_id, at in keys if (study, run_id) in moved]
    alike = bounded.groupby(["study", "setting", "alpha", "round", "group"], dropna=False)
    base, shift = alike["value"].transform("mean"), alike["shift"].transform("max")
    ceiling = np.array([ceilings.separated(b, s) for b, s in zip(base, shift, strict=True)], dtype=np.float64)
    bounded = bounded.assign(metric=CEILING, value=ceiling, note="", baseline=bounded["value"], shift=shift)
    _flag(bounded, floor, success)
    return pd.concat([bounded, absent, floor], ignore_index=True)[[*table, "note"]]


def _goals(success: pd.DataFrame) -> pd.DataFrame:
    """Of rows of success those of everybody, or, where there are several collectives, of each."""
    everybody, runs = success["group"] == "all", [success["study"], success["run_id"]]
    return success[
        everybody | ~(everybody.groupby(runs).transform("any") | success["group"].str.contains(".", regex=False))
    ]


def _flag(bounded: pd.DataFrame, floor: pd.DataFrame, success: pd.DataFrame) -> None:
    """Note in the last rounds' rows of CEILING (`shift`, `baseline`) and FLOOR (`success`, `delta`) what the runs that
    are done contradict."""
    at = ["study", "run_id", "round", "group"]
    last = bounded[
        (bounded["status"] == "done") & (bounded["round"] == bounded.groupby("run_id")["round"].transform("max"))
    ]
    won = success.set_index(at)["value"]
    points = last.groupby(_POINT, dropna=False)
    certified = floor[floor["value"].notna() & (floor["status"] == "done")].groupby(_POINT, dropna=False)
    level = contradictions.LEVEL / max(1, len(points) + len(certified))
    for _, rows in certified:
        said = contradictions.below_floor(rows["success"], rows["value"], rows["delta"].max(), level)
        floor.loc[rows.index, "note"] = said or rows["note"]
    for _, rows in points:
        reached = won.reindex(pd.MultiIndex.from_frame(rows[at])).to_numpy()
        bounded.loc[rows.index, "note"] = contradictions.above_ceiling(
            reached, rows["baseline"].to_numpy(), rows["shift"].iloc[0], level
        )
