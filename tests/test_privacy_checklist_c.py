"""Checklist C: the sampler that runs is the one that is accounted for."""

import numpy as np
import pytest

from fedacdp.config import ConfigError, experiment_from, parts_of
from fedacdp.keys import Key
from fedacdp.local.batches import poisson
from fedacdp.privacy.base import Noisy
from tests import privacy_checks as checks
from tests.conftest import block, raw_experiment

MECHANISMS = parts_of("privacy")
AMPLIFIED = [name for name, part in MECHANISMS.items() if part.observer == "model_holder"]


def shuffled(turns: int, users: int, each: int) -> np.ndarray:
    """Cohorts of `each` users from a new order of everybody in every epoch."""
    rng, taken = np.random.default_rng(1), np.zeros((turns, users), bool)
    for turn in range(turns):
        if turn % (users // each) == 0:
            order = rng.permutation(users)
        first = turn % (users // each) * each
        taken[turn, order[first : first + each]] = True
    return taken


def size_then_choose(turns: int, users: int, each: int) -> np.ndarray:
    """Cohorts of one size, uniformly without replacement."""
    rng, taken = np.random.default_rng(2), np.zeros((turns, users), bool)
    for turn in range(turns):
        taken[turn, rng.choice(users, each, replace=False)] = True
    return taken


def with_replacement(turns: int, users: int, each: int) -> np.ndarray:
    """Cohorts of a Poisson-distributed number of draws with replacement."""
    rng, taken = np.random.default_rng(3), np.zeros((turns, users), bool)
    for turn in range(turns):
        taken[turn, rng.choice(users, rng.poisson(each))] = True
    return taken


def in_groups(turns: int, users: int, each: int) -> np.ndarray:
    """Each user with the right chance, but neighbours together."""
    rng = np.random.default_rng(4)
    return np.repeat(rng.random((turns, users // 5)) < each / users, 5, axis=1)


@pytest.mark.parametrize("name", MECHANISMS)
def test_cohorts_are_poisson_samples_with_the_accounted_chances(name):
    """C12, C13: each user's count, pairs, sizes, and rounds; the last user too; whatever the users' data are."""
    setting = checks.small(name, q=0.3, users=50)
    taken = checks.cohorts(setting, 1000)
    chances = np.broadcast_to(setting.mechanism.chances(setting.plan), 50)
    checks.check_poisson(taken, chances)
    assert taken[:, -1].any()
    if setting.mechanism.needs is None:
        with checks.first_has(setting, 1e3) as other:
            np.testing.assert_array_equal(checks.cohorts(other, 20), taken[:20])
        np.testing.assert_array_equal(checks.cohorts(checks.with_more(setting, 3), 20), taken[:20])


@pytest.mark.parametrize("fake", [shuffled, size_then_choose, with_replacement, in_groups])
def test_samplers_that_only_look_like_poisson_are_told(fake):
    """C12, the negative controls: public bugs d, e and s."""
    rng = np.random.default_rng(0)
    checks.check_poisson(rng.random((1000, 50)) < 0.2, 0.2)
    with pytest.raises(AssertionError):
        checks.check_poisson(fake(1000, 50, 10), 0.2)


def test_batches_of_dpsgd_are_poisson_samples_of_a_users_records():
    """C12 for examples, record by record, user by user, step by step."""
    users = block(users=30, records=40, ragged=False)
    batches = poisson(users, 0.2, 60, Key(4))
    taken = np.zeros((30, 60, 40), bool)
    for row, step in np.ndindex(30, 60):
        taken[row, step, batches.index[row, step][batches.chosen[row, step]]] = True
    checks.check_poisson(taken.reshape(-1, 40), 0.2)
    checks.check_poisson(np.swapaxes(taken, 0, 2).reshape(-1, 30), 0.2)


@pytest.mark.parametrize("name", [name for name in AMPLIFIED if issubclass(MECHANISMS[name], Noisy)])
def test_the_accounted_rate_is_the_samplers(name):
    """C13: one object has both, and where everybody is in there is no amplification."""
    for q in (0.1, 1.0):
        setting = checks.small(name, 3, q=q)
        releases = setting.mechanism.releases(setting.plan)
        assert releases.rate in (1.0, setting.mechanism.chances(setting.plan))
        assert (releases.rate == 1.0) == ("Poisson" not in str(releases.event))


@pytest.mark.parametrize("name", MECHANISMS)
def test_who_fails_to_send_after_selection_does_not_lower_the_charge(name):
    """C13: half of the users strike; epsilon, and the noise on sums, are what they were."""
    if MECHANISMS[name].needs == "counts":
        pytest.skip("a strike of counted users is the same code")
    calm, struck = (checks.small(name, 2, strategy={"name": "strike", "alpha": alpha}) for alpha in (0.0, 0.5))
    epsilons = {setting.mechanism.guarantee(setting.plan).epsilon for setting in (calm, struck)}
    assert len(epsilons) == 1
    if MECHANISMS[name].observer == "model_holder" and name in checks.NOISE_ON_SUM:
        assert checks.released(struck)[1].draws == checks.released(calm)[1].draws


@pytest.mark.parametrize("field", ["cohort", "cohort_cap", "sampler", "shuffle", "replace"])
def test_there_is_no_other_sampler_to_be_mistaken_for_poisson(field):
    """C13, C14: neither fixed sizes, nor a cap, nor shuffling can be asked for."""
    with pytest.raises(ConfigError, match=rf"training\.{field} = 10: unknown key"):
        experiment_from(raw_experiment(**{f"training__{field}": 10}))
