"""The success that a run's collective certifies from its own records, a floor, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedacdp.bounds import NO_FLOOR
from fedacdp.config import Experiment
from fedacdp.models.histogram import Counts
from fedacdp.privacy.base import Noisy
from fedacdp.setting import Setting
from fedacdp.signals import Signal
from fedacdp.theory import certificates, thresholds
from fedacdp.theory.certificates import Cells, Terms
from fedacdp.theory.erasing import erasing_unassumed
from fedacdp.users import Schema

DELTA = 0.05
"""The chance, over the draw of all users, that a certificate is above the success."""

THEOREMS = {
    "feature_label": "Theorem 3.3",
    "feature_only": "as Theorem 3.5, for members who leave other records as they are",
    "feature_only_x0": "Theorem 3.5",
    "naive_unplanting": "Theorem 3.3 for each label",
    "adaptive_unplanting": "Theorem 3.7",
    "erasing": "as Theorem 3.9, without its assumption",
}
"""What is certified for each of the plays of `strategy.Play`; numbers are those of Gauthier, Bach and Jordan 2025."""

_TOGETHER = 2**14


def no_certificate(experiment: Experiment) -> str | None:
    """Why no certificate is about this experiment, as far as that can be told without its records; None if one is.

    Certificates are about N independent records that all count alike, from one distribution, the test records too,
    and members who all play the same.
    """
    strategy, privacy, data, training = experiment.strategy, experiment.privacy, experiment.data, experiment.training
    partition = {
        "dirichlet": "users have different kinds of records, which are therefore not independent",
        "by_column": "users have different kinds of records, which are therefore not independent",
        "resampled": "users' records are drawn from the training part, the test records are not",
    }
    reasons = {
        NO_FLOOR: experiment.model.learns_by != "counts",
        "there is no collective": strategy.alpha == 0,
        f"no certificate is known for the strategy {strategy.name}": strategy.play is None,
        "members are drawn from a group, and their records may differ from everybody's": strategy.members_from,
        "not all members act (compliance), and the certificates are about members who do": strategy.compliance < 1,
        "not all members play the same (coordination_noise)": strategy.coordination_noise > 0,
        "members leave the privacy protocol": strategy.protocols != {"compliant"},
        "members do not act in every round": strategy.start > 1 or (strategy.stop or math.inf) < training.rounds,
        "the noise is that of a larger cohort (noise_cohort)": getattr(privacy, "noise_cohort", None) is not None,
        "not everybody is counted alike: rounds are on samples of users": training.sampling_prob < 1,
        "not everybody is counted: messages are lost (dropout)": training.dropout > 0,
        partition.get(data.partition, ""): data.partition in partition,
        f"no certificate is known for the noise of {privacy.name}": privacy.name
        not in ("none", "central", "local_update"),
    }
    return next((reason for reason, there in reasons.items() if there), None)


def certificate(setting: Setting) -> dict[str, Any]:
    """What a run's manifest keeps: `note`, and where there is a certificate its `value`, with Hoeffding's inequality
    and delta = DELTA, from the records that the members have in this run.

    The platform tells apart the cells of the histogram, so these are the theorems' x; x~ are those that g(x) can be in.
    Members' records in a cell count whatever makes them lie there, the signal or another level that the model merges
    with it. The noise of a private platform is that of its counts, in records (`noise_sd`); see `Terms`.
    """
    reason = no_certificate(setting.experiment)
    if reason is not None:
        return {"note": reason}
    sizes, mechanism = setting.federation.sizes, setting.mechanism
    if not setting.member.any():
        return {"note": f"there is nobody in the collective: its share of {len(sizes)} users is less than half a user"}
    most = int(sizes.max())
    if isinstance(mechanism, Noisy) and 1 < most > mechanism.clip_norm:
        return {"note": f"clipping: users of up to {most} records count less for each than others do"}
    seen = _seen(setting)
    if isinstance(seen, str):
        return {"note": seen}
    cells, n = seen, int(sizes[setting.member].sum())
    terms = Terms(int(sizes.sum()), len(setting.federation.test), DELTA, noise_sd=noise_sd(setting))
    value, needed = certificates.certified(cells, terms, n), thresholds.members_needed(cells, terms, 0)
    note = f"{THEOREMS[str(setting.strategy.play)]}; holds with probability {1 - DELTA:g} over the draw of users"
    if value <= 0:
        enough = "no number of them would" if needed is None else f"{needed} would certify something"
        note = f"vacuous: {n} members' records certify nothing; if frequencies stay, {enough}"
    return {
        "note": note,
        "value": value,
        "delta": DELTA,
        "delta_tilde": certificates.delta_tilde(cells, terms),
        "theorem": THEOREMS[str(setting.strategy.play)],
        "cells": len(cells.mass),
        "cells_certified": int(certificates.winning(cells, terms, n).sum()),
        "records": n,
        "platform_size": terms.platform_size,
        "test_size": terms.test_size,
        "noise_sd": terms.noise_sd,
        "records_needed": needed,
    }


def noise_sd(setting: Setting) -> float:
    """Standard deviation of the noise on each of the platform's counts, if one record counts as 1.

    A record counts as min(1, C) in each round, and the noise of a round is z C, or z C sqrt(N) where all of N users
    add theirs; rounds of everybody add up to T times the same counts and to noise sqrt(T) times as large.
    """
    mechanism, rounds = setting.mechanism, setting.experiment.training.rounds
    if not isinstance(mechanism, Noisy):
        return 0.0
    limit = mechanism.message_limit(setting.plan)
    spread = 1.0 if mechanism.observer == "model_holder" else math.sqrt(setting.plan.users)
    return mechanism.sigma * spread / min(1.0, mechanism.clip_norm) / math.sqrt(rounds if limit is None else limit)


@dataclass(frozen=True)
class _Tables:
    """Members' records by cell and label (K, Y): by the cell of x, `asked` of the estimators and `natural` of all
    others; `planted` by that of g(x); `sent` by the cell and label of what they send. `labels` (K,): the label sent
    where g(x) is the cell, -1 for none, -2 for several."""

    asked: np.ndarray
    natural: np.ndarray
    planted: np.ndarray
    sent: np.ndarray
    labels: np.ndarray


def _seen(setting: Setting) -> Cells | str:
    """What the theorem of the strategy looks at, or why it is not about it."""
    strategy, schema, net = setting.strategy, setting.federation.schema, setting.net
    assert isinstance(net, Counts)
    play, signal, target = strategy.play, strategy.signal, strategy.target_class(schema)  # type: ignore[attr-defined]
    cells, anchor = _signal_cells(net, signal, schema)
    if play == "erasing":
        cells = np.append(np.arange(net.cells), -1)
    found = _tables(setting, net, signal, cells)
    if isinstance(found, str):
        return found
    natural = found.asked + found.natural
    if (found.labels == -2).any() and play not in ("feature_only", "feature_only_x0"):
        return "members send several labels to one of the platform's cells"
    labels = np.maximum(found.labels, 0)
    if target is None:
        erased = None if anchor is None else erasing_unassumed(natural, anchor, labels)
        return erased or "the signal moves records of one of the platform's cells to several"
    if play == "feature_label":
        return certificates.feature_label(natural, found.planted, target)
    if play in ("feature_only", "feature_only_x0"):
        # What members themselves leave to the rivals in a cell is known to them, and taken off their mass.
        seen = certificates.feature_only(natural, found.planted, target)
        theirs = np.delete(found.sent, target, axis=1).max(axis=1)
        mass = (found.sent[:, target] - theirs) / found.planted.sum()
        return Cells(seen.outer, mass, seen.own, seen.rivals, seen.events)
    if play == "naive_unplanting":
        [label] = set(found.labels) - {-1}
        return certificates.naive_unplanting(natural, found.planted, target)[label - (label > target)]
    chosen = np.eye(len(schema.classes))[labels]
    assert strategy.estimating is not None
    few = int(setting.federation.sizes[strategy.estimating].sum())
    if few == found.planted.sum():
        return "all members were set apart to choose the labels"
    return certificates.unplanting(chosen, found.natural, found.planted, few, target)[0]


def _signal_cells(net: Counts, signal: Signal, schema: Schema) -> tuple[np.ndarray, np.ndarray | None]:
    """(cells + 1,): the number of each of the platform's cells among those that g(x) can lie in, -1 for the others and
    for no cell, which comes last; and (cells,) the cell that g moves each cell to, None if that depends on the record.

    What g does to a column is seen from two records that differ in it: it sets the column, or leaves it as it is, or
    else the result may be anything.
    """
    probe = np.stack([np.full(schema.shape, value, np.float32) for value in (0, 1)])
    marked, ids, stride, whole = signal.place(probe, schema), np.arange(net.cells), net.cells, True
    inside, anchor = np.ones(net.cells, bool), ids.copy()
    for axis in net.axes:
        stride //= axis.values
        part, digit = slice(axis.column.start, axis.column.stop), ids // stride % axis.values
        if np.array_equal(marked[0, part], marked[1, part]):
            value = Counts((axis,), net.classes, net.order).cell(marked[:1])[0]
            inside &= digit == value
            anchor += (value - digit) * stride
        elif not np.array_equal(marked[:, part], probe[:, part]):
            whole = False
    found = np.full(net.cells + 1, -1)
    found[:-1][inside] = np.arange(inside.sum())
    return found, anchor if whole else None


def _tables(setting: Setting, net: Counts, signal: Signal, cells: np.ndarray) -> _Tables | str:
    """Members' records counted, or why they cannot be; `cells` as in `_signal_cells`."""
    strategy, federation, ids = setting.strategy, setting.federation, np.flatnonzero(setting.member)
    shape, key = (int(cells.max()) + 1, net.classes), setting.key.fold("strategy", 1).fold("data")
    tables, labels = np.zeros((4, math.prod(shape)), np.int64), np.full(shape[0], -1)
    asked = np.zeros(len(ids), bool) if strategy.estimating is None else np.isin(ids, strategy.estimating)
    for first in range(0, len(ids), _TOGETHER):
        some = slice(first, first + _TOGETHER)
        users = federation.users(ids[some], np.ones(len(ids[some]), bool))
        there, played = users.mask, strategy.data(users, 1, key)
        x, y, label = users.x[there], users.y[there], played.y[there]
        own, moved, sent = (cells[net.cell(rows)] for rows in (x, signal.place(x, federation.schema), played.x[there]))
        if (moved < 0).any():
            return "a member's record lies in none of the platform's cells"
        few = np.broadcast_to(asked[some, None], there.shape)[there]
        own = np.where(own < 0, -1, own * net.classes + y)
        sent = np.where(sent < 0, -1, sent * net.classes + label)
        for table, slot in zip(tables, (own[few], own[~few], moved * net.classes + y, sent), strict=True):
            table += np.bincount(slot[slot >= 0], minlength=len(table))
        labels[moved] = np.where(labels[moved] == -1, label, labels[moved])
        labels[moved[labels[moved] != label]] = -2
    by_cell = tables.reshape(4, *shape)
    return _Tables(by_cell[0], by_cell[1], by_cell[2], by_cell[3], labels)
