"""Every epsilon comes from the mechanism that ran, and what it claims is what it does."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from fedacdp.config import parts_of
from fedacdp.keys import Key
from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noisy, Plan, clip_factors
from fedacdp.rounds import compute_here, run
from fedacdp.setting import prepare
from tests.conftest import MECHANISMS, experiment, local, under

PLAN = Plan(users=1000, sampling_prob=0.1, rounds=100, local_steps=5, batch=4.0, batch_prob=1 / 3)
NOISY = {name: part for name, part in parts_of("privacy").items() if issubclass(part, Noisy)}


def mechanism(name, **fields):
    return parts_of("privacy")[name](**{"name": name, "delta": 1e-5, "clip_norm": 1.0, **fields})


GOLDEN = [
    (1.5, 0.04, 2250, 1e-5, 6.768787),
    (1.0, 0.01, 1000, 1e-5, 1.828244),
    (1.0, 0.1, 100, 1e-5, 7.046603),
    (1.0, 1.0, 1, 1e-5, 4.377178),
    (4.0, 1.0, 50, 1e-5, 8.595866),
    (0.6, 0.05, 200, 1e-4, 13.118653),
]


@pytest.mark.parametrize(("z", "q", "rounds", "delta", "expected"), GOLDEN)
def test_accounted_epsilon_has_the_golden_values(z, q, rounds, delta, expected):
    releases = Gaussians(z, q, rounds)
    epsilon = accounting.epsilon(releases, delta)
    assert epsilon == pytest.approx(expected, abs=1e-3)
    others = accounting.second_opinions(releases, delta)
    assert epsilon - 1e-6 <= others["opacus_prv"] <= epsilon + 0.0115
    assert epsilon <= others["opacus_rdp"]
    assert epsilon <= accounting.epsilon_rdp(releases, delta)


def test_second_opinions_have_the_golden_values():
    found = accounting.second_opinions(Gaussians(1.0, 0.1, 100), 1e-5)
    assert found["opacus_rdp"] == pytest.approx(7.899255, rel=1e-4)
    assert found["opacus_prv"] == pytest.approx(7.057056, rel=1e-4)


@pytest.mark.parametrize(("eps", "ratio"), [(0.1, 30.7496), (1, 3.73063), (2, 1.99381), (8, 0.60023), (16, 0.34418)])
def test_exact_gaussian_values(eps, ratio):
    assert 1 / accounting.mu_of(eps, 1e-5) == pytest.approx(ratio, rel=2e-5)
    assert accounting.epsilon(Gaussians(ratio, 1.0, 1), 1e-5) == pytest.approx(eps, rel=1e-3)


@pytest.mark.parametrize(("epsilon", "said"), [(1e-7, "cannot be met; the smallest"), (1e6, "too small or too large")])
def test_an_epsilon_that_no_noise_spends_is_refused_by_name(epsilon, said):
    with pytest.raises(ValueError, match=re.escape(f"privacy.epsilon = {epsilon:g}: {said}")):
        mechanism("local_update", epsilon=epsilon, delta=1e-3).calibrated(Plan(100, 0.2, 1, 1, 2, 0.5))


@pytest.mark.parametrize("eps", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("name", NOISY)
def test_calibration_spends_the_target_and_never_more(name, eps):
    guarantee = mechanism(name, epsilon=eps).guarantee(PLAN)
    assert 0.98 * eps <= guarantee.epsilon <= eps
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / eps
    assert accounting.epsilon(Gaussians(classic, 1.0, 1), 1e-5) != pytest.approx(eps, rel=0.02)


@pytest.mark.parametrize("name", NOISY)
def test_epsilon_falls_with_noise_and_rises_with_rounds(name):
    def epsilon(z, rounds=100):
        return mechanism(name, noise_multiplier=z).guarantee(Plan(1000, 0.1, rounds, 5, 4.0, 1 / 3)).epsilon

    assert epsilon(2.0) < epsilon(1.0)
    assert epsilon(2.0, 50) < epsilon(2.0, 100)
    assert epsilon(0.0) == math.inf
    assert "no privacy guarantee" in mechanism(name, noise_multiplier=0.0).guarantee(PLAN).sentence


def test_local_updates_are_accounted_with_twice_the_clip_norm_and_all_messages():
    guarantee = mechanism("local_update", noise_multiplier=2.0, max_messages=1).guarantee(PLAN)
    assert guarantee.epsilon == pytest.approx(4.377178, abs=1e-3)  # sigma / sensitivity = 2C / 2C = 1
    assert guarantee.adjacency == "replace_one"
    many = mechanism("local_update", noise_multiplier=8.0, max_messages=50).guarantee(PLAN)
    assert many.epsilon == pytest.approx(8.595866, abs=1e-3)  # 50 messages at ratio 4
    assert many.per_message_epsilon < many.epsilon


def test_local_against_central_noise_agrees_with_the_reference_table():
    central = mechanism("central", epsilon=1.0).calibrated(PLAN)
    local_one = mechanism("local_update", epsilon=1.0).calibrated(PLAN)
    assert central.sigma == pytest.approx(3.9418, rel=5e-3)
    assert local_one.sigma == pytest.approx(23.60, rel=5e-3)
    ratio = (local_one.sigma / math.sqrt(PLAN.cohort)) / (central.sigma / PLAN.cohort)
    assert ratio == pytest.approx(59.9, rel=0.01)


def test_dpsgd_composes_all_local_steps_of_all_messages():
    releases = mechanism("local_dpsgd", noise_multiplier=1.0, max_messages=7).releases(PLAN)
    assert (releases.rate, releases.count) == (PLAN.batch_prob, 7 * PLAN.local_steps)


def test_delta_that_permits_betraying_a_user_is_warned_about():
    assert mechanism("central", noise_multiplier=1.0, delta=1e-3).guarantee(PLAN).warnings
    assert not mechanism("central", noise_multiplier=1.0, delta=0.9e-3).guarantee(PLAN).warnings


def test_clipping_never_exceeds_the_bound_and_leaves_small_updates_alone():
    norms = np.array([0.0, 1e-300, 1e-30, 0.5, 1.0, 1.0 + 1e-9, 7.0, 1e30, 1e300, np.inf, -np.inf, np.nan])
    factors = clip_factors(norms, 1.0)
    finite = np.isfinite(norms)
    assert (factors[finite] * norms[finite] <= 1.0 + 1e-12).all()
    np.testing.assert_array_equal(factors[:5], 1.0)
    np.testing.assert_array_equal(factors[~finite], 0.0)


@pytest.mark.parametrize("name", ["central", "local_update"])
@pytest.mark.parametrize("users", [1, 5, 60])
def test_one_user_moves_the_sum_by_no_more_than_the_sensitivity(name, users):
    """Same seeds, one user's data replaced by something extreme: the sum before noise moves by at most 2C, and leaving
    the user out moves it by at most C."""
    changes = {"privacy": {"name": name, "noise_multiplier": 0.0, "delta": 1e-5, "clip_norm": 0.02}}
    setting = prepare(experiment(data__users=users, strategy__alpha=0.0, **changes), local())
    everybody = np.arange(users)
    start = setting.net.initial(setting.key)
    whole = compute_here(setting, start, 1, [everybody])[0].total
    rows = setting.federation.order[setting.federation.offsets[0] : setting.federation.offsets[1]]
    kept = setting.federation.train.x[rows].copy()
    try:
        setting.federation.train.x[rows] = 1e3
        extreme = compute_here(setting, start, 1, [everybody])[0].total
    finally:
        setting.federation.train.x[rows] = kept
    without = compute_here(setting, start, 1, [everybody[1:]])[0].total
    assert 0 < np.linalg.norm(whole - extreme) <= 2 * 0.02 * (1 + 1e-6)
    assert 0 < np.linalg.norm(whole - without) <= 0.02 * (1 + 1e-6)


def released_noise(name, chunk=128, **fields):
    """What a run with learning rate 0 releases: its rounds' steps, in units of the stated noise on the mean."""
    privacy = {"name": name, "noise_multiplier": 1.7, "delta": 1e-5, "clip_norm": 0.3, **fields}
    how = {"rounds": 12, "sampling_prob": 0.4, "local_steps": 2, "batch": 4, "local_lr": 0.0, "server_lr": 0.5}
    setting = prepare(experiment(privacy=privacy, training=how, strategy__alpha=0.0), local(chunk))
    before, steps = setting.net.initial(setting.key.fold("initial")).astype(float), []
    start = before.copy()
    for state, row in run(setting, local(chunk), compute_here):
        sent = {m: v for m, g, v in row.values if g == "all"}["messages"]
        expected = 0.5 * 1.7 * 0.3 / setting.plan.cohort * (1.0 if name == "central" else math.sqrt(sent))
        steps.append((state.parameters.astype(float) - before) / expected)
        before = state.parameters.astype(float)
    assert not np.array_equal(start, before)
    return np.stack(steps)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("central", {}), ("local_update", {}), ("local_update", {"noise_per": "message"})],
)
def test_noise_in_the_released_model_has_the_accounted_size(name, fields):
    """std = server_lr z C / (q N), times the root of the messages where every user adds its own. False alarm 1e-6."""
    steps = released_noise(name, **fields)
    low, high = np.sqrt(stats.chi2.ppf([5e-7, 1 - 5e-7], steps.size) / steps.size)
    spread = np.sqrt((steps**2).mean())
    assert low < spread < high
    assert not low < 1.05 * spread < high
    assert not low < 0.95 * spread < high
    assert abs(steps.mean()) < 4.9 / math.sqrt(steps.size)
    assert stats.kstest(steps.ravel(), "norm").pvalue > 1e-6
    assert stats.kstest(steps.ravel() * 1.05, "norm").pvalue < 1e-6 or steps.size < 2e4
    assert np.abs(np.corrcoef(steps) - np.eye(len(steps))).max() < 5.2 / math.sqrt(steps.shape[1])


def test_the_noise_of_client_side_dpsgd_reaches_the_released_model_at_its_size():
    """No example enters: each message is pure noise of std local_lr z C sqrt(steps) / batch."""
    privacy = {"name": "local_dpsgd", "noise_multiplier": 1.7, "delta": 1e-5, "clip_norm": 1e-9}
    how = {"rounds": 10, "sampling_prob": 0.4, "local_steps": 3, "batch": 4, "local_lr": 1e6, "server_lr": 1.0}
    setting = prepare(experiment(privacy=privacy, training=how, strategy__alpha=0.0), local())
    before, values = setting.net.initial(setting.key.fold("initial")).astype(float), []
    for state, row in run(setting, local(), compute_here):
        sent = {m: v for m, g, v in row.values if g == "all"}["messages"]
        expected = 1e6 * 1.7 * 1e-9 * math.sqrt(3) / 4 * math.sqrt(sent) / setting.plan.cohort
        values.append((state.parameters.astype(float) - before) / expected)
        before = state.parameters.astype(float)
    draws = np.stack(values)
    spread = draws.std()
    # The clipped gradients add at most (records / batch) * C sqrt(steps) per user, a few per cent of the noise here.
    assert 0.98 < spread < 1.05
    assert state.draws == state.sent * 3


@pytest.mark.parametrize("name", parts_of("privacy"))
def test_noise_draws_made_equal_those_accounted(name):
    setting = prepare(under(MECHANISMS[name]), local())
    *_, (state, _) = run(setting, local(), compute_here)
    assert state.draws == setting.mechanism.draws(setting.plan, state.sent)
    assert (state.draws > 0) == (name != "none")


@pytest.mark.parametrize("name", ["local_update", "local_dpsgd"])
def test_the_largest_number_of_messages_is_enforced(name):
    fields = {"noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 1.0, "max_messages": 2}
    training = {"rounds": 9, "sampling_prob": 0.5, "local_steps": 1, "local_lr": 0.1}
    limited = prepare(experiment(privacy={"name": name, **fields}, training=training), local())
    *_, (state, _) = run(limited, local(), compute_here)
    assert state.messages.max() == 2
    free = prepare(experiment(privacy={"name": "none"}, training=training), local())
    *_, (state, _) = run(free, local(), compute_here)
    assert state.messages.max() > 2


def test_without_noise_and_clipping_every_mechanism_on_updates_is_the_plain_average():
    plain = prepare(experiment(), local())
    *_, (expected, _) = run(plain, local(), compute_here)
    for name in ("central", "local_update"):
        fields = {"noise_multiplier": 0.0, "delta": 1e-5, "clip_norm": 1e6}
        extra = {"max_messages": 3} if name == "local_update" else {}
        setting = prepare(experiment(privacy={"name": name, **fields, **extra}), local())
        *_, (state, _) = run(setting, local(), compute_here)
        np.testing.assert_allclose(state.parameters, expected.parameters, atol=1e-6)


def test_cohorts_are_poisson_samples_of_users():
    training = {"rounds": 400, "sampling_prob": 0.3, "local_steps": 1, "local_lr": 0.0, "evaluate_every": 400}
    setting = prepare(experiment(training=training, data__users=50), local())
    from fedacdp.rounds import draw_cohort, first_state

    state = first_state(setting)
    taken = np.zeros((400, 50), bool)
    for round in range(400):
        taken[round, draw_cohort(setting, state, round + 1)] = True
    counts = taken.sum(0)
    assert (stats.binom.cdf(counts, 400, 0.3) > 1e-6 / 100).all()
    assert (stats.binom.sf(counts, 400, 0.3) > 1e-6 / 100).all()
    sizes = taken.sum(1)
    spread = sizes.var(ddof=1) / (50 * 0.3 * 0.7)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], 399) / 399
    assert low < spread < high
    assert not low < 0 < high  # fixed-size cohorts would be caught
    assert np.abs(np.corrcoef(taken.T) - np.eye(50)).max() < 5.5 / math.sqrt(400)


def test_noise_is_addressed_by_purpose_and_round():
    one = mechanism("central", noise_multiplier=1.0)
    draws = [one.sum_noise(5, 20_000, round, np.zeros(0), Key(0)).vector for round in (1, 2)]
    assert abs(np.corrcoef(draws)[0, 1]) < 5 / math.sqrt(20_000)
    np.testing.assert_array_equal(draws[0], one.sum_noise(5, 20_000, 1, np.zeros(0), Key(0)).vector)
