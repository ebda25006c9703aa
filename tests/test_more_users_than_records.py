"""A resampled population: any number of users, each of whom draws its records with replacement."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from fedacdp.config import ConfigError
from fedacdp.data import digits
from fedacdp.data.base import Source, federate
from fedacdp.keys import Key
from fedacdp.rounds import compute_here, run
from fedacdp.setting import prepare
from fedacdp.users import Examples, Schema
from tests.conftest import experiment, local

FALSE_ALARM = 1e-6


def source(records: int, classes: int = 10) -> Source:
    """Records whose only feature is their number."""
    x = np.arange(records, dtype=np.float32)[:, None]
    train = Examples(x, np.arange(records) % classes, Schema((1,), tuple(map(str, range(classes)))))
    return Source(train, train)


def held(records: int, users: int, each: int, seed: int = 0) -> np.ndarray:
    """Which records each user holds, (users, each)."""
    data = digits.Digits(users=users, partition="resampled", records=each)
    federation = federate(data, source(records), Key(seed))
    assert (federation.sizes == each).all()
    block = federation.users(np.arange(users), np.zeros(users, bool))
    assert block.mask.all()
    np.testing.assert_array_equal(block.y, block.x[:, :, 0] % 10)
    return block.x[:, :, 0].astype(np.int64)


def uniformity(counts: np.ndarray) -> float:
    return float(stats.chisquare(counts).pvalue)


def test_every_record_is_drawn_equally_often_at_every_place():
    records, users, each = 50, 20_000, 4
    found = held(records, users, each)
    for place in range(each):
        assert uniformity(np.bincount(found[:, place], minlength=records)) > FALSE_ALARM
    skewed = np.minimum(found, records - 2)
    assert uniformity(np.bincount(skewed[:, 0], minlength=records)) < FALSE_ALARM, "the test can fail"


def test_draws_of_a_user_and_of_users_are_independent():
    records, users = 12, 40_000
    found = held(records, users, 2)
    within = np.bincount(found[:, 0] * records + found[:, 1], minlength=records**2)
    between = np.bincount(found[:-1, 0] * records + found[1:, 0], minlength=records**2)
    assert uniformity(within) > FALSE_ALARM
    assert uniformity(between) > FALSE_ALARM
    distinct = found[found[:, 0] != found[:, 1]]  # as drawing without replacement would have it
    assert uniformity(np.bincount(distinct[:, 0] * records + distinct[:, 1], minlength=records**2)) < FALSE_ALARM


def test_a_users_records_depend_on_the_key_and_its_id_only():
    all_ = held(300, 5000, 6)
    np.testing.assert_array_equal(all_, held(300, 5000, 6))
    np.testing.assert_array_equal(all_[:70, :3], held(300, 70, 3))
    assert (all_ != held(300, 5000, 6, seed=1)).mean() > 0.9


def test_a_users_group_is_its_most_frequent_label():
    data = digits.Digits(users=400, partition="resampled", records=7)
    federation = federate(data, source(90), Key(0))
    for user, group in enumerate(federation.group):
        labels = federation.train.y[federation.order[federation.offsets[user] : federation.offsets[user + 1]]]
        assert group == f"label={np.bincount(labels).argmax()}"


def test_a_million_users_take_a_few_bytes_each():
    small = source(60_000)
    data = digits.Digits(users=10**6, partition="resampled", records=1)
    tracemalloc.start()
    try:
        federation = federate(data, small, Key(0))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(federation.sizes) == 10**6
    assert kept < 12e6, "bytes: order and offsets in four, the group's code in two"
    assert peak < 60e6


@pytest.mark.parametrize("batch", [3, "full", 50])
def test_the_plan_counts_the_records_that_users_hold(batch):
    data = {"name": "digits", "users": 5000, "partition": "resampled", "records": 12}
    plan = prepare(experiment(data=data, training__batch=batch), local()).plan
    assert plan.users == 5000
    assert plan.batch == (3 if batch == 3 else 12)
    assert plan.batch_prob == (0.25 if batch == 3 else 1.0)
    cut = prepare(experiment(data={"name": "digits", "users": 60}, training__batch=3), local())
    assert cut.plan.batch_prob == pytest.approx(3 * 60 / len(cut.federation.train))


@pytest.mark.parametrize("privacy", ["central", "local_dpsgd"])
def test_a_population_larger_than_the_data_trains(privacy):
    data = {"name": "digits", "users": 3000, "partition": "resampled", "records": 2}
    mechanism = {"name": privacy, "noise_multiplier": 0.1, "delta": 1e-5, "clip_norm": 1.0}
    training = {"rounds": 2, "sampling_prob": 0.1, "local_steps": 1, "batch": 1, "local_lr": 0.1}
    setting = prepare(experiment(data=data, privacy=mechanism, training=training), local())
    *_, (state, row) = run(setting, local(), compute_here)
    sampled = {metric: value for metric, group, value in row.values if group == "all"}["cohort_size"]
    assert abs(sampled - 300) < 5 * np.sqrt(300)
    assert setting.member.sum() == 300
    assert np.isfinite(state.parameters).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": "resampled"}, r'data.records: must be given if, and only if, partition = "resampled"'),
        ({"records": 3}, r'data.records: must be given if, and only if, partition = "resampled"'),
        ({"partition": "resampled", "records": 0}, r"data\.records = 0: .*greater than 0"),
        ({"partition": "resampled", "records": 1.5}, r"data\.records = 1\.5: .*integer"),
    ],
)
def test_records_belong_to_a_resampled_population(changes, message):
    with pytest.raises(ConfigError, match=message):
        experiment(data={"name": "digits", "users": 60, **changes})


def test_more_users_than_records_are_refused_where_records_have_one_holder():
    with pytest.raises(ConfigError, match=r'only 14\d\d training records; partition = "resampled" allows more users'):
        prepare(experiment(data__users=10_000), local())
