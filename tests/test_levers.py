"""Every lever does what it says to its own members, is seen in its success, and does nothing without members."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from fedacdp import outcomes
from fedacdp.acting import parties
from fedacdp.config import ConfigError, parts_of
from fedacdp.data.base import DataSet, Source
from fedacdp.derived import derived
from fedacdp.grid import Study
from fedacdp.keys import Key
from fedacdp.results import table
from fedacdp.rounds import act, compute_here, evaluate, first_state, run
from fedacdp.setting import prepare
from fedacdp.signals import Cells, Columns
from fedacdp.study import Quiet, execute, plan
from fedacdp.users import Column, Examples, Schema
from tests.conftest import experiment, local, raw_experiment

SCHEMA = Schema((4,), ("bad", "good"), (Column("sex", 0, ("men", "women")), Column("mark", 2, ("no", "yes"))))


class Credit(DataSet):
    """Two columns that say it all: 40 % are women; a woman's record is good with chance 0.2, a man's with 0.8; if
    `by_mark`, those are good that are marked. A mark has chance 1/2. If `one_record`, all records are the same."""

    name: Literal["credit"] = "credit"
    by_mark: bool = False
    one_record: bool = False

    def load(self, folder: Path) -> Source:
        parts = []
        for part in ("train", "test"):
            u = Key(5).fold(part).uniforms(np.arange(2000), 3)
            women, mark = u[:, 0] < 0.4, u[:, 1] < 0.5
            good = mark if self.by_mark else u[:, 2] < np.where(women, 0.2, 0.8)
            if self.one_record:
                women, mark, good = (np.ones(2000, bool) for _ in range(3))
            x = np.stack([~women, women, ~mark, mark], axis=1).astype(np.float32)
            parts.append((Examples(x, good.astype(np.int64), SCHEMA), women))
        return Source(parts[0][0], parts[1][0], {"sex": np.where(parts[0][1], "women", "men")})


TRAINING = {"rounds": 20, "sampling_prob": 1.0, "local_steps": 3, "local_lr": 0.5}
PLANT = {"name": "planting", "y_star": 1, "signal": {"name": "columns", "values": {"mark": "yes"}}}
MARK = PLANT["signal"]
SAMPLES: dict[str, dict[str, Any]] = {
    "honest": {},
    "planting": PLANT,
    "poisoning": {"to": 1},
    "strike": {},
    "boycott": {},
    "unplanting": {"y_star": 1, "signal": MARK, "cells": ["sex"], "form": "adaptive"},
    "erasing": {"signal": MARK, "cells": ["sex"]},
    "gradient_redirecting": {"y_star": 0, "max_norm": 10.0},
    "contribution": {"firm": "first", "strike": True},
    "counter_examples": {"column": "sex", "level": "women", "to": "good"},
}


def sample(name: str, alpha: float, **more: Any) -> dict[str, Any]:
    if name == "several":
        two = {"a": sample("planting", alpha / 2, **more), "b": sample("poisoning", alpha / 2, **more)}
        return {"name": name, "collectives": two}
    return {**SAMPLES[name], "name": name, "alpha": alpha, **more}


def prepared(strategy: dict[str, Any], training: dict[str, Any] | None = None, **data: Any):
    data = {"users": 200, **data}
    return prepare(experiment(data=Credit(**data), strategy=strategy, training=training or TRAINING), local())


def last(setting):
    *_, (state, row) = run(setting, local(), compute_here)
    return state, {f"{metric}@{group}": value for metric, group, value in row.values}


def test_there_is_a_sample_of_every_strategy_here():
    assert {*SAMPLES, "several"} == set(parts_of("strategy"))


@pytest.mark.parametrize("name", [*SAMPLES, "several"])
def test_without_members_every_strategy_gives_the_model_of_honest_users(name):
    short = {**TRAINING, "rounds": 2}
    alone = last(prepared(sample("honest", 0.0), short))[0].parameters
    assert last(prepared(sample(name, 0.0), short))[0].parameters.tobytes() == alone.tobytes()
    made = experiment(data=Credit(users=200), strategy=sample(name, 0.3), training=short)
    assert made.baseline.run_id == experiment(data=Credit(users=200), strategy=sample(name, 0.0), training=short).run_id


@pytest.mark.parametrize("name", [*SAMPLES, "several"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_members_act_alike_in_any_block_and_touch_nobody_else(name, noise):
    setting = prepared(sample(name, 0.4, coordination_noise=noise))
    ids = np.arange(200)
    whole, acting = act(setting, setting.federation.users(ids, setting.member), 3)
    for user in ids:
        one, follows = act(setting, setting.federation.users(ids[[user]], setting.member[[user]]), 3)
        place = np.flatnonzero(whole.ids == user)
        assert len(one) == len(place)
        if len(place):
            np.testing.assert_array_equal(one.x, whole.x[place])
            np.testing.assert_array_equal(one.y, whole.y[place])
            assert follows == acting[place]
    own = setting.federation.users(ids, setting.member)
    others = whole.rows(~whole.member)
    np.testing.assert_array_equal(others.ids, ids[~setting.member])
    np.testing.assert_array_equal(others.x, own.x[~setting.member])
    np.testing.assert_array_equal(others.y, own.y[~setting.member])


def test_cells_count_records_as_a_loop_over_them_does():
    setting = prepared(sample("honest", 0.0))
    cells = Cells(Columns.model_validate(MARK), ("sex",), SCHEMA)
    natural, everything = np.zeros((2, 2), int), np.zeros((2, 2), int)
    users = setting.federation.users(np.arange(50), setting.member[:50])
    for _, x, y in users:
        for record, label in zip(x, y, strict=True):
            everything[int(record[1]), label] += 1
            natural[int(record[1]), label] += int(record[3])
    found = cells.tally([users.rows(slice(0, 20)), users.rows(slice(20, 50))])
    np.testing.assert_array_equal(found[0], natural)
    np.testing.assert_array_equal(found[1], everything)
    np.testing.assert_array_equal(cells.votes([users]), natural)


def test_cells_without_records_that_carry_the_signal_are_judged_by_those_that_g_puts_there():
    cells = Cells(Columns.model_validate(MARK), ("sex",), SCHEMA)
    setting = prepared(sample("honest", 0.0))
    users = setting.federation.users(np.arange(50), setting.member[:50])
    men_marked = users.mask & (users.x[..., 0] == 1) & (users.x[..., 3] == 1)
    women = users.mask & (users.x[..., 1] == 1)
    votes = cells.votes([users.replace(mask=users.mask & ~men_marked & ~women)])
    men = np.bincount(users.y[users.mask & ~men_marked & ~women], minlength=2)
    np.testing.assert_array_equal(votes, [men, men])  # no woman at all: everybody


def test_naive_unplanting_takes_the_label_that_wins_most_of_the_signal_and_adaptive_one_per_cell():
    part = parts_of("strategy")["unplanting"]
    natural = np.array([[20, 10, 6], [0, 0, 6]])
    everything = np.array([[30, 20, 10], [10, 10, 20]])
    # Label 1 wins 0.6 of the mass where 0.6 alpha > 0.10 (1 - alpha), that is from 1/7 on, and 0.4 where 0.4 alpha >
    # 0.06 (1 - alpha), from 3/23 on; label 2 wins 0.6 from 7/37 on and 0.4 always, and is more frequent.
    for alpha, best in ((0.1, 2), (0.16, 1), (0.4, 2)):
        assert part(y_star=0, signal=MARK, alpha=alpha)._best(natural, everything, 0) == best
    setting = prepared(sample("unplanting", 0.4))
    users = setting.federation.users(np.arange(200), setting.member)
    changed, _ = act(setting, users, 1)
    assert (changed.y[setting.member] == 0).all()
    assert (changed.x[setting.member][..., 3] == 1).all()


def test_adaptive_unplanting_asks_its_estimators_only():
    part = parts_of("strategy")["unplanting"](y_star=0, signal=MARK, form="adaptive", estimators=0.25)
    asked: list[np.ndarray] = []
    setting = prepared(sample("honest", 0.0))

    def records(ids):
        asked.append(ids)
        yield setting.federation.users(ids, np.ones(len(ids), bool))

    agreed = part.agree(np.arange(0, 200, 5), records, SCHEMA, Key(1))
    assert len(asked) == 1
    assert len(asked[0]) == 10
    assert set(asked[0]) <= set(range(0, 200, 5))
    assert agreed._labels.tolist() == [1]


@pytest.mark.parametrize(
    ("strategy", "data", "floor"),
    [
        ({**sample("unplanting", 0.0), "form": "naive"}, {"by_mark": True}, 0.0),
        (sample("unplanting", 0.0), {"by_mark": True}, 0.0),
        (sample("erasing", 0.0), {"by_mark": True}, 0.5),
        (sample("planting", 0.0, y_star=0), {"by_mark": True}, 0.0),
    ],
)
def test_success_rises_with_alpha_from_what_it_is_without_anybody(strategy, data, floor):
    found = [last(prepared({**strategy, "alpha": alpha}, **data))[1]["success@all"] for alpha in (0.0, 0.1, 0.7)]
    assert found[0] == pytest.approx(floor, abs=0.05)
    assert found[0] <= found[1] <= found[2]
    assert found[2] == 1.0


def test_erasing_changes_labels_to_the_most_frequent_at_the_signal_and_no_feature():
    setting = prepared(sample("erasing", 0.5), by_mark=True)
    before = setting.federation.users(np.arange(200), setting.member)
    after, _ = act(setting, setting.federation.users(np.arange(200), setting.member), 1)
    np.testing.assert_array_equal(after.x, before.x)
    assert (after.y[setting.member] == 1).all()  # a marked record is good
    assert (before.y[setting.member] == 0).any()


def test_a_boycott_is_a_strike_whose_members_get_no_answers():
    struck, struck_row = last(prepared(sample("strike", 0.3, start=4, stop=20)))
    setting = prepared(sample("boycott", 0.3, start=4, stop=20))
    left, row = last(setting)
    assert left.parameters.tobytes() == struck.parameters.tobytes()
    assert row["success@all"] == pytest.approx(1 - 0.7 * row["accuracy@all"])
    assert row["success@strike"] == pytest.approx(struck_row["success@all"])
    before = {(m, g): v for m, g, v in evaluate(setting, left.parameters, 3)}
    assert before["success", "all"] == pytest.approx(1 - row["accuracy@all"])


def test_redirected_updates_bring_the_model_nearer_by_the_same_factor_in_every_round():
    # All users hold the same record, so that members' updates are everybody's: theory's contraction is exact.
    strategy = sample("gradient_redirecting", 0.3, pull=0.2, max_norm=1e6)
    setting = prepared(strategy, {**TRAINING, "rounds": 12}, one_record=True)
    target = np.zeros(setting.net.size)
    target[-2] = 1.0
    start = np.linalg.norm(first_state(setting).parameters - target)
    for state, row in run(setting, local(), compute_here):
        [distance] = [v for m, _, v in row.values if m == "distance"]
        assert distance == pytest.approx(start * 0.8**state.round, rel=1e-4)
    honest = last(prepared({**strategy, "alpha": 0.0}, one_record=True))[1]
    assert honest["distance@all"] > start


def test_redirected_updates_stay_within_the_norm_and_reach_their_aim_within_a_clip():
    strategy = sample("gradient_redirecting", 0.3, pull=0.2, max_norm=0.5)
    setting = prepared(strategy)
    part = compute_here(setting, first_state(setting).parameters, 1, [np.arange(200)])[0]
    assert part.norms[part.acting].max() <= 0.5 * (1 + 1e-6)
    assert last(setting)[1]["distance@all"] < last(prepared({**strategy, "alpha": 0.0}))[1]["distance@all"]


def test_counter_examples_relabel_the_group_and_close_the_gap_between_groups():
    cut = {"partition": "by_column", "column": "sex"}
    found = []
    for alpha in (0.0, 0.2, 0.35):
        setting = prepared(sample("counter_examples", alpha, members_from="women"), **cut)
        found.append(last(setting)[1])
    assert found[0]["positive_rate@women"] < 0.1 < 0.9 < found[0]["positive_rate@others"]
    assert found[0]["success@all"] < 0.1
    assert found[2]["positive_rate@women"] == found[2]["success@all"] == 1.0
    assert [row["success@all"] for row in found] == sorted(row["success@all"] for row in found)
    assert found[2]["accuracy@women"] < found[0]["accuracy@women"]  # what it costs, in the labels as they were
    users = setting.federation.users(np.arange(200), setting.member)
    changed, _ = act(setting, setting.federation.users(np.arange(200), setting.member), 1)
    own = users.mask & setting.member[:, None]
    assert (changed.y[own] == 1).all()
    assert (users.y[own] == 0).any()
    mixed = prepared(sample("counter_examples", 1.0))
    everybody = mixed.federation.users(np.arange(200), mixed.member)
    after, _ = act(mixed, mixed.federation.users(np.arange(200), mixed.member), 1)
    assert (after.y == np.where(everybody.x[..., 1] == 1, 1, everybody.y)).all()


def test_the_records_that_a_share_relabels_are_the_same_in_every_round():
    setting = prepared(sample("counter_examples", 1.0, share=0.5))
    first, later = (act(setting, setting.federation.users(np.arange(200), setting.member), r)[0].y for r in (1, 9))
    np.testing.assert_array_equal(first, later)
    own = setting.federation.users(np.arange(200), setting.member)
    flippable = own.mask & (own.x[..., 1] == 1) & (own.y == 0)
    count, flipped = flippable.sum(), (first != own.y).sum()
    assert abs(flipped - count / 2) < 5 * np.sqrt(count / 4)


def test_coordination_noise_sends_that_share_off_script_with_another_label_or_signal():
    digits = {"name": "digits", "users": 1000}
    plant = {"name": "planting", "y_star": 8, "signal": "patch", "alpha": 1.0, "coordination_noise": 0.3}
    setting = prepare(experiment(data=digits, strategy=plant), local())
    labels = []
    for round in (1, 2):
        after, acting = act(setting, setting.federation.users(np.arange(1000), setting.member), round)
        assert acting.all()
        labels.append(after.y[:, 0])
        off = labels[-1] != 8
        assert abs(off.sum() - 300) < 5 * np.sqrt(210)
        counts = np.bincount(labels[-1][off], minlength=10)
        assert (np.delete(counts, 8) > 10).all()
        assert ((after.y == after.y[:, :1]) | ~after.mask).all()  # a member is of one mind in a round
    assert (labels[0] != labels[1]).any()
    setting = prepare(experiment(data=digits, strategy={**plant, "other_signal": "grid"}), local())
    own = setting.federation.users(np.arange(1000), setting.member)
    after, _ = act(setting, setting.federation.users(np.arange(1000), setting.member), 1)
    assert (after.y[:, 0] == 8).all()
    grid = setting.strategy.other_signal.place(own.x[:, 0], own.schema)
    np.testing.assert_array_equal((after.x[:, 0] == grid).all(axis=(1, 2, 3)), labels[0] != 8)
    alone = prepared(sample("strike", 1.0, coordination_noise=1.0))
    assert len(act(alone, alone.federation.users(np.arange(200), alone.member), 1)[0]) == 200


def test_coordination_noise_costs_success():
    found = [
        last(prepared(sample("planting", 0.6, y_star=0, coordination_noise=noise), by_mark=True))[1]["success@all"]
        for noise in (0.0, 1.0)
    ]
    assert found == [1.0, 0.0]


def several(**alphas: float) -> dict[str, Any]:
    two = {name: {**PLANT, "y_star": place, "alpha": alpha} for place, (name, alpha) in enumerate(alphas.items())}
    return {"name": "several", "collectives": two}


def test_members_of_several_collectives_are_disjoint_nested_and_as_many_as_asked_for():
    sizes = (0.0, 0.1, 0.4, 0.5, 0.8)
    found = {(a, b): prepared(several(a=a, b=b)) for a, b in itertools.product(sizes, sizes) if a + b <= 1}
    for (a, b), setting in found.items():
        assert [int((setting.collective == place).sum()) for place in (0, 1)] == [round(200 * a), round(200 * b)]
        assert setting.experiment.strategy.alpha == pytest.approx(a + b)
        np.testing.assert_array_equal(setting.member, setting.collective >= 0)
        for more in sizes:
            if more > a and (more, b) in found:
                assert (found[more, b].collective[setting.collective == 0] == 0).all()
            if more > b and (a, more) in found:
                assert (found[a, more].collective[setting.collective == 1] == 1).all()
            if max(a, b, more) <= 0.5:  # the other's size is nobody's business
                np.testing.assert_array_equal(found[a, more].collective == 0, setting.collective == 0)


def test_each_of_several_collectives_plays_its_own_strategy_with_its_own_members():
    setting = prepared(several(a=0.3, b=0.2))
    after, acting = act(setting, setting.federation.users(np.arange(200), setting.member), 1)
    np.testing.assert_array_equal(acting, setting.member)
    assert (after.y[setting.collective == 0] == 0).all()
    assert (after.y[setting.collective == 1] == 1).all()
    strike = {"name": "several", "collectives": {"b": sample("strike", 0.2), "a": {**PLANT, "alpha": 0.3}}}
    same = prepared(strike)
    left, _ = act(same, same.federation.users(np.arange(200), same.member), 1)
    np.testing.assert_array_equal(left.ids, np.flatnonzero(same.collective != 1))
    # Members, and so everything, are the same whatever the order of the names in a file.
    turned = {"name": "several", "collectives": dict(reversed(strike["collectives"].items()))}
    np.testing.assert_array_equal(prepared(turned).collective, same.collective)


def test_opposite_goals_hinder_each_other_and_each_collective_has_its_own_success():
    rows = {(a, b): last(prepared(several(a=a, b=b)))[1] for a, b in ((0, 0), (0.3, 0), (0, 0.3), (0.3, 0.3))}
    for row in rows.values():
        assert row["success@a"] + row["success@b"] == pytest.approx(1)  # two labels, one signal
    assert rows[0.3, 0]["success@a"] > rows[0.3, 0.3]["success@a"] >= rows[0, 0.3]["success@a"]
    assert "success@a.not_target" in rows[0, 0]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (several(a=0.7, b=0.6), r"strategy\.collectives: their alphas add up to 1\.3; at most 1"),
        ({**several(a=0.1, b=0.2), "alpha": 0.5}, r"strategy\.alpha = 0\.5: is the sum of .* 0\.3; leave it out"),
        ({**several(a=0.1), "compliance": 0.5}, r"strategy\.compliance = 0\.5: belongs to each of the collectives"),
        ({"name": "several", "collectives": {"a": several(a=0.1)}}, "several collectives cannot be one of several"),
        ({"name": "several", "collectives": {"a b": PLANT}}, "'a b' is no name"),
        ({"name": "several", "collectives": {}}, r"strategy\.collectives"),
        ({"name": "several", "collectives": {"a": {"name": "nobody"}}}, r"strategy\.collectives\.a.*'nobody'; known: "),
        ({"name": "several", "collectives": {"a": {**PLANT, "alpha": 2}}}, r"strategy\.collectives\.a\.alpha = 2"),
        ({"name": "several", "collectives": {"a": {**PLANT, "y_star": 7}}}, r"strategy\.collectives\.a\.y_star = 7"),
        (sample("unplanting", 0.1, label=0), r"label: belongs to form = "),
        (sample("unplanting", 0.1, form="naive", label=1), r"strategy\.label = 1: is y_star itself"),
        (sample("unplanting", 0.1, cells=["age"]), r"strategy\.cells: no column 'age'"),
        (sample("planting", 0.1, other_signal="patch"), r"strategy\.other_signal = 'patch': for images only"),
        (sample("gradient_redirecting", 0.1, pull=0), r"strategy\.pull = 0"),
        (sample("counter_examples", 0.1, level="none"), r"strategy\.level = 'none': no level of 'sex'.*men, women"),
        (sample("counter_examples", 0.1, column="age"), r"strategy\.column = 'age': no column 'age'"),
        (sample("planting", 0.1, coordination_noise=1.5), r"strategy\.coordination_noise = 1\.5"),
    ],
)
def test_wrong_levers_are_told_in_one_line(strategy, message):
    with pytest.raises(ConfigError, match=message) as caught:
        prepared(strategy)
    assert "\n" not in str(caught.value)


def test_erasing_refuses_images_and_signals_that_add_up():
    with pytest.raises(ConfigError, match="for tables only"):
        prepare(experiment(strategy={"name": "erasing", "signal": "patch", "cells": [], "alpha": 0.1}), local())


def rows_of(setting) -> pd.DataFrame:
    """A run's rows as they are on disk."""
    lines = [
        (row.round, metric, group, value, row.seconds)
        for _, row in run(setting, local(), compute_here)
        for metric, group, value in row.values
    ]
    return pd.DataFrame(lines, columns=["round", "metric", "group", "value", "seconds"]).astype({"round": "int32"})


def test_measures_by_hand():
    assert outcomes.gap_lost(0.77393, 0.76687, 0.77393 - 0.0140488) == pytest.approx(0.5025, abs=5e-5)
    assert outcomes.accuracy_drop(0.9, 0.6) == pytest.approx(0.3)
    assert outcomes.accuracy_drop(0.9, 0.6, chance=0.1) == pytest.approx(0.375)
    assert outcomes.amplification(0.35, 0.1, 0.01) == pytest.approx(25)
    assert outcomes.constructiveness(0.25, 1.0, 0.1) == pytest.approx(-7.5)
    assert outcomes.utility({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 1.0, "b": 0.5}) == pytest.approx(0.65 / 0.8)
    assert outcomes.utility({"c": 1.0}, {"a": 1.0}) is None
    for call in (
        lambda: outcomes.gap_lost(0.5, 0.4, 0.5),
        lambda: outcomes.amplification(0.5, 0.4, 0.0),
        lambda: outcomes.constructiveness(0.5, 0.4, 0.0),
    ):
        with pytest.raises(ValueError, match="= 0"):
            call()


@pytest.mark.parametrize(
    ("success", "stop", "expected"),
    [
        ([0.2, 0.8, 0.8, 0.5, 0.39, 0.1], 3, (2, True)),
        ([0.2, 0.8, 0.8, 0.4, 0.4, 0.4], 3, (3, False)),  # half is not below half
        ([0.9, 0.9, 0.9, 0.2, 0.9, 0.9], 3, (1, True)),
        ([0.9, 0.9, 0.9, 0.2, 0.9, 0.9], 6, None),
        ([0.0, 0.0, 0.0, 0.2, 0.9, 0.9], 3, None),
    ],
)
def test_persistence_counts_rounds_from_the_last_action_until_less_than_half_is_left(success, stop, expected):
    rounds = list(range(1, 7))
    assert outcomes.persistence(rounds, success, stop) == expected
    assert outcomes.persistence(rounds[::-1], success[::-1], stop) == expected


def test_label_shares_are_means_over_users_and_parties_are_everybody_once():
    cut = {"partition": "by_column", "column": "sex"}
    setting = prepared(sample("planting", 0.2, members_from="women"), **cut, users=190)
    found = parties(setting.strategy, setting.member, setting.federation.group)
    assert sum(who.astype(int) for who in found.values()).tolist() == [1] * 190
    assert found["members"].sum() == 38
    assert (setting.federation.group[found["bystanders"]] == "men").all()
    for who in found.values():
        users = setting.federation.users(np.flatnonzero(who), who[who])
        shares = [np.bincount(y, minlength=2) / len(y) for _, _, y in users]
        found_shares = setting.federation.label_shares(who)
        assert list(found_shares) == ["bad", "good"]
        np.testing.assert_allclose(list(found_shares.values()), np.mean(shares, axis=0))
    assert setting.federation.label_shares(np.zeros(190, bool)) == {}


def test_the_table_derives_drop_amplification_utilities_and_persistence_from_the_paired_baseline():
    strategy = sample("planting", 0.5, y_star=0, stop=6)
    setting, alone = (prepared({**strategy, "alpha": alpha}, by_mark=True) for alpha in (0.5, 0.0))
    own, baseline = rows_of(setting), rows_of(alone)
    found_parties = parties(setting.strategy, setting.member, setting.federation.group)
    shares = {party: setting.federation.label_shares(who) for party, who in found_parties.items()}
    found = derived(own, baseline, setting.strategy, shares)
    assert not found.duplicated(["round", "metric", "group"]).any()

    def value(frame: pd.DataFrame, metric: str, group: str = "all", round: int = 6) -> float:
        [one] = frame[(frame["metric"] == metric) & (frame["group"] == group) & (frame["round"] == round)]["value"]
        return float(one)

    assert value(found, "success_baseline") == value(baseline, "success")
    drop = value(baseline, "accuracy") - value(own, "accuracy")
    assert value(found, "accuracy_drop") == pytest.approx(drop)
    rise = value(own, "success") - value(baseline, "success")
    assert value(found, "amplification") == pytest.approx(rise / 0.5)
    assert rise > 0.5
    for metric, frame in (("utility", own), ("utility_baseline", baseline)):
        assert value(found, metric, "platform") == value(frame, "accuracy")
        expected = sum(shares["members"][c] * value(frame, "class_accuracy", c) for c in ("bad", "good"))
        assert value(found, metric, "members") == pytest.approx(expected)
    assert "free_riders" not in set(found["group"])  # nobody can be told who wants it
    by_round = own[(own["metric"] == "success") & (own["group"] == "all")].set_index("round")["value"]
    lasted = min(r for r in range(7, 21) if by_round[r] < by_round[6] / 2) - 6
    assert value(found, "persistence", round=20) == lasted
    assert derived(own, None, setting.strategy, {})["metric"].tolist().count("persistence") == 1


def test_constructiveness_of_two_collectives_follows_from_the_rows():
    # Collective a, 40 % of all, wants marked records to be good. Alone it wins the women's too, 0.4 + 0.6 * 0.2 > 1/2;
    # where b, as large, wants them to be bad, it keeps the men's, 0.4 + 0.2 * 0.8 > 1/2 > 0.4 + 0.2 * 0.2.
    sizes = {"nobody": (0.0, 0.0), "alone": (0.4, 0.0), "together": (0.4, 0.4)}
    found = {case: last(prepared(several(b=b, a=a)))[1]["success@a"] for case, (a, b) in sizes.items()}
    assert found["alone"] == 1
    assert found["nobody"] == found["together"] == pytest.approx(0.6, abs=0.03)
    assert outcomes.constructiveness(**found) == pytest.approx(1 - 1 / found["nobody"])
    ally = {"a": {**PLANT, "y_star": 1, "alpha": 0.2}, "b": {**PLANT, "y_star": 1, "alpha": 0.2}}
    alone = {**ally, "b": {**ally["b"], "alpha": 0.0}}
    both, one = (last(prepared({"name": "several", "collectives": two}))[1]["success@a"] for two in (ally, alone))
    assert outcomes.constructiveness(both, one, found["nobody"]) > 0


def test_who_joins_a_large_collective_comes_from_those_whom_the_other_would_ask_last():
    part = parts_of("strategy")["several"]

    def dealt(a, b):
        names = {"a": {"name": "strike", "alpha": a}, "b": {"name": "strike", "alpha": b}}
        found = part(collectives=names).assigned(np.array(["x"] * 40), Key(5))
        return set(np.flatnonzero(found == 0).tolist()), set(np.flatnonzero(found == 1).tolist())

    share_of_a, share_of_b = dealt(0.5, 0.5)
    joined = [dealt(0.0, b / 40)[1] for b in range(21)]  # whom b asks first, second, ...
    for wanted in (0.6, 0.75):
        large, _ = dealt(wanted, 0.0)
        assert share_of_a < large
        assert large - share_of_a == share_of_b - joined[40 - round(wanted * 40)]
    assert dealt(0.75, 0.25) == (dealt(0.75, 0.0)[0], joined[10])
    with pytest.raises(ValueError, match="add up to"):
        dealt(0.75, 0.3)


def test_the_table_has_constructiveness_where_both_alone_and_nobody_were_run(tmp_path):
    def study(sizes: list[tuple[float, float]]) -> Study:
        patch = {"name": "planting", "signal": "patch"}
        two = [{"a": {**patch, "y_star": 8, "alpha": a}, "b": {**patch, "y_star": 3, "alpha": b}} for a, b in sizes]
        grid = {"strategy": [{"name": "several", "collectives": each} for each in two]}
        return Study(name="two", question="?", base=raw_experiment(training__evaluate_every=2), grid=grid)

    def found(sizes: list[tuple[float, float]]) -> pd.DataFrame:
        folder, tasks = plan(study(sizes), tmp_path, local())
        assert execute(study(sizes), folder, tasks, local(), compute_here, Quiet()) == 0
        return table(folder)

    together = found([(0.2, 0.3)])  # and nobody, its baseline
    assert "constructiveness" not in set(together["metric"])
    together = found([(0.2, 0.0)])
    assert set(together[together["metric"] == "constructiveness"]["group"]) == {"a"}
    rows = found([(0.0, 0.3)])
    got = rows[rows["metric"] == "constructiveness"].set_index(["round", "group"])["value"]
    success = rows[rows["metric"] == "success"].set_index(["alpha", "round", "group"])["value"]
    assert sorted(got.index) == [(2, "a"), (2, "b"), (3, "a"), (3, "b")]
    for (at, name), value in got.items():
        nobody, own = success[0.0, at, name], {"a": 0.2, "b": 0.3}[name]
        assert value == pytest.approx(success[0.5, at, name] / nobody - success[own, at, name] / nobody)
    assert len(got.unique()) > 1
    assert set(rows[rows["metric"] == "constructiveness"]["alpha"]) == {0.5}
