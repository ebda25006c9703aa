"""A run gives the same numbers however it is scheduled, and a collective touches nobody but its members."""

import dataclasses
import itertools

import numpy as np
import pytest

from fedacdp.config import parts_of
from fedacdp.kept import Kept
from fedacdp.local.grams import Grams
from fedacdp.rounds import Diverged, act, compute_here, draw_cohort, first_state, run
from fedacdp.setting import prepare
from fedacdp.strategy import Strategy
from tests.conftest import MECHANISMS, counting, experiment, local, under


def last(setting, execution, state=None):
    *_, (state, row) = run(setting, execution, compute_here, state)
    return state, row


@pytest.mark.parametrize("name", MECHANISMS)
def test_one_user_at_a_time_gives_the_numbers_of_chunks(name):
    setting = prepare(under(MECHANISMS[name]), local())
    single, chunked = (last(setting, local(chunk))[0].parameters for chunk in (1, 32))
    np.testing.assert_allclose(single, chunked, atol=2e-5)


def test_the_same_chunk_gives_the_same_bits_again():
    setting = prepare(experiment(privacy=MECHANISMS["local_dpsgd"]), local())
    first, again = (last(setting, local(32))[0].parameters for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_run_that_goes_on_from_any_round_ends_with_the_same_bits(name):
    setting = prepare(under(MECHANISMS[name]), local())
    states = [state for state, _ in run(setting, local(), compute_here)]
    for middle in states[:-1]:
        resumed, _ = last(setting, local(), middle)
        np.testing.assert_array_equal(resumed.parameters, states[-1].parameters)
        assert (resumed.sent, resumed.draws) == (states[-1].sent, states[-1].draws)


@pytest.mark.parametrize(("small", "needs"), [(experiment, "gradients"), (counting, "counts")])
def test_cohorts_and_data_are_the_same_for_every_mechanism_and_strategy(small, needs):
    usable = [privacy for name, privacy in MECHANISMS.items() if parts_of("privacy")[name].needs in (None, needs)]
    assert len(usable) >= 4
    settings = [prepare(small(privacy=privacy), local()) for privacy in usable]
    settings.append(prepare(small(strategy={"name": "strike", "alpha": 0.3}), local()))
    cohorts = [draw_cohort(setting, first_state(setting), 1) for setting in settings]
    for setting, cohort in zip(settings, cohorts, strict=True):
        np.testing.assert_array_equal(cohort, cohorts[0])
        np.testing.assert_array_equal(setting.federation.order, settings[0].federation.order)
        np.testing.assert_array_equal(first_state(setting).parameters, first_state(settings[0]).parameters)


def test_members_are_nested_in_alpha_and_as_many_as_asked_for():
    members = [prepare(experiment(strategy__alpha=alpha), local()).member for alpha in (0.0, 0.1, 0.35, 1.0)]
    assert [int(m.sum()) for m in members] == [0, 6, 21, 60]
    for small, large in itertools.pairwise(members):
        assert (large | ~small).all()
    other = prepare(experiment(strategy__alpha=0.35, seed=8), local()).member
    assert (other != members[2]).any()


def test_members_can_be_drawn_from_one_natural_group():
    data = {"name": "digits", "users": 60, "partition": "dirichlet", "concentration": 0.1}
    group = prepare(experiment(data=data), local()).federation.group
    chosen = max(set(group), key=list(group).count)
    share = float((group == chosen).mean())
    setting = prepare(experiment(data=data, strategy__alpha=share / 2, strategy__members_from=str(chosen)), local())
    assert setting.member.any()
    assert (setting.federation.group[setting.member] == chosen).all()


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "planting", "y_star": 8, "signal": "patch"},
        {"name": "planting", "y_star": 8, "signal": "grid", "form": "feature_only"},
        {"name": "poisoning"},
        {"name": "poisoning", "to": 3, "source": 5},
        {"name": "strike", "start": 2},
    ],
)
def test_a_collective_changes_its_members_only(strategy):
    setting = prepare(experiment(strategy={**strategy, "alpha": 0.3}), local())
    users = setting.federation.users(np.arange(60), setting.member)
    changed, acting = act(setting, setting.federation.users(np.arange(60), setting.member), 2)
    others = ~users.member
    kept = np.isin(users.ids, changed.ids)
    assert kept[others].all()
    mine = np.isin(changed.ids, users.ids[others])
    np.testing.assert_array_equal(changed.x[mine], users.x[others])
    np.testing.assert_array_equal(changed.y[mine], users.y[others])
    assert acting.sum() == (0 if strategy["name"] == "strike" else users.member.sum())


def test_compliance_start_and_stop_say_who_acts_when():
    strategy = {"name": "planting", "y_star": 8, "signal": "patch", "alpha": 1.0, "compliance": 0.5}
    setting = prepare(experiment(data__users=1000, strategy={**strategy, "start": 2, "stop": 3}), local())
    users = setting.federation.users(np.arange(1000), setting.member)
    counts = [int(act(setting, users, round)[1].sum()) for round in (1, 2, 3, 4)]
    assert counts[0] == counts[3] == 0
    assert all(abs(count - 500) < 5 * np.sqrt(250) for count in counts[1:3])
    assert (act(setting, users, 2)[1] != act(setting, users, 3)[1]).any()


def test_a_strike_leaves_the_update_out_and_the_denominator_as_it_is():
    calm = prepare(experiment(strategy={"name": "strike", "alpha": 0.0}), local())
    struck = prepare(experiment(strategy={"name": "strike", "alpha": 0.5}), local())
    first_calm = next(run(calm, local(), compute_here))[0].parameters - first_state(calm).parameters
    state, row = next(run(struck, local(), compute_here))
    found = {(m, g): v for m, g, v in row.values}
    assert found["messages", "all"] < found["cohort_size", "all"]
    ids = draw_cohort(struck, first_state(struck), 1)
    honest = compute_here(struck, first_state(struck).parameters, 1, [ids[~struck.member[ids]]])[0].total
    np.testing.assert_allclose(
        state.parameters - first_state(struck).parameters, honest / struck.plan.cohort, atol=1e-7
    )
    assert np.linalg.norm(first_calm) > np.linalg.norm(state.parameters - first_state(struck).parameters)


def test_a_strategy_may_edit_its_members_updates_and_nobody_elses(monkeypatch):
    setting = prepare(experiment(strategy__alpha=0.3), local())
    ids = np.arange(60)
    before = compute_here(setting, first_state(setting).parameters, 1, [ids])[0]
    monkeypatch.setattr(
        type(setting.experiment.strategy), "update", lambda self, updates, users, round, key: 0 * updates
    )
    after = compute_here(setting, first_state(setting).parameters, 1, [ids])[0]
    assert (after.norms[setting.member] == 0).all()
    np.testing.assert_allclose(after.norms[~setting.member], before.norms[~setting.member], rtol=1e-5)
    assert type(setting.experiment.strategy).update is not Strategy.update


@pytest.mark.parametrize(("local_lr", "server_lr"), [(1e30, 1.0), (0.1, 1e45)])
def test_a_model_that_stops_being_finite_is_reported_as_diverged(local_lr, server_lr):
    training = {"rounds": 30, "sampling_prob": 1.0, "local_steps": 2, "local_lr": local_lr, "server_lr": server_lr}
    setting = prepare(experiment(training=training), local())
    with pytest.raises(Diverged, match="in round"):
        last(setting, local())


def test_the_collective_is_seen_in_its_success_and_not_without_it():
    training = {"rounds": 25, "sampling_prob": 0.5, "local_steps": 5, "batch": 8, "local_lr": 0.3}
    values = {}
    for alpha in (0.0, 0.3):
        _, row = last(prepare(experiment(strategy__alpha=alpha, training=training), local()), local())
        values[alpha] = {m: v for m, g, v in row.values if g == "all"}
    assert values[0.3]["success"] > values[0.0]["success"] + 0.5
    assert values[0.0]["accuracy"] > 0.85


def test_the_values_used_last_are_kept_eight_or_as_many_as_are_small_together():
    made = []

    def ask(kept, number):
        def make():
            made.append(number)
            return number

        return kept((str(number),), make)

    large, small = Kept(lambda value: 2**27), Kept(lambda value: 2**10)
    for kept, stay in ((large, 8), (small, 256)):
        for number in range(300):
            assert ask(kept, number) == number
        made.clear()
        for number in range(300 - stay, 300):
            ask(kept, number)
        assert made == []
        ask(kept, 0)
        assert made == [0]
        ask(kept, 300 - stay)  # the oldest had to go
        assert made == [0, 300 - stay]


def test_what_is_kept_of_users_records_is_not_used_when_they_act():
    """Members start in round 2: what the first round kept of their own records must not stand in for the changed."""
    strategy = {"name": "planting", "alpha": 0.5, "y_star": 8, "signal": "patch", "start": 2}
    changes = {"data__users": 700, "model": {"name": "mlp"}, "strategy": strategy, "seed": 11}
    everybody, totals = np.arange(700), []
    for first in ([1], []):
        setting = prepare(experiment(**changes), local())
        setting = dataclasses.replace(setting, grams=Grams(setting.federation.sizes))
        start = setting.net.initial(setting.key)
        for round in (*first, 2):
            [part] = compute_here(setting, start, round, [everybody])
        assert part.acting.sum() == 350
        totals.append(part.total)
    np.testing.assert_array_equal(*totals)
