"""Each group of users gets the epsilon of its own that it was promised, and everything printed follows from it."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from fedacdp.config import ConfigError, Experiment, experiment_from
from fedacdp.privacy import accounting, budgets
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Plan
from fedacdp.privacy.group_aware import GroupAware
from fedacdp.rounds import compute_here, draw_cohort, first_state, run
from fedacdp.setting import prepare
from fedacdp.tasks import pack_task, perform, read_partials
from tests.conftest import MECHANISMS, SCALED, experiment, last_bytes, local, raw_experiment, under

PLAN = Plan(users=1000, sampling_prob=0.1, rounds=100, local_steps=5, batch=4.0, batch_prob=1 / 3)
TWO = {"shares": (0.9, 0.1), "eps": (1.0, 4.0)}
THREE = {"shares": (0.34, 0.43, 0.23), "eps": (1.0, 2.0, 3.0)}
NUMBERS = {"name": "group_aware", "delta": 1e-5, "clip_norm": 1.0}


def aware(shares, eps, way, plan=PLAN, **fields):
    """The mechanism for groups g0, g1, ... of these shares of 1,000 users, calibrated."""
    group = np.repeat([f"g{place}" for place in range(len(eps))], [round(1000 * share) for share in shares])
    wanted = {f"g{place}": value for place, value in enumerate(eps)}
    part = GroupAware(way=way, budgets=wanted, delta=1e-5, clip_norm=1.0, **fields)
    return part.for_users(group, np.ones(len(group), bool)).calibrated(plan)


@pytest.mark.parametrize(
    ("groups", "z", "rates", "influence"),
    [
        (TWO, 3.2104, [0.07989, 0.28095], [0.719, 0.281]),
        (THREE, 2.3622, [0.05625, 0.10608, 0.15332], None),
    ],
)
def test_sampling_by_group_has_the_reference_values(groups, z, rates, influence):
    found = aware(**groups, way="sample")
    assert found.noise_multiplier == pytest.approx(z, rel=1e-3)
    assert list(found.sampling_probs.values()) == pytest.approx(rates, rel=1e-3)
    assert np.dot(groups["shares"], list(found.sampling_probs.values())) == pytest.approx(0.1, rel=1e-9)
    if influence:
        told = [group.influence for group in found.guarantee(PLAN).groups.values()]
        assert told == pytest.approx(influence, abs=5e-4)


@pytest.mark.parametrize(
    ("groups", "sigmas", "influence"),
    [(TWO, [3.9421, 1.3860], [0.760, 0.240]), (THREE, [3.9421, 2.2478, 1.6747], None)],
)
def test_clipping_by_group_has_the_reference_values(groups, sigmas, influence):
    found = aware(**groups, way="scale")
    clips = np.array(list(found.clip_norms.values()))
    assert found.noise_multiplier / clips == pytest.approx(np.array(sigmas), rel=2e-3)
    assert np.dot(groups["shares"], clips) == pytest.approx(1.0, rel=1e-9)  # the mean clip norm is that of everybody
    if influence:
        told = [group.influence for group in found.guarantee(PLAN).groups.values()]
        assert told == pytest.approx(influence, abs=1e-3)


@pytest.mark.parametrize("way", ["sample", "scale"])
@pytest.mark.parametrize("schedule", [(), ({"until": 40, "noise": 2.0}, {"until": 100, "noise": 1.0})])
def test_every_group_spends_its_budget_and_never_more(way, schedule):
    """Each group's releases are put together by hand: its rate, its sensitivity, the noise of each round."""
    found = aware(**TWO, way=way, schedule=schedule)
    told = found.guarantee(PLAN)
    for place, budget in enumerate(TWO["eps"]):
        rate = found.sampling_probs[f"g{place}"] if way == "sample" else 0.1
        clip = found.clip_norms[f"g{place}"] if way == "scale" else 1.0
        from dp_accounting.pld import PLDAccountant

        accountant = PLDAccountant()
        for factor, rounds in [(2.0, 40), (1.0, 60)] if schedule else [(1.0, 100)]:
            accountant.compose(Gaussians(found.noise_multiplier * factor / clip, rate, rounds).event)
        spent = accountant.get_epsilon(1e-5)
        assert 0.997 * budget <= spent <= budget
        assert told.groups[f"g{place}"].epsilon == pytest.approx(spent, rel=1e-9)
    assert told.epsilon == max(group.epsilon for group in told.groups.values())
    for group in told.groups.values():
        assert f"epsilon = {group.epsilon:.3g}" in told.sentence
    json.dumps(told.to_json(), allow_nan=False)


def test_equal_budgets_are_central_privacy():
    central = accounting.calibrate(2.0, 1e-5, 0.1, 100)
    for way in ("sample", "scale"):
        assert aware((0.5, 0.5), (2.0, 2.0), way).noise_multiplier == pytest.approx(central, rel=2e-3)


def test_noise_of_another_size_in_each_phase_composes_as_one_ledger():
    halves = ((2.0, 50), (2.0, 50))
    whole = budgets.spent(1.5, 0.1, ((2.0, 100),), 1e-5)
    assert budgets.spent(1.5, 0.1, halves, 1e-5) == pytest.approx(whole, rel=1e-3)
    mixed = budgets.spent(1.5, 0.1, ((2.0, 50), (1.0, 50)), 1e-5)
    assert whole < mixed < budgets.spent(1.5, 0.1, ((1.0, 100),), 1e-5)
    exact = math.sqrt(10 / 4.0**2 + 10 / 8.0**2)  # without sampling: mu adds up in squares
    assert accounting.delta_of_mu(budgets.spent(4.0, 1.0, ((1.0, 10), (2.0, 10)), 1e-5), exact) == pytest.approx(
        1e-5, rel=2e-3
    )
    assert budgets.first_rounds(((2.0, 50), (1.0, 50)), 60) == ((2.0, 50), (1.0, 10))


DATA = {"name": "digits", "users": 200, "partition": "dirichlet", "concentration": 0.3}
EIGHT = {"label=8": 4.0, "others": 1.0}
MANY = {"rounds": 200, "sampling_prob": 0.3, "local_steps": 1, "local_lr": 0.0, "evaluate_every": 200}


def told(way, **fields):
    return {**NUMBERS, "delta": 1e-3, "way": way, "budgets": EIGHT, **fields}


def test_users_are_sampled_at_the_rate_of_their_group():
    """Binomial counts at 1e-6 over all users; the rate of the other group would be caught."""
    setting = prepare(experiment(data=DATA, privacy=told("sample"), training=MANY), local())
    state, rates = first_state(setting), setting.mechanism.sampling_probs
    taken = np.zeros((200, 200), bool)
    for round in range(200):
        taken[round, draw_cohort(setting, state, round + 1)] = True
    eight = setting.federation.group == "label=8"
    for who, rate, other in ((eight, "label=8", "others"), (~eight, "others", "label=8")):
        count, trials = int(taken[:, who].sum()), 200 * int(who.sum())
        assert 5e-7 < stats.binom.cdf(count, trials, rates[rate]) < 1 - 5e-7
        assert not 5e-7 < stats.binom.cdf(count, trials, rates[other]) < 1 - 5e-7
    low, high = stats.norm.ppf([5e-7, 1 - 5e-7])
    assert low < (taken.sum() - 200 * setting.plan.cohort) / math.sqrt(taken.size * 0.3) < high


def test_no_user_moves_the_sum_by_more_than_the_clip_norm_of_its_group():
    """Update by update, also of members who fill their clip: the norm in the sum is that of the user's group."""
    strategy = {"name": "planting", "alpha": 0.2, "y_star": 8, "signal": "patch", "protocol": "fills_clip"}
    privacy = {**SCALED, "clip_norm": 0.02, "clip_norms": {"label=8": 0.05, "others": 0.01}, "noise_multiplier": 0.0}
    setting = prepare(experiment(data=DATA, privacy=privacy, strategy=strategy), local())
    start, norms = setting.net.initial(setting.key), {}
    for user in range(60):
        norms[user] = np.linalg.norm(compute_here(setting, start, 1, [np.array([user])])[0].total)
    group = setting.federation.group
    for user, norm in norms.items():
        bound = 0.05 if group[user] == "label=8" else 0.01
        assert norm <= bound * (1 + 1e-6)
        if setting.member[user]:
            assert norm == pytest.approx(bound, rel=1e-5)
    assert {bool(setting.member[user]) for user in norms if group[user] == "label=8"} == {True, False}


def test_the_noise_follows_the_schedule():
    """Learning rate 0: what the model does in each round is noise, of the phase's size. False alarm 1e-6 a round."""
    schedule = [{"until": 2, "noise": 3.0}, {"until": 4, "noise": 0.5}]
    training = {"rounds": 4, "sampling_prob": 0.4, "local_steps": 1, "local_lr": 0.0}
    setting = prepare(experiment(privacy={**SCALED, "schedule": schedule}, training=training), local())
    before = setting.net.initial(setting.key.fold("initial")).astype(float)
    for factor, (state, _) in zip((3.0, 3.0, 0.5, 0.5), run(setting, local(), compute_here), strict=True):
        step = (state.parameters - before) * setting.plan.cohort / (0.5 * 0.5)
        before = state.parameters.astype(float)
        low, high = np.sqrt(stats.chi2.ppf([5e-7, 1 - 5e-7], step.size) / step.size)
        spread = np.sqrt((step**2).mean())
        assert low < spread / factor < high
        assert not low < spread / 1.5 < high
    assert state.draws == setting.mechanism.draws(setting.plan, state.sent) == 4


@pytest.mark.parametrize("way", ["sample", "scale"])
def test_a_node_does_the_same_from_the_calibrated_experiment_without_accounting(way, monkeypatch):
    setting = prepare(experiment(data=DATA, privacy=told(way), training__sampling_prob=0.2), local(64))
    start, chunks = setting.net.initial(setting.key), [np.arange(0, 64), np.arange(64, 128)]
    here = compute_here(setting, start, 2, chunks)

    def refuse(*_):
        raise AssertionError("a node did accounting")

    task = pack_task(setting, local(64), start, 2, chunks)
    monkeypatch.setattr(accounting, "epsilon_together", refuse)
    again = prepare(Experiment.model_validate_json(setting.calibrated), local(64))
    for mine, theirs in zip(here, read_partials(perform(task), 2), strict=True):
        np.testing.assert_array_equal(mine.total, theirs.total)
        np.testing.assert_array_equal(mine.factors, theirs.factors)
    monkeypatch.undo()
    assert again.mechanism.guarantee(again.plan) == setting.mechanism.guarantee(setting.plan)
    np.testing.assert_array_equal(again.mechanism.chances(again.plan), setting.mechanism.chances(setting.plan))
    assert last_bytes(again, local(64), compute_here) == last_bytes(setting, local(64), compute_here)


def test_numbers_given_and_numbers_calibrated_are_the_same_mechanism():
    found = aware(**TWO, way="sample")
    assert found.calibrated(PLAN).noise_multiplier == found.noise_multiplier
    assert found.budgets is None
    both = found.model_copy(update={"budgets": {"g0": 1.0, "g1": 4.0}})
    assert both.calibrated(PLAN).budgets is None
    for budget in (0.9, 3.9):
        tight = {"g0": 0.9, "g1": 4.0} if budget == 0.9 else {"g0": 1.0, "g1": 3.9}
        with pytest.raises(ValueError, match=rf"budgets\.g[01] = {budget}: the schedule spends .* in 100 rounds; "):
            found.model_copy(update={"budgets": tight}).calibrated(PLAN)


def test_a_schedule_that_would_exceed_a_budget_is_refused_with_the_rounds_it_lasts_for():
    fields = {"noise_multiplier": 2.0, "clip_norms": {"g0": 1.0}, "budgets": {"g0": 2.0}, "clip_norm": 1.0}
    phases = ({"until": 60, "noise": 2.0}, {"until": 100, "noise": 0.5})
    part = GroupAware(way="scale", delta=1e-5, schedule=phases, **fields)
    part = part.for_users(np.full(50, "g0"), np.ones(50, bool))
    with pytest.raises(
        ValueError, match=r"privacy\.budgets\.g0 = 2: the schedule spends [\d.]+ .* 100 rounds"
    ) as caught:
        part.calibrated(PLAN)
    lasts = int(str(caught.value).rpartition(" ")[2])
    assert 60 < lasts < 100
    by_round = [
        budgets.spent(2.0, 0.1, budgets.first_rounds(((2.0, 60), (0.5, 40)), rounds), 1e-5)
        for rounds in (lasts, lasts + 1)
    ]
    assert by_round[0] <= 2.0 < by_round[1]


def test_budgets_that_cannot_be_met_are_refused_with_the_smallest_that_can():
    half = Plan(1000, 0.5, 100, 5, 4.0, 1 / 3)
    with pytest.raises(ValueError, match=r"budgets\.g1 = 8: cannot be met .* smallest epsilon .* is [\d.]+$") as caught:
        aware((0.9, 0.1), (1.0, 8.0), "sample", half)
    least = float(str(caught.value).rpartition(" ")[2])
    assert aware((0.9, 0.1), (least, 8.0), "sample", half).sampling_probs["g1"] > 0.97
    with pytest.raises(ValueError, match="cannot be met"):
        aware((0.9, 0.1), (0.98 * least, 8.0), "sample", half)
    assert aware((0.9, 0.1), (1.0, 8.0), "scale", half).clip_norms["g1"] > 1
    with pytest.raises(ValueError, match=r"epsilon = 1e-05: cannot be met; the smallest epsilon that can is 0\.0001"):
        aware((0.9, 0.1), (1e-5, 1.0), "scale")


SMALL = {**NUMBERS, "delta": 1e-3}
WRONG = [
    ({**SMALL}, r"privacy\.way: must be given"),
    ({**SMALL, "way": "both", "budgets": EIGHT}, r"privacy\.way = 'both'"),
    ({**SMALL, "way": "sample"}, "budgets: must be given, or noise_multiplier with sampling_probs"),
    ({**SMALL, "way": "sample", "budgets": {}}, r"privacy\.budgets"),
    ({**SMALL, "way": "sample", "budgets": {"others": -1}}, r"privacy\.budgets\.others = -1"),
    ({**SMALL, "way": "sample", "noise_multiplier": 1.0}, "noise_multiplier, sampling_probs: both"),
    ({**SMALL, "way": "sample", "budgets": EIGHT, "clip_norms": {"others": 1}}, 'clip_norms: belongs to way = "scale"'),
    (
        {**SMALL, "way": "sample", "noise_multiplier": 1.0, "sampling_probs": {"others": 1.5}},
        r"sampling_probs\.others = 1\.5",
    ),
    (
        {**SMALL, "way": "sample", "budgets": EIGHT, "schedule": [{"until": 5, "noise": 1}, {"until": 5, "noise": 2}]},
        r"schedule: phases end in rounds \[5, 5\]",
    ),
    (
        {**SMALL, "way": "scale", "budgets": EIGHT, "noise_multiplier": 1.0, "clip_norms": {"others": 1.0}},
        "budgets, clip_norms: must be of the same groups",
    ),
]


@pytest.mark.parametrize(("privacy", "message"), WRONG)
def test_wrong_budgets_are_told_in_one_line(privacy, message):
    with pytest.raises(ConfigError, match=message) as caught:
        experiment(privacy=privacy)
    assert "\n" not in str(caught.value)


MISFITS = [
    ({"budgets": {"label=88": 1.0, "others": 1.0}}, r"privacy\.budgets\.label=88: no such group; there are: label=0"),
    ({"budgets": {"label=8": 1.0}}, r"privacy\.budgets: group 'label=0' has none; give it one, or .* 'others'"),
    ({"budgets": {f"label={c}": 1.0 for c in range(10)} | {"others": 1.0}}, "others: all groups are named"),
    ({"budgets": EIGHT, "schedule": [{"until": 2, "noise": 1.0}]}, "schedule: ends in round 2; must reach .* = 3"),
    (
        {"budgets": None, "noise_multiplier": 1.0, "sampling_probs": {"others": 0.4}},
        r"sampling_probs: their mean over users is 0\.4; must be training\.sampling_prob = 0\.5",
    ),
]


@pytest.mark.parametrize(("fields", "message"), MISFITS)
def test_budgets_that_do_not_fit_the_users_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(experiment(data=DATA, privacy=told("sample", **fields)), local())
    assert "\n" not in str(caught.value)


def test_a_group_whose_budget_tells_who_is_a_member_is_warned_about():
    strategy = {"name": "planting", "alpha": 0.05, "y_star": 8, "signal": "patch"}
    numbers = {"way": "scale", "noise_multiplier": 2.0, "clip_norms": {"label=8": 2.0, "others": 1.0}, "budgets": None}
    privacy = {**told("scale"), **numbers}
    from_all = prepare(experiment(data=DATA, privacy=privacy, strategy=strategy), local())
    assert from_all.guarantee.warnings == ()
    eights = {**strategy, "members_from": "label=8"}
    of_group = prepare(experiment(data=DATA, privacy=privacy, strategy=eights), local())
    [warning] = of_group.guarantee.warnings
    eight = of_group.federation.group == "label=8"
    assert f"{of_group.member[eight].mean():.3g} of the users of label=8 are members, 0.05 of all" in warning
    alone = {**privacy, "clip_norms": {"others": 1.0}}
    no_budget = prepare(experiment(data=DATA, privacy=alone, strategy=eights), local())
    assert no_budget.guarantee.warnings == ()


def test_without_noise_there_is_no_guarantee_and_with_one_group_nothing_but_central_privacy():
    nothing = prepare(experiment(privacy={**SCALED, "noise_multiplier": 0.0}), local())
    assert "no privacy guarantee" in nothing.guarantee.sentence
    json.dumps(nothing.guarantee.to_json(), allow_nan=False)
    privacy = {**SCALED, "clip_norms": {"others": 0.5}}
    central = {"name": "central", "noise_multiplier": 0.5, "delta": 1e-5, "clip_norm": 0.5}
    one, other = prepare(experiment(privacy=privacy), local()), prepare(experiment(privacy=central), local())
    assert last_bytes(one, local(), compute_here) == last_bytes(other, local(), compute_here)
    assert one.guarantee.epsilon == other.guarantee.epsilon
    assert one.guarantee.sampler.startswith(other.guarantee.sampler)


def test_an_experiment_with_budgets_is_named_by_them():
    one = experiment_from(raw_experiment(data=DATA, privacy=told("sample")))
    other = experiment_from(raw_experiment(data=DATA, privacy=told("sample", budgets={"label=8": 5.0, "others": 1.0})))
    assert one.run_id != other.run_id
    assert Experiment.model_validate_json(one.text).run_id == one.run_id


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name != "none"])
def test_the_statement_of_every_mechanism_has_all_that_an_epsilon_needs(name):
    stated = prepare(under(MECHANISMS[name]), local()).guarantee.to_json()
    wanted = ("setting", "unit", "adjacency", "observer", "releases", "epsilon", "accountant", "sampler", "tuning")
    assert all(stated[field] for field in wanted)
    assert "delta" in stated
    assert "mu" in stated
    assert stated["accountant"].startswith("pure epsilon") or "dp-accounting 0." in stated["accountant"]
    assert stated["accountant"] in stated["sentence"]
