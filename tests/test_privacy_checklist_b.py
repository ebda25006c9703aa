"""Checklist B: the noise of every mechanism has the stated size, is nobody else's, and has no other seed."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fedacdp.config import parts_of
from fedacdp.rounds import compute_here
from tests import privacy_checks as checks

MECHANISMS = parts_of("privacy")
WHITE = list(checks.NOISE_ON_SUM)


@pytest.mark.parametrize(
    ("name", "fields"), [*((name, {}) for name in WHITE), ("local_update", {"noise_per": "message"})]
)
def test_the_noise_on_a_sum_is_white_and_of_the_stated_size_in_every_layer(name, fields):
    """B7, and B9 between rounds and layers: 25 rounds of 4810 places."""
    units, layers = checks.noise_in_units(name, fields=fields)
    assert units.size >= 1e5
    checks.check_white(units, layers)
    half = units[:, : units.shape[1] // 2]
    left, right = half.ravel(), units[:, -half.shape[1] :].ravel()
    assert abs(np.corrcoef(left, right)[0, 1]) < 5 / np.sqrt(half.size)
    bias = np.cumsum(layers)[0]
    planted = {
        "too little": 0.95 * units,
        "too much": 1.05 * units,
        "no noise on a bias": np.where(np.arange(units.shape[1]) >= bias, units, 0.0),
        "the same in two rounds": units[[0, *range(len(units) - 1)]],
        "shifted": units + 0.02,
    }
    for wrong in planted.values():
        with pytest.raises(AssertionError):
            checks.check_white(wrong, layers)
    for factor in (0.95, 1.05):
        assert stats.kstest(units.ravel() * factor, "norm").pvalue < checks.ALARM


@pytest.mark.parametrize("users", [1, 10, 1000])
@pytest.mark.parametrize("name", WHITE)
def test_released_minus_the_exact_clipped_mean_is_noise_once_over_the_cohort(name, users):
    """B8, in the model: neither averaged twice nor never."""
    checks.check_model_moves(name, users)


@pytest.mark.parametrize("name", WHITE)
def test_the_scale_by_hand_tells_a_server_that_averages_twice(name, monkeypatch):
    """B8, the negative control."""
    from fedacdp.models.base import Learner

    moved = Learner.moved
    monkeypatch.setattr(Learner, "moved", lambda self, flat, total, lr, cohort: moved(self, flat, total, lr, cohort**2))
    with pytest.raises(AssertionError):
        checks.check_model_moves(name, 10)


def test_every_message_of_a_local_mechanism_has_noise_of_its_own():
    """B10. A shared seed, and noise for the mean only, are caught."""
    checks.check_messages()
    rng = np.random.default_rng(0)
    alone = rng.standard_normal((60, 4810))
    for wrong in (np.tile(alone[:1], (60, 1)), alone / np.sqrt(60)):
        with pytest.raises(AssertionError):
            checks.check_white(wrong)


def test_every_user_of_dpsgd_has_noise_of_its_own():
    """B7, B9, B10 of local_dpsgd. In all layers and forms: tests/test_local_training.py, tests/test_any_network.py; how
    often randomised responses are true, and the ratio of their chances: tests/test_counts.py."""
    checks.check_example_noise()


@pytest.mark.parametrize("name", MECHANISMS)
def test_noise_depends_on_the_seed_and_on_nothing_global(name, monkeypatch):
    """B9: clients that seed numpy, torch and random change nothing; another seed changes the noise; the chunks, which
    different workers do, do not share it. Resuming gives the same bits: tests/test_rounds.py."""
    setting = checks.small(name, 2, q=0.5)
    expected, _ = checks.released(setting)
    again, _ = checks.released(setting)
    for first, second in zip(expected, again, strict=True):
        np.testing.assert_array_equal(first.total, second.total)

    def seeding(*task: Any) -> Any:
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        return compute_here(*task)

    with monkeypatch.context() as patch:
        patch.setattr(checks, "compute_here", seeding)
        seeded, _ = checks.released(setting)
    for first, second in zip(expected, seeded, strict=True):
        np.testing.assert_array_equal(first.total, second.total)
    if name != "none":
        other, _ = checks.released(checks.small(name, 2, q=0.5, seed=8))
        assert not np.allclose(other[0].total, expected[0].total)


@pytest.mark.parametrize("name", WHITE)
def test_noise_does_not_depend_on_data_or_on_who_else_is_there(name):
    """B9 between worlds: the same noise whatever a user's records are."""
    setting = checks.small(name)
    [loud], [still] = checks.released(setting)[0], checks.released(checks.quiet(setting))[0]
    with checks.first_has(setting, 1e3) as other:
        [loud_other], [still_other] = checks.released(other)[0], checks.released(checks.quiet(other))[0]
    np.testing.assert_allclose(loud.total - still.total, loud_other.total - still_other.total, atol=1e-7)


@pytest.mark.parametrize("name", WHITE)
def test_noise_is_made_in_float64_never_clipped_and_never_rounded_to_nothing(name):
    """B11, down to a clip norm that float16 cannot hold. Noise of DP-SGD is float32, as privacy.md's limits say."""
    for clip_norm in (1e-12, 1e6):
        fields = {**checks.clipped_to(name, clip_norm), **({"noise_per": "message"} if name == "local_update" else {})}
        setting = dataclasses.replace(checks.small(name, lr=0.0, fields=fields), watched=True)
        part = compute_here(setting, checks.start_of(setting), 1, [np.arange(60)])[0]
        memory = setting.mechanism.first_memory(setting.plan, 100_000)
        noise = setting.mechanism.sum_noise(60, 100_000, 1, memory, setting.key)
        own = setting.mechanism.noise_of(1, 100_000, setting.key)
        vector = own if noise is None else noise.vector
        assert vector.dtype == np.float64
        assert len(np.unique(vector.astype(np.float32))) > 90_000
        assert np.abs(vector).max() > 3.9 * checks.NOISE_ON_SUM[name](setting.mechanism, 1)
        if own is not None:
            units = part.messages.astype(float) / setting.mechanism.sigma
            assert 0.9 < units.std() < 1.1
