"""Rows of the tidy table that follow from a run's own rows and its baseline's."""

from __future__ import annotations

import pandas as pd

from fedacdp import outcomes
from fedacdp.strategy import Strategy

ONLY_OWN = (
    "cohort_size",
    "messages",
    "nonfinite_updates",
    "clipped_fraction",
    "update_norm",
    "effective_share",
    "clip_norm",
    "aborted",
    "class_accuracy",
)
"""Metrics that get no baseline: what the server saw in a round, and what only utilities are made of."""


def derived(
    own: pd.DataFrame,
    baseline: pd.DataFrame | None,
    strategy: Strategy,
    shares: dict[str, dict[str, float]],
    served: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Rows like `own` (round, metric, group, value, seconds), in each of its rounds where both were measured:

    `<metric>_baseline`, and of the same rounds and groups `accuracy_drop` and `amplification` (group "all"); `utility`
    and `utility_baseline` of the parties in `shares` (their label shares) and of group `platform`, its accuracy on
    held-out records; in the last round `persistence`, or `persistence_at_least`. Formulas: `fedacdp.outcomes`. Of
    rankings, from what each user was `served` at the end of the run and of its baseline, in the last round `gap_lost`,
    `gap_lost_part` and `surfaced_hits_change`, see `gaps`.
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
    if served is not None and len(own):
        last = own[own["round"] == own["round"].max()].iloc[0]
        rows = [(last["round"], metric, group, value, last["seconds"]) for metric, group, value in gaps(*served)]
        found.append(pd.DataFrame(rows, columns=list(own)).astype(own.dtypes.to_dict()))
    return pd.concat([frame[list(own)] for frame in found if len(frame)] or [own.head(0)], ignore_index=True)


def gaps(now: pd.DataFrame, full: pd.DataFrame) -> list[tuple[str, str, float]]:
    """(metric, group, value) from a run's users and its baseline's, both in order: `gap_lost` of all, and of members,
    others, free-riders and bystanders by themselves, with their own hits and item-mean hits, the item means being the
    baseline's; and `gap_lost_part`, the hits that a party lost over the gap of all: the parts of members and others add
    up to what all have lost (after Vincent, Hecht, Sen 2019, WWW). Both are left out where the baseline has no edge
    over item means, and say little where that edge is a few hits. `surfaced_hits_change`: hits / the baseline's - 1;
    that of free-riders over that of bystanders is the authors' similar-user effect ratio."""
    party, found = now["party"], []
    gap = full["hits"].sum() - full["impersonal"].sum()
    members = party == "members"
    groups = {"all": members | True} | ({"members": members, "others": ~members} if members.any() else {})
    groups |= {name: party == name for name in ("free_riders", "bystanders") if members.any() and (party == name).any()}
    for group, who in groups.items():
        before, after, impersonal = full["hits"][who].sum(), now["hits"][who].sum(), full["impersonal"][who].sum()
        if before > 0:
            found.append(("surfaced_hits_change", group, float(after / before - 1)))
        if before > impersonal:
            found.append(("gap_lost", group, outcomes.gap_lost(float(before), float(after), float(impersonal))))
        if gap > 0 and group != "all":
            found.append(("gap_lost_part", group, float((before - after) / gap)))
    return found


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
