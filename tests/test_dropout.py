"""Messages that are lost on their way: whose, what they cost, and what they do not change."""

import numpy as np
import pandas as pd
import pytest

from fedacdp import bounds
from fedacdp.certified import no_certificate
from fedacdp.config import ConfigError
from fedacdp.rounds import arriving, compute_here, draw_cohort, first_state, run
from fedacdp.setting import prepare
from tests.conftest import MECHANISMS, Toy, counting, experiment, local, under


def last(setting, chunk=128, compute=compute_here):
    *_, (state, row) = run(setting, local(chunk), compute)
    return state, {(metric, group): value for metric, group, value in row.values}


def test_each_message_is_lost_with_that_chance_and_independently_of_its_sender_and_round():
    setting = prepare(experiment(data__users=1000, training__dropout=0.3), local())
    ids = np.arange(1000)
    lost = np.array([~np.isin(ids, arriving(setting, ids, round)) for round in range(1, 101)])
    deviation = np.sqrt(0.3 * 0.7 / lost.size)
    assert abs(lost.mean() - 0.3) < 4.9 * deviation  # false alarm 1e-6
    assert abs((lost[1:] & lost[:-1]).mean() - 0.09) < 6 * deviation
    assert lost.any(axis=0).all()
    assert not lost.all(axis=0).any()


def test_whose_messages_are_lost_is_the_same_for_every_mechanism_alpha_and_cohort():
    settings = [prepare(under(MECHANISMS[name], training__dropout=0.4), local()) for name in ("none", "local_update")]
    settings.append(prepare(experiment(training__dropout=0.4, strategy__alpha=0.5), local()))
    expected = arriving(settings[0], np.arange(60), 2)
    for setting in settings:
        np.testing.assert_array_equal(arriving(setting, np.arange(60), 2), expected)
        np.testing.assert_array_equal(arriving(setting, np.arange(0, 60, 2), 2), expected[expected % 2 == 0])


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_lost_message_is_charged_to_its_sender_and_carries_no_accounted_noise(name):
    setting = prepare(under(MECHANISMS[name], training__dropout=0.5), local())
    charged, last, sent = np.zeros(60, int), np.zeros(60, np.int32), 0
    for state, row in run(setting, local(), compute_here):
        ids = draw_cohort(setting, type(state)(**{**vars(state), "messages": charged, "last": last}), state.round)
        charged[ids] += 1
        last[ids] = state.round
        values = {(metric, group): value for metric, group, value in row.values}
        assert values["messages", "all"] + values["messages", "lost"] == values["cohort_size", "all"] == len(ids)
        sent += int(values["messages", "all"])
    np.testing.assert_array_equal(state.messages, charged)
    assert state.sent == sent < charged.sum()
    assert state.draws == setting.mechanism.draws(setting.plan, sent)
    limit = setting.mechanism.message_limit(setting.plan)
    assert limit is None or charged.max() <= limit


def test_the_guarantee_is_that_of_the_same_run_without_losses():
    for name in ("central", "local_update"):
        whole, lossy = (prepare(under(MECHANISMS[name], training__dropout=d), local()) for d in (0.0, 0.5))
        assert whole.mechanism.guarantee(whole.plan) == lossy.mechanism.guarantee(lossy.plan)
        assert whole.plan == lossy.plan


def test_the_step_is_the_sum_of_what_arrived_over_the_public_cohort():
    setting = prepare(experiment(training__dropout=0.5, training__rounds=1), local())
    start, sums = first_state(setting), []

    def keeps(*task):
        sums.extend(found := compute_here(*task))
        return found

    state, _ = last(setting, chunk=7, compute=keeps)
    heard = np.concatenate([part.ids for part in sums])
    np.testing.assert_array_equal(heard, arriving(setting, draw_cohort(setting, start, 1), 1))
    whole = start.parameters + sum(part.total for part in sums) / (0.5 * 60)
    np.testing.assert_allclose(state.parameters, whole, atol=1e-6)


def test_without_dropout_nothing_is_lost_and_nothing_is_said_of_it():
    setting = prepare(experiment(), local())
    np.testing.assert_array_equal(arriving(setting, np.arange(60), 1), np.arange(60))
    assert ("messages", "lost") not in last(setting)[1]


def test_a_ceiling_does_not_take_lost_messages_for_a_strike():
    central = {"name": "central", "noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 1.0}
    found = experiment(privacy=central, training__dropout=0.5, strategy={"name": "strike", "alpha": 0.1})
    values = {("cohort_size", "all"): 30.0, ("messages", "all"): 18.0, ("messages", "acting"): 0.0}
    lines = [(1, *name, value) for name, value in (values | {("messages", "lost"): 12.0}).items()]
    rows = pd.DataFrame(lines, columns=["round", "metric", "group", "value"])
    assert bounds.shifts(found, 1.0, rows)[1] == 0
    without = rows[rows["group"] != "lost"]
    assert bounds.shifts(found, 1.0, without)[1] > 0


def test_no_floor_is_certified_where_messages_are_lost():
    about = counting(training={"rounds": 1, "sampling_prob": 1.0, "dropout": 0.1}, data=Toy(users=60))
    whole = about.model_copy(update={"training": about.training.model_copy(update={"dropout": 0.0})})
    assert "dropout" in (no_certificate(about) or "")
    assert no_certificate(whole) != no_certificate(about)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), "half"])
def test_a_chance_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match=r"training\.dropout = "):
        experiment(training__dropout=value)
