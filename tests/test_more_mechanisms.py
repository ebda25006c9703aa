"""Adaptive clipping, correlated noise, noise in shares and forecasts do what they are charged for."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fedacdp.config import ConfigError, parts_of
from fedacdp.keys import Key
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Plan
from fedacdp.rounds import compute_here, run
from fedacdp.setting import prepare
from tests.conftest import experiment, local

PLAN = Plan(users=1000, sampling_prob=0.1, rounds=100, local_steps=5, batch=4.0, batch_prob=1 / 3)


def mechanism(name, plan=PLAN, **fields):
    given = {"noise_multiplier": 1.0} if "epsilon" not in fields else {}
    part = parts_of("privacy")[name]
    return part(**{"name": name, "delta": 1e-5, "clip_norm": 1.0, **given, **fields}).calibrated(plan)


def small(privacy, **changes):
    given = {} if "epsilon" in privacy else {"noise_multiplier": 0.5}
    return experiment(privacy={"delta": 1e-5, "clip_norm": 0.5, **given, **privacy}, **changes)


def within(values, expected, alarm=1e-6):
    """Whether the spread of independent normals of mean 0 is the expected one, at this false-alarm rate."""
    ratio = float(np.mean(np.square(values)) / expected**2)
    low, high = stats.chi2.ppf([alarm / 2, 1 - alarm / 2], np.size(values)) / np.size(values)
    return low < ratio < high


# Adaptive clipping


@pytest.mark.parametrize(("users", "z", "expected"), [(100, 1.0, 1.005038), (100, 4.0, 4.364358), (100, 9.9, 70.18)])
def test_the_noise_on_updates_pays_for_the_noisy_count(users, z, expected):
    found = mechanism("central_adaptive", noise_multiplier=z)
    assert found.count_noise == users / 20
    assert found.updates_multiplier == pytest.approx(expected, rel=1e-4)
    together = math.hypot(1 / found.updates_multiplier, 0.5 / found.count_noise)  # mu of the pair, by hand
    assert together == pytest.approx(1 / z, rel=1e-12)
    assert found.releases(PLAN) == Gaussians(z, 0.1, 100)


def test_a_count_that_costs_more_than_the_budget_is_refused_with_what_would_do():
    twenty = Plan(users=200, sampling_prob=0.1, rounds=100, local_steps=5, batch=4.0, batch_prob=1 / 3)
    with pytest.raises(
        ValueError, match=r"noise_multiplier = 2: must be below 2 count_noise = 2,.*count_noise above 1"
    ):
        mechanism("central_adaptive", twenty, noise_multiplier=2.0)
    with pytest.raises(ConfigError, match=r"^privacy.epsilon = 0\.05: .*or an epsilon above \d") as caught:
        prepare(small({"name": "central_adaptive", "epsilon": 0.05}), local())
    lowest = float(str(caught.value).rpartition(" ")[2])
    prepare(small({"name": "central_adaptive", "epsilon": lowest * 1.01}), local())


def adapted(start, rounds=100, cohort=100, inverted=False):
    """Clip norms of a run over synthetic norms, log-normal with median 1, in the middle of which C should stay."""
    plan = Plan(cohort * 10, 0.1, rounds, 1, 1.0, 1.0)
    found = mechanism("central_adaptive", plan, clip_norm=start, noise_multiplier=1.0)
    memory, clips = found.first_memory(plan, 3), []
    for round in range(1, rounds + 1):
        rng = Key(5).fold(round).rng()
        norms = rng.lognormal(0.0, 0.5, rng.binomial(plan.users, plan.sampling_prob))
        if inverted:
            norms = np.where(norms <= found.clip_now(memory), math.nextafter(math.inf, 0), 0.0)
        noise = found.sum_noise(len(norms), 3, round, memory, Key(6))
        memory = found.next_memory(memory, norms, noise, plan, round, Key(7))
        clips.append(found.clip_now(memory))
    return clips


@pytest.mark.parametrize("start", [0.1, 10.0, 100.0])
def test_the_clip_norm_comes_within_15_percent_of_the_quantile_in_100_rounds(start):
    assert adapted(start)[-1] == pytest.approx(1.0, rel=0.15)
    assert not 0.85 < adapted(start, inverted=True)[-1] < 1.15  # who is clipped is counted, as in Flower 1.42


def test_one_user_more_moves_the_released_share_by_half_of_one_over_the_cohort():
    found, norms = mechanism("central_adaptive"), np.array([0.5, 2.0, 3.0, math.nan])
    noise = found.sum_noise(4, 3, 1, np.ones(1), Key(0))._replace(on_count=0.0)

    def share(norms):
        return 0.5 - math.log(found.next_memory(np.ones(1), norms, noise, PLAN, 1, Key(0))[0]) / found.clip_lr

    for extra in (0.1, 1.0, 1.0001, math.inf):
        moved = abs(share(np.append(norms, extra)) - share(norms)) * PLAN.cohort
        assert moved == pytest.approx(0.5 if extra < math.inf else 0.0, abs=1e-9)
    assert share(norms) == pytest.approx(0.5 - 0.5 / PLAN.cohort)


def test_clipping_and_noise_of_a_round_use_the_clip_norm_from_before_it_moves():
    """With learning rate 0 a step is noise alone: its size is that of the C that the same round's row tells."""
    training = {"rounds": 6, "sampling_prob": 0.5, "local_steps": 1, "local_lr": 0.0}
    setting = prepare(small({"name": "central_adaptive", "clip_lr": 3.0}, training=training), local())
    before, clips, steps = setting.net.initial(setting.key.fold("initial")).astype(float), [], []
    for state, row in run(setting, local(), compute_here):
        clips.append({m: v for m, _, v in row.values}["clip_norm"])
        steps.append((state.parameters - before) * setting.plan.cohort / setting.mechanism.updates_multiplier)
        before = state.parameters.astype(float)
    assert min(a / b for a, b in itertools.pairwise(clips)) > 2  # every norm is 0: C falls fast
    assert all(within(step, clip) for step, clip in zip(steps, clips, strict=True))
    assert not any(within(step, clip) for step, clip in zip(steps, clips[1:], strict=False))


def test_the_noise_on_the_count_has_the_size_that_is_charged():
    found = mechanism("central_adaptive", count_noise=3.0)
    draws = [found.sum_noise(9, 1, round, np.ones(1), Key(1)).on_count for round in range(2000)]
    assert within(draws, 3.0)
    assert not within(draws, 3.0 / 1.2)
