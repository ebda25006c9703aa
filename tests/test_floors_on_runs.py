"""A run's floor is the certificate of its members' own records, and no run that no theorem is about has one."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal

import numpy as np
import pytest
from scipy.stats import binom, chi2

from fedacdp import bounds
from fedacdp.certified import DELTA, certificate, noise_sd
from fedacdp.config import parts_of
from fedacdp.data.base import Source
from fedacdp.grid import read_study
from fedacdp.results import manifest_of, table
from fedacdp.rounds import compute_here, run
from fedacdp.setting import prepare
from fedacdp.signals import Cells
from fedacdp.study import Quiet, execute, plan
from fedacdp.theory import certificates as ct
from fedacdp.theory import thresholds
from fedacdp.theory.erasing import erasing_unassumed
from fedacdp.theory.private_histogram import predictions
from fedacdp.users import Column, Examples, Schema
from tests.conftest import CELLS, Toy, experiment, local

SIGNAL = {"name": "columns", "values": {"colour": "red"}}
COARSE = {"name": "histogram", "cells": ["colour", "size"], "levels": {"colour": ["red"]}}
PLANTING = {"name": "planting", "alpha": 0.3, "y_star": "z", "signal": SIGNAL}
X0 = {"name": "columns", "values": {"colour": "blue"}}
UNPLANTING = {"name": "unplanting", "alpha": 0.3, "y_star": "z", "signal": SIGNAL, "cells": ["size"]}
ERASING = {"name": "erasing", "alpha": 0.3, "signal": SIGNAL, "cells": ["size"]}
PLAYS: dict[str, dict[str, Any]] = {
    "feature_label": PLANTING,
    "feature_only": {**PLANTING, "form": "feature_only"},
    "feature_only_x0": {**PLANTING, "form": "feature_only_x0", "x0": X0},
    "naive_unplanting": UNPLANTING,
    "adaptive_unplanting": {**UNPLANTING, "form": "adaptive", "estimator_count": 30},
    "erasing": ERASING,
}
CENTRAL = {"name": "central", "noise_multiplier": 3.0, "delta": 1e-5, "clip_norm": 1.0}


def counting(**changes: Any):
    base: dict[str, Any] = {
        "data": Toy(users=400),
        "model": COARSE,
        "strategy": PLANTING,
        "training": {"rounds": 1, "sampling_prob": 1.0},
    }
    return experiment(**base | changes)


def words(x, schema):
    """A record's cell among the eight of COARSE: whether it is red, and its size."""
    colour, size = schema.column("colour"), schema.column("size")
    red = x[colour.start + colour.levels.index("red")] == 1
    return bool(red), int(np.argmax(x[size.start : size.stop]))


def by_hand(setting):
    """Members' records one after another: (red, size, label) as they are."""
    member = np.flatnonzero(setting.member)
    everybody = setting.federation.users(member, np.ones(len(member), bool))
    return [(user, *words(x[0], setting.federation.schema), int(y[0])) for user, x, y in everybody]


@pytest.mark.parametrize("play", PLAYS)
def test_a_floor_is_the_certificate_of_the_records_that_members_have_in_that_run(play):
    few = {"estimator_count": 3_000} if play == "adaptive_unplanting" else {}
    strategy = {**PLAYS[play], "alpha": 0.8, **few}
    setting = prepare(counting(data=Toy(users=20_000, rows=20_000), strategy=strategy, seed=3), local())
    assert setting.strategy.play == play
    records, n = by_hand(setting), 16_000
    assert len(records) == n
    natural, planted = np.zeros((4, 3)), np.zeros((4, 3))
    for _, red, size, y in records:
        planted[size, y] += 1
        natural[size, y] += red
    found, z = certificate(setting), 2
    if play == "erasing":
        both = np.zeros((8, 3))  # the red cells come first
        for _, red, size, y in records:
            both[size + (0 if red else 4), y] += 1
        anchor = np.array([0, 1, 2, 3] * 2)
        cells = erasing_unassumed(both, anchor, both.argmax(axis=1))
        assert cells.events == 2 + 2 * 8 + 4 * 24
    elif play == "feature_label":
        cells = ct.feature_label(natural, planted, z)
    elif play == "feature_only_x0":
        cells = ct.feature_only(natural, planted, z)
    elif play == "feature_only":
        # Margin of a cell, in records: own label of members' records less the rival's that are red by nature.
        plain = ct.feature_only(natural, planted, z)
        cells = ct.Cells(plain.outer, plain.mass - natural[:, :z].max(axis=1) / n, plain.own, plain.rivals, 34)
    elif play == "naive_unplanting":
        sent = set(
            setting.strategy.data(setting.federation.users(np.arange(9), np.ones(9, bool)), 1, setting.key).y[:, 0]
        )
        [label] = sent
        cells = ct.naive_unplanting(natural, planted, z)[label]
        cells = dataclasses.replace(cells, events=2 * 2 + 2 * 4 + 2 * 12 + 2 * 8)
    else:
        asked = np.zeros((4, 3))
        chosen = set(setting.strategy.estimating.tolist())
        assert len(chosen) == 3_000
        for user, red, size, y in records:
            asked[size, y] += red and user in chosen
        assert asked.any(axis=1).all()
        cells, _ = ct.unplanting(asked, natural - asked, planted, 3_000, z)
    terms = ct.Terms(20_000, 120, DELTA)
    assert found["value"] == pytest.approx(ct.certified(cells, terms, n), abs=1e-12)
    assert found["records_needed"] == thresholds.members_needed(cells, terms, 0)
    assert found["cells_certified"] == ct.winning(cells, terms, n).sum() > 0
    assert found["delta_tilde"] == pytest.approx(ct.delta_tilde(cells, terms), rel=1e-12)
    assert (found["records"], found["platform_size"], found["test_size"]) == (n, 20_000, 120)
    assert found["cells"] == (8 if play == "erasing" else 4)
    assert found["value"] > 0
    assert "probability 0.95" in found["note"]


def test_cells_are_those_of_the_platform_and_members_records_count_there_whatever_makes_them_lie_there():
    """Merged levels: blue and red are one level of the model, so that blue records are where the signal leads."""
    merged = {**COARSE, "levels": {"colour": ["green"]}}
    setting = prepare(counting(model=merged, seed=3), local())
    schema, natural = setting.federation.schema, np.zeros((4, 3))
    planted = np.zeros((4, 3))
    member = np.flatnonzero(setting.member)
    for _, x, y in setting.federation.users(member, np.ones(len(member), bool)):
        colour, (_, size) = schema.column("colour"), words(x[0], schema)
        planted[size, y[0]] += 1
        natural[size, y[0]] += x[0][colour.start + colour.levels.index("green")] == 0
    terms, cells = ct.Terms(400, 120, DELTA), ct.feature_label(natural, planted, 2)
    found = certificate(setting)
    assert found["value"] == pytest.approx(ct.certified(cells, terms, 120), abs=1e-12)
    assert (
        natural.sum()
        > 1.5
        * Cells(setting.strategy.signal, ("size",), schema)
        .tally([setting.federation.users(member, np.ones(len(member), bool))])[0]
        .sum()
    )


def test_columns_that_the_signal_adds_to_leave_every_value_possible():
    offset = {"name": "offset", "column": "age", "amount": 40.0}
    setting = prepare(counting(model=CELLS, strategy={**PLANTING, "signal": offset}), local())
    assert certificate(setting)["cells"] == 36
    both = prepare(counting(model=CELLS, strategy=PLANTING), local())
    assert certificate(both)["cells"] == 12


# What no certificate is about

ONLY_COLOUR = {"name": "histogram", "cells": ["colour"]}
DIRICHLET = {"users": 400, "partition": "dirichlet", "concentration": 1.0}
OFTEN = {"rounds": 4, "sampling_prob": 1.0}
WITHOUT: list[tuple[dict[str, Any], str]] = [
    ({"strategy": {**PLANTING, "alpha": 0.0}}, "no collective"),
    ({"strategy": {"name": "poisoning", "to": 1, "alpha": 0.3}}, "strategy poisoning"),
    ({"strategy": {"name": "several", "collectives": {"a": PLANTING}}}, "strategy several"),
    ({"strategy": {**PLANTING, "members_from": "label=x"}}, "drawn from a group"),
    ({"strategy": {**PLANTING, "compliance": 0.9}}, "compliance"),
    ({"strategy": {**PLANTING, "coordination_noise": 0.1}}, "coordination_noise"),
    ({"strategy": {**PLANTING, "stop": 3}, "training": OFTEN}, "every round"),
    ({"strategy": {**PLANTING, "start": 2}, "training": OFTEN}, "every round"),
    ({"training": {"rounds": 1, "sampling_prob": 0.5}}, "samples of users"),
    ({"data": Toy(**DIRICHLET)}, "different kinds"),
    ({"data": Toy(users=400, partition="resampled", records=1)}, "training part"),
    ({"privacy": {"name": "randomised_response", "message_epsilon": 1.0}}, "randomised_response"),
    ({"data": Toy(users=100), "privacy": {**CENTRAL, "clip_norm": 3.0}}, "clipping"),
    ({"strategy": {**PLAYS["adaptive_unplanting"], "estimator_count": 120}}, "set apart"),
    ({"strategy": {**UNPLANTING, "form": "adaptive"}, "model": ONLY_COLOUR}, "several labels"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), WITHOUT)
def test_a_run_that_no_theorem_is_about_says_why(changes, reason):
    found = certificate(prepare(counting(**changes), local()))
    assert "value" not in found
    assert reason in found["note"]
    assert bounds.NO_FLOOR not in found["note"]


@pytest.mark.parametrize("play", PLAYS)
def test_a_share_too_small_for_one_member_has_no_floor_and_the_run_goes_on(play):
    setting = prepare(counting(strategy={**PLAYS[play], "alpha": 0.001}), local())
    assert not setting.member.any()
    found = certificate(setting)
    assert "value" not in found
    assert "nobody in the collective" in found["note"]
    assert len(list(run(setting, local(), compute_here))) == 1


def test_what_looks_like_it_but_is_covered_has_a_floor():
    for changes in (
        {"training": OFTEN},
        {"strategy": {**PLANTING, "stop": 4}, "training": OFTEN},
        {"data": Toy(users=100), "privacy": {**CENTRAL, "clip_norm": 4.0}},
        {"data": Toy(users=100, partition="sizes", spread=1.0)},
    ):
        found = certificate(prepare(counting(**changes), local()))
        assert "value" in found
        assert found["platform_size"] == 400
    assert certificate(prepare(experiment(), local())) == {"note": bounds.NO_FLOOR}


# The platform's noise


@pytest.mark.parametrize("name", ["central", "local_update"])
@pytest.mark.parametrize("clip", [0.5, 4.0])
@pytest.mark.parametrize(("rounds", "limit"), [(1, 1), (6, 4)])
def test_the_noise_of_the_certificate_is_that_of_the_counts(name, clip, rounds, limit):
    """Against the same run without noise, in records; 36 cells, 3 labels, 4 seeds. False alarm 1e-6."""
    squares, count = 0.0, 0
    for seed in range(4):
        training = {"rounds": rounds, "sampling_prob": 1.0}
        privacy = {"name": name, "noise_multiplier": 1.5, "delta": 1e-5, "clip_norm": clip}
        if name == "local_update":
            privacy["max_messages"] = limit
        noisy, exact = (
            prepare(counting(model=CELLS, privacy=mechanism, training=training, seed=seed), local())
            for mechanism in (privacy, {**privacy, "noise_multiplier": 0.0})
        )
        one, other = (list(run(setting, local(), compute_here))[-1][0].parameters for setting in (noisy, exact))
        record = other.sum() / 400  # what one record has come to count
        squares += (((one - other) / record) ** 2).sum() / noise_sd(noisy) ** 2
        count += len(one)
    assert chi2.ppf(5e-7, count) < squares < chi2.isf(5e-7, count)
    assert certificate(noisy)["noise_sd"] == noise_sd(noisy) > 0


# Floors against success


class People(Toy):
    """Records of two columns anew for each seed; the label is rare where the signal is."""

    name: Literal["toy"] = "toy"
    seed: int = 0

    def of_seed(self, seed: int) -> People:
        return self.model_copy(update={"seed": seed})

    def load(self, folder):
        schema = Schema(
            (5,), ("x", "y", "z"), (Column("colour", 0, ("red", "blue")), Column("size", 2, ("1", "2", "3")))
        )
        rng, parts = np.random.default_rng((5, self.seed)), []
        for rows in (self.rows, 2_000):
            size = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
            red = rng.random(rows) < np.array([0.1, 0.3, 0.5])[size]
            y = np.where(rng.random(rows) < 0.4, size % 2, rng.integers(0, 3, rows))
            x = np.concatenate([np.eye(2)[np.where(red, 0, 1)], np.eye(3)[size]], axis=1).astype(np.float32)
            parts.append(Examples(x, y, schema))
        return Source(parts[0], parts[1])


ALLOWED = int(binom.isf(1e-6, 40, DELTA))


def pairs(play, alphas, privacy=None):
    """(floor, success) of a run of each alpha, each with people of its own."""
    found, strategy = [], PLAYS[play]
    if "unplanting" in play:
        strategy = {**strategy, "y_star": "x"}  # which leads in most of the cells
    for seed, alpha in enumerate(alphas):
        setting = prepare(
            counting(
                data=People(users=20_000, rows=20_000),
                model={"name": "histogram", "cells": ["colour", "size"]},
                strategy={**strategy, "alpha": alpha},
                privacy=privacy or {"name": "none"},
                seed=seed,
            ),
            local(20_000),
        )
        *_, (_, row) = run(setting, local(20_000), compute_here)
        success = {(metric, group): value for metric, group, value in row.values}["success", "all"]
        found.append((certificate(setting)["value"], success))
    return np.array(found).T


FEW = [0.05 + 0.001 * seed for seed in range(20)]
"""Shares at which some of the cells are won, and hardly."""
MANY = [0.4 + 0.029 * seed for seed in range(20)]


@pytest.mark.parametrize("play", [*PLAYS, "private"])
def test_floors_exceed_success_no_more_often_than_delta_allows(play):
    privacy = {**CENTRAL, "noise_multiplier": 150.0} if play == "private" else None
    floor, success = pairs("feature_label" if play == "private" else play, FEW + MANY, privacy)
    assert (floor > 0).sum() >= 10, "a test of empty floors is none"
    assert (floor > success + 1e-12).sum() <= ALLOWED


def test_floors_without_the_deviations_are_caught(monkeypatch):
    monkeypatch.setattr(ct, "deviation", lambda count, delta: 0.0)
    monkeypatch.setattr(ct.np, "log", lambda x: 0.0)
    floor, success = pairs("feature_label", FEW + FEW)
    assert (floor > success + 1e-12).sum() > ALLOWED


def test_erasing_that_assumes_nothing_needs_both_cells_and_any_number_of_members_will_do():
    held = np.array([[0.02, 0.01], [0.9, 0.07]]) * 1e6
    cells = erasing_unassumed(held, np.array([0, 0]), np.array([1, 1]))
    terms = ct.Terms(1_000_000, 1_000)
    assert ct.allowed(cells, terms) == (1, 1_000_000)
    for n in range(10_000, 1_000_000, 30_000):
        both = ct.margins(cells, terms, n) > 0
        assert (ct.winning(cells, terms, n) == (both[0] & both)).all()
    assert ct.winning(cells, terms, 999_000).all()
    assert predictions(held)[1] == 0, "the label that is sent is not the most frequent one"
    with pytest.raises(ValueError, match="idempotent"):
        erasing_unassumed(held, np.array([1, 0]), np.array([1, 1]))
    with pytest.raises(ValueError, match="at least one record"):
        erasing_unassumed(held * 0, np.array([0, 0]), np.array([1, 1]))


# In the table

STUDY = """
question = "What is certain?"
[base]
data = {{ name = "car_population", users = 4000, rows = 4000, test_rows = 500, draw = "seed" }}
model = {{ name = "histogram", cells = ["Country", "Model Type"], levels = {{ "Model Type" = ["Truck"] }} }}
privacy = {{ name = "none" }}
training = {{ rounds = 2, sampling_prob = 1.0 }}
[base.strategy]
name = "planting"
y_star = "Poor"
signal = {{ name = "columns", values = {{ "Model Type" = "Truck" }} }}
[grid]
"strategy.alpha" = {alphas}
"seed" = [0, 1]
"""


def test_the_table_has_the_floor_of_each_run_as_its_manifest_keeps_it(tmp_path):
    (tmp_path / "certain.toml").write_text(STUDY.format(alphas="[0.1, 0.6]"))
    study = read_study(tmp_path / "certain.toml")
    folder, tasks = plan(study, tmp_path / "out", local())
    assert execute(study, folder, tasks, local(5000), compute_here, Quiet()) == 0
    frame = table(tmp_path / "out")
    floors = frame[frame["metric"] == bounds.FLOOR]
    assert len(floors) == frame["run_id"].nunique() == 6
    assert (floors["round"] == 2).all()
    values, digests = {}, set()
    for task in tasks:
        manifest, row = manifest_of(task.folder), floors[floors["run_id"] == task.experiment.run_id].iloc[0]
        digests.add(manifest["data_sha256"])
        assert row["note"] == manifest["certificate"]["note"]
        value = manifest["certificate"].get("value", math.nan)
        assert row["value"] == pytest.approx(value, nan_ok=True)
        values.setdefault(task.experiment.strategy.alpha, []).append(value)
    assert len(digests) == 2, "each seed has cars of its own"
    assert np.isnan(values[0.0]).all()
    assert max(values[0.1]) < 0 < min(values[0.6])
    assert floors[floors["alpha"] == 0.1]["note"].str.contains("vacuous").all()
    assert floors[floors["alpha"] == 0.6]["note"].str.contains("probability 0.95").all()
    manifest = manifest_of(tasks[-1].folder)
    manifest.pop("certificate")
    (tasks[-1].folder / "manifest.json").write_text(json.dumps(manifest))
    again = table(tmp_path / "out")
    [note] = again[(again["metric"] == bounds.FLOOR) & (again["run_id"] == tasks[-1].experiment.run_id)]["note"]
    assert "no certificate" in note


def test_cars_that_follow_the_seed_are_those_of_that_draw():
    part = parts_of("data")["car_population"]
    drawn = part(users=10, rows=50, draw="seed").of_seed(7).load(None)
    same = part(users=10, rows=50, draw=7).load(None)
    np.testing.assert_array_equal(drawn.train.x, same.train.x)
    assert part(users=10, rows=50, draw=3).of_seed(7).draw == 3
    with pytest.raises(ValueError, match=r"data\.draw"):
        part(users=10, draw="seed").load(None)
