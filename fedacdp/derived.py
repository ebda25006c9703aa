"""Rows of the tidy table that follow from a run's own rows and its baseline's."""

from __future__ import annotations

import pandas as pd

from fedacdp import outcomes
from fedacdp.strategy import Strategy

ONLY_OWN = ("cohort_size", "messages", "nonfinite_updates", "clipped_fraction", "update_norm", "class_accuracy")
"""Metrics that get no baseline: what the server saw in a round, and what only utilities are made of."""


def derived(
    own: pd.DataFrame, baseline: pd.DataFrame | None, strategy: Strategy, shares: dict[str, dict[str, float]]
) -> pd.DataFrame:
    """Rows like `own` (round, metric, group, value, seconds), in each of its rounds where both were measured:

    `<metric>_baseline`, and of the same rounds and groups `accuracy_drop` and `amplification` (group "all"); `utility`
    and `utility_baseline` of the parties in `shares` (their label shares) and of group `platform`, its accuracy on
    held-out records; in the last round `persistence`, or `persistence_at_least`. Formulas: `fedacdp.outcomes`.
    """
    found = [_utilities(own, "utility", shares), _persistence(own, strategy)]
    if baseline is not None:
        measured = baseline[~baseline["metric"].isin(ONLY_OWN)]
        pairs = own.merge(measured, on=["round", "metric", "group"], suffixes=("", "_baseline"))
        found.append(measured.assign(metric=measured["metric"] + "_baseline"))
        found.append(_utilities(baseline, "utility_baseline", shares))
        hit = pairs[pairs["metric"] == "accuracy"]
        drop = [
            outcomes.accuracy_drop(before, after)
            for before, after in zip(hit["value_baseline"], hit["value"], strict=True)
        ]
        found.append(hit.assign(metric="accuracy_drop", value=drop))
        won = pairs[(pairs["metric"] == "success") & (pairs["group"] == "all")]
        if strategy.alpha > 0:
            rise = [
                outcomes.amplification(s, b, strategy.alpha)
                for s, b in zip(won["value"], won["value_baseline"], strict=True)
            ]
            found.append(won.assign(metric="amplification", value=rise))
    return pd.concat([frame[list(own)] for frame in found if len(frame)] or [own.head(0)], ignore_index=True)


def constructiveness(own: pd.DataFrame, alone: dict[str, pd.DataFrame], nobody: pd.DataFrame) -> pd.DataFrame:
    """Rows `constructiveness` like `own`, of the group of each collective in `alone`, in each round where its success
    was measured with both collectives (`own`), with it alone, and with nobody; none where the last was 0."""
    found = [own.head(0)]
    for name, rows in alone.items():
        parts = [frame[(frame["metric"] == "success") & (frame["group"] == name)] for frame in (own, rows, nobody)]
        cases = (
            parts[0]
            .merge(parts[1], on="round", suffixes=("", "_alone"))
            .merge(parts[2][["round", "value"]].rename(columns={"value": "nobody"}), on="round")
        )
        cases = cases[cases["nobody"] > 0]
        value = [
            outcomes.constructiveness(both, one, none)
            for both, one, none in zip(cases["value"], cases["value_alone"], cases["nobody"], strict=True)
        ]
        found.append(cases.assign(metric="constructiveness", value=value)[list(own)])
    return pd.concat(found, ignore_index=True)


def _utilities(rows: pd.DataFrame, metric: str, shares: dict[str, dict[str, float]]) -> pd.DataFrame:
    hits = rows[rows["metric"] == "class_accuracy"]
    found = [rows[(rows["metric"] == "accuracy") & (rows["group"] == "all")].assign(group="platform")]
    for (number, seconds), own in hits.groupby(["round", "seconds"]):
        accuracy = dict(zip(own["group"], own["value"], strict=True))
        values = {party: outcomes.utility(labels, accuracy) for party, labels in shares.items()}
        known = {party: value for party, value in values.items() if value is not None}
        found.append(
            pd.DataFrame({"round": number, "group": list(known), "value": list(known.values()), "seconds": seconds})
        )
    return pd.concat(found, ignore_index=True).assign(metric=metric).astype(rows.dtypes.to_dict())


def _persistence(own: pd.DataFrame, strategy: Strategy) -> pd.DataFrame:
    success, found = own[own["metric"] == "success"], []
    for group, stop in strategy.stops.items():
        rows = success[success["group"] == group].sort_values("round")
        lasted = outcomes.persistence(rows["round"].tolist(), rows["value"].tolist(), stop)
        if lasted is not None:
            name = "persistence" if lasted[1] else "persistence_at_least"
            found.append(rows.tail(1).assign(metric=name, value=float(lasted[0])))
    return pd.concat(found) if found else own.head(0)
