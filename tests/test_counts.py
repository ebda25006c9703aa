"""A histogram counts exactly, under every mechanism users' counts go through the same round, and it scales."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from fedacdp.config import ConfigError, Execution, parts_of
from fedacdp.keys import Key
from fedacdp.local import training_bytes
from fedacdp.local.counts import count
from fedacdp.privacy import accounting
from fedacdp.rounds import compute_here, first_state, run
from fedacdp.setting import prepare
from fedacdp.strategy import Strategy
from fedacdp.tasks import pack_task, perform, read_partials
from tests.conftest import CELLS, COLUMNS, MECHANISMS, Toy, counting, experiment, local
from tests.test_data import REAL

KEY = Key(3).fold("test")
EVERYBODY = {"rounds": 1, "sampling_prob": 1.0}
TOY = Toy(users=1).load(None)
SCHEMA = TOY.train.schema
GAUSSIAN = {"noise_multiplier": 2.0, "delta": 1e-5, "clip_norm": 1.0}
ANSWERS = {"name": "randomised_response", "message_epsilon": 1.0}


def histogram(**changes):
    return parts_of("model")["histogram"].model_validate({**CELLS, **changes})


def last(setting, execution=None):
    *_, (state, row) = run(setting, execution or local(), compute_here)
    return state, row


def cell_in_words(x, schema, bins):
    """A record's cell as a person would read it: the level of each column, or which interval its number is in."""
    words = []
    for name in ("colour", "size", "age"):
        column = schema.column(name)
        if column.levels:
            [hit] = np.flatnonzero(x[column.start : column.stop])
            words.append(column.levels[hit])
        else:
            value = round(float(x[column.start]) * column.std + column.mean)
            words.append(sum(value >= edge for edge in bins))
    return tuple(words)


def cells_in_words():
    """The cells of CELLS in the order of the parameters."""
    return list(itertools.product(("blue", "green", "red"), ("1", "2", "3", "4"), (0, 1, 2)))


@pytest.mark.parametrize("records", [1, 3])
def test_counts_are_those_of_a_dictionary_and_so_is_the_classifier(records):
    data = Toy(users=300, partition="resampled", records=records)
    setting = prepare(counting(data=data, training=EVERYBODY, strategy__alpha=0.0), local())
    state, row = last(setting)
    counted = Counter()
    for _, x, y in setting.federation.users(np.arange(300), setting.member):
        counted.update((cell_in_words(record, SCHEMA, (30, 50.5)), label) for record, label in zip(x, y, strict=True))
    expected = [counted[cell, label] for cell in cells_in_words() for label in range(3)]
    assert sum(expected) == 300 * records
    np.testing.assert_allclose(state.parameters * 300, expected, atol=0, rtol=1e-12)
    best = [
        max(range(3), key=lambda label: (counted[cell_in_words(x, SCHEMA, (30, 50.5)), label], -label))
        for x in TOY.test.x
    ]
    np.testing.assert_array_equal(setting.net.predict(state.parameters, TOY.test.x), best)
    accuracy = {(metric, group): value for metric, group, value in row.values}["accuracy", "all"]
    assert accuracy == pytest.approx((best == TOY.test.y).mean(), abs=1e-12)
    assert accuracy > 0.5


def test_the_published_adult_is_counted_as_its_groups_tell():
    if not (REAL / "adult").is_dir():
        pytest.skip("needs the published files of adult in ../shared/data")
    model = {"name": "histogram", "cells": ["education", "sex"], "levels": {"education": ["Masters", "Doctorate"]}}
    data = {"name": "adult", "users": 32_561}
    execution = Execution(engine="local", chunk=5000, data_dir=REAL)
    setting = prepare(counting(data=data, model=model, strategy={"name": "honest"}, training=EVERYBODY), execution)
    source = parts_of("data")["adult"](**data).load(REAL)
    counted = Counter(zip(source.groups["education"], source.groups["sex"], source.train.y, strict=True))
    rest = Counter()
    for (education, sex, label), number in counted.items():
        rest[education if education in ("Masters", "Doctorate") else "other", sex, label] += number
    cells = itertools.product(("Masters", "Doctorate", "other"), ("Female", "Male"), (0, 1))
    state, _ = last(setting, execution)
    np.testing.assert_allclose(state.parameters * 32_561, [rest[cell] for cell in cells], atol=0, rtol=1e-12)


def test_rounds_add_up_and_ties_stay_ties():
    """In every round another cohort, so that equal counts are reached by different sums."""
    training = {"rounds": 25, "sampling_prob": 0.3}
    data = Toy(users=45, partition="resampled", records=1)
    setting = prepare(counting(data=data, training=training, strategy__alpha=0.0), local())
    state, _ = last(setting)
    counts = np.rint(state.parameters * setting.plan.cohort)
    assert counts.sum() == state.sent
    np.testing.assert_allclose(state.parameters * setting.plan.cohort, counts, atol=1e-9)
    table = counts.reshape(36, 3)
    expected = table.argmax(1)[setting.net.cell(TOY.test.x)]
    np.testing.assert_array_equal(setting.net.predict(state.parameters, TOY.test.x), expected)
    wobbly = state.parameters + np.random.default_rng(0).uniform(-1e-15, 1e-15, len(state.parameters))
    np.testing.assert_array_equal(setting.net.predict(wobbly, TOY.test.x), expected)
    assert ((table == table.max(1, keepdims=True)).sum(1) > 1).any(), "no ties to speak of"


def test_ties_and_empty_cells_go_to_the_first_class_of_the_stated_order():
    x = TOY.test.x
    for ties, first in {(): 0, ("y",): 1, ("z", "x"): 2}.items():
        net = histogram(ties=ties).net(SCHEMA)
        assert (net.predict(net.initial(KEY), x) == first).all()
    net = histogram(ties=("z", "x")).net(SCHEMA)
    table = np.zeros((36, 3))
    table[:] = [2, 2, 1]  # a tie of x and y
    assert (net.predict(table.ravel(), x) == 0).all()
    table[:] = [1, 1, 1]
    assert (net.predict(table.ravel(), x) == 2).all()
    table[:] = [0, 5, 0]
    unheard = x.copy()
    unheard[:, : len(SCHEMA.column("colour").levels)] = 0  # a level that the training part lacks
    assert (net.predict(table.ravel(), unheard) == 2).all()
    assert (net.predict(table.ravel(), x) == 1).all()


def test_a_value_at_an_edge_belongs_to_the_interval_above():
    column, ages = SCHEMA.column("age"), np.arange(18, 80)
    net = histogram(cells=["age"], bins={"age": [30, 50.5, 61]}).net(SCHEMA)
    x = np.zeros((len(ages), *SCHEMA.shape), np.float32)
    x[:, column.start] = (ages.astype(float) - column.mean) / column.std
    np.testing.assert_array_equal(net.cell(x), np.searchsorted([30, 51, 61], ages, side="right"))


def test_listed_levels_keep_their_cells_and_the_others_share_one():
    whole = histogram(cells=["colour", "size"], bins={}).net(SCHEMA)
    some = histogram(cells=["colour", "size"], bins={}, levels={"size": ["3", "2"]}).net(SCHEMA)
    assert (whole.cells, some.cells) == (12, 9)
    for big, small in zip(whole.cell(TOY.test.x), some.cell(TOY.test.x), strict=True):
        colour, size = divmod(int(big), 4)
        assert divmod(int(small), 3) == (colour, {2: 0, 1: 1}.get(size, 2))
    every = histogram(cells=["size"], bins={}, levels={"size": ["4", "3", "2", "1"]}).net(SCHEMA)
    assert every.cells == 4


@pytest.mark.parametrize(("records", "answers"), [(1, None), (4, None), (1, 1.5)])
def test_sparse_contributions_equal_dense_ones(records, answers):
    data = Toy(users=40, partition="resampled", records=records)
    setting = prepare(counting(data=data), local())
    users, net = setting.federation.users(np.arange(40), setting.member), setting.net
    users.mask[7] = False  # a user without records
    response = None if answers is None else parts_of("privacy")["randomised_response"](message_epsilon=answers)
    updates = count(net, users, response.response(setting.plan) if response else None, KEY)
    dense = updates.stack().numpy()
    if answers is None:
        expected = np.zeros((40, net.size))
        for user, (_, x, y) in enumerate(users):
            for record, label in zip(x, y, strict=True):
                expected[user, cells_in_words().index(cell_in_words(record, SCHEMA, (30, 50.5))) * 3 + label] += 1
        np.testing.assert_array_equal(dense, expected)
        assert updates.norms[7] == 0
        assert updates.norms.max() > (1 if records > 1 else 0)
    np.testing.assert_allclose(updates.norms, np.linalg.norm(dense, axis=1), rtol=1e-12)
    factors = np.random.default_rng(0).random(40)
    factors[3] = 0
    np.testing.assert_allclose(updates.total(factors), factors @ dense, atol=1e-12)


def test_a_label_that_is_no_class_is_not_counted_elsewhere():
    setting = prepare(counting(), local())
    users = setting.federation.users(np.arange(60), setting.member)
    users.y[5] = 3
    with pytest.raises(ValueError, match="label 3"):
        count(setting.net, users, None, KEY)


# What is sent under privacy


@pytest.mark.parametrize(("name", "records"), [("central", 1), ("local_update", 1), ("local_update", 5)])
def test_one_users_counts_move_the_sum_by_no_more_than_the_sensitivity(name, records):
    """Replacing a user moves clipped counts by at most sqrt(2) C, for they have no negative entries; one record may
    reach it. Leaving it out moves them by at most C."""
    clip = 0.8
    privacy = {"name": name, "noise_multiplier": 0.0, "delta": 1e-5, "clip_norm": clip}
    data = Toy(users=50, partition="resampled", records=records)
    setting = prepare(counting(data=data, privacy=privacy, strategy__alpha=0.0), local())
    assert setting.plan.diameter == pytest.approx(math.sqrt(2))
    start, ids = first_state(setting).parameters, np.arange(50)
    one = np.stack([compute_here(setting, start, 1, [ids[user : user + 1]])[0].total for user in ids])
    apart = np.linalg.norm(one[:, None] - one[None], axis=2)
    assert (one >= 0).all()
    assert np.linalg.norm(one, axis=1).max() <= clip * (1 + 1e-9)
    assert apart.max() <= math.sqrt(2) * clip * (1 + 1e-9)
    assert apart.max() >= 0.99 * math.sqrt(2) * clip


def test_a_strategy_that_edits_updates_is_accounted_with_twice_the_clip_norm(monkeypatch):
    privacy = {"name": "local_update", "max_messages": 1, **GAUSSIAN}
    plain = counting(privacy=privacy)
    epsilon = plain.privacy.guarantee(plain.plan(400)).epsilon
    assert epsilon == pytest.approx(accounting.epsilon(accounting.Gaussians(math.sqrt(2), 1.0, 1), 1e-5), rel=1e-9)
    monkeypatch.setattr(type(plain.strategy), "update", lambda self, updates, users, round, key: -updates)
    edits = counting(privacy=privacy)
    assert edits.plan(400).diameter == 2
    assert edits.privacy.guarantee(edits.plan(400)).epsilon > 1.3 * epsilon
    with pytest.raises(ConfigError, match=r"randomised_response.*planting edits updates"):
        counting(privacy=ANSWERS)
    assert experiment(privacy=privacy).plan(400).diameter == 2


@pytest.mark.parametrize("name", ["central", "local_update"])
def test_cells_are_won_as_often_as_the_solvable_model_says(name):
    """One cell, two labels, N one-record users, noise of sd s on each count: Pr[won] = Phi(gap / (sqrt(2) s)), s = z C
    centrally and z C sqrt(N) locally. False alarm 1e-6."""
    users, gap = 400, 20
    privacy = {"name": name, **GAUSSIAN, "noise_multiplier": 10.0 if name == "central" else 1.0}
    setting = prepare(counting(data=Toy(users=users), privacy=privacy, training=EVERYBODY), local())
    counts, trials = np.array([(users + gap) / 2, (users - gap) / 2]), 4000
    sd = 10.0 if name == "central" else math.sqrt(users)
    noise = [setting.mechanism.sum_noise(users, 2, trial, np.zeros(0), KEY).vector for trial in range(trials)]
    won = int(((counts + np.stack(noise)) @ [1, -1] > 0).sum())
    chance = stats.norm.cdf(gap / (math.sqrt(2) * sd))
    assert stats.binomtest(won, trials, chance).pvalue > 1e-6
    assert stats.binomtest(won, trials, stats.norm.cdf(gap / sd)).pvalue < 1e-6  # one noise, not the difference of two


def test_local_noise_for_epsilon_is_that_of_the_reference():
    """sigma = sqrt(2) / mu for one-record users under replacement."""
    privacy = {"name": "local_update", "epsilon": 1.0, "delta": 1e-5, "clip_norm": 1.0}
    chosen = counting(privacy=privacy, training=EVERYBODY)
    sigma = chosen.privacy.calibrated(chosen.plan(400)).sigma
    assert sigma == pytest.approx(math.sqrt(2) * 3.73063, rel=2e-3)


# Randomised response


def answer(epsilon):
    return parts_of("privacy")["randomised_response"](message_epsilon=epsilon).response(prepared().plan)


def prepared(**changes):
    return prepare(counting(**{"privacy": ANSWERS, "training": EVERYBODY, **changes}), local())


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 1.0, 3.0, 20.0, 800.0])
@pytest.mark.parametrize("symbols", [1, 2, 108, 2**24])
def test_the_chances_of_answers_are_exactly_as_private_as_stated(epsilon, symbols):
    response = answer(epsilon)
    other = (1 - response.truthful(symbols)) / symbols
    true = response.truthful(symbols) + other
    assert true + (symbols - 1) * other == pytest.approx(1, rel=1e-12)
    if symbols > 1 and epsilon < 100:
        assert math.log(true / other) == pytest.approx(epsilon, rel=1e-6)
        assert max(1 / symbols / other, true * symbols) <= math.exp(epsilon) * (1 + 1e-9)  # who has no symbol
    slope, shift = response.estimate(symbols)
    assert slope * true + shift == pytest.approx(1, abs=1e-9)
    assert slope * other + shift == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("epsilon", "symbols", "messages"), [(1.0, 6, 1), (0.4, 20, 5)])
def test_the_accountant_of_dp_accounting_agrees(epsilon, symbols, messages):
    """Message by message: given a SelfComposedDpEvent, its PLD accountant counts one."""
    from dp_accounting import NeighboringRelation, RandomizedResponseDpEvent
    from dp_accounting.pld import PLDAccountant

    privacy = {"name": "randomised_response", "message_epsilon": epsilon, "max_messages": messages}
    chosen = counting(privacy=privacy, training={"rounds": 9, "sampling_prob": 0.1})
    guarantee = chosen.privacy.guarantee(chosen.plan(400))
    assert (guarantee.epsilon, guarantee.delta) == (pytest.approx(epsilon * messages), 0)
    noise = symbols / (math.exp(epsilon) + symbols - 1)
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    for _ in range(messages):
        accountant.compose(RandomizedResponseDpEvent(noise, symbols))
    assert accountant.get_epsilon(1e-15) == pytest.approx(guarantee.epsilon, rel=2e-3)


def reported(response, truth, symbols, seed=0):
    return np.bincount(response.reports(truth, symbols, np.arange(len(truth)), KEY.fold(seed)), minlength=symbols)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
@pytest.mark.parametrize("off", [1.0, 0.95, 1.05])
def test_answers_are_as_frequent_as_stated(epsilon, off):
    """False alarm 1e-6; a chance p of the truth that is 5 % off is found."""
    symbols, users, response = 5, 200_000, answer(epsilon)
    p = math.exp(epsilon) / (math.exp(epsilon) + symbols - 1)
    found = reported(response, np.full(users, 3), symbols)
    expected = np.full(symbols, (1 - p * off) / (symbols - 1))
    expected[3] = p * off
    assert (stats.chisquare(found, users * expected).pvalue > 1e-6) == (off == 1.0)
    nowhere = reported(response, np.full(users, -1), symbols)
    assert stats.chisquare(nowhere).pvalue > 1e-6


@pytest.mark.parametrize("planted", [False, True])
def test_estimated_counts_are_unbiased_and_vary_as_stated(planted, monkeypatch):
    """Over repetitions: mean of the estimate = true count, variance = sum over users of pi (1 - pi) / (p - q)^2. False
    alarm 1e-6; with p 5 % off, and the estimate as it was, the mean is not the true count."""
    symbols, epsilon, runs = 4, 1.5, 4000
    truth = np.repeat([0, 1, 2], [900, 90, 10])
    response = answer(epsilon)
    slope, shift = response.estimate(symbols)
    p = math.exp(epsilon) / (math.exp(epsilon) + symbols - 1)
    q = (1 - p) / (symbols - 1)
    if planted:
        honest = 1.05 * p - (1 - 1.05 * p) / (symbols - 1)
        monkeypatch.setattr(type(response), "truthful", lambda self, symbols: honest)
    found = np.stack([slope * reported(response, truth, symbols, seed) + shift * len(truth) for seed in range(runs)])
    true = np.bincount(truth, minlength=symbols)
    variance = (true * p * (1 - p) + (len(truth) - true) * q * (1 - q)) / (p - q) ** 2
    z = (found.mean(0) - true) / np.sqrt(variance / runs)
    assert (np.abs(z).max() < stats.norm.isf(1e-6 / 8)) != planted
    if not planted:
        ratio = found.var(0, ddof=1) / variance
        low, high = stats.chi2.ppf([1e-6 / 8, 1 - 1e-6 / 8], runs - 1) / (runs - 1)
        assert ((low < ratio) & (ratio < high)).all()
        assert not (low < 1.2 * ratio[0] < high)


def test_a_run_adds_up_the_estimates_of_its_answers():
    setting = prepared(training={"rounds": 4, "sampling_prob": 0.5}, strategy__alpha=0.0)
    state, row = last(setting)
    assert state.draws == state.sent == setting.mechanism.draws(setting.plan, state.sent)
    assert state.messages.max() == 2
    assert state.parameters.sum() * setting.plan.cohort == pytest.approx(state.sent)
    assert {m: v for m, g, v in row.values if g == "all"}["clipped_fraction"] == 0
    again = compute_here(setting, state.parameters, 1, [np.arange(60)])[0].total
    other = compute_here(setting, state.parameters, 2, [np.arange(60)])[0].total
    assert not np.array_equal(again, other), "the same answers in two rounds"
    single = sum(compute_here(setting, state.parameters, 1, [np.array([user])])[0].total for user in range(60))
    np.testing.assert_allclose(single, again, atol=1e-9)


def test_epsilon_is_for_all_messages_and_each_has_its_share():
    chosen = counting(privacy={"name": "randomised_response", "epsilon": 6.0}, training__rounds=5)
    guarantee = chosen.privacy.guarantee(chosen.plan(400))
    assert (guarantee.epsilon, guarantee.per_message_epsilon) == (pytest.approx(6.0), pytest.approx(2.0))
    assert (guarantee.unit, guarantee.observer, guarantee.adjacency) == ("user", "server", "replace_one")
    assert "epsilon = 6 at delta = 0;" in guarantee.sentence
    assert "nan" not in guarantee.sentence
    assert guarantee.to_json()["noise_multiplier"] is None
    assert prepare(chosen, local()).mechanism.message_epsilon == pytest.approx(2.0)


# Scheduling, scale, wrong input


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name != "local_dpsgd"])
def test_counts_done_elsewhere_have_the_same_bits(name, monkeypatch):
    monkeypatch.setitem(parts_of("data"), "toy", Toy)
    setting = prepare(counting(privacy=MECHANISMS[name]), local(16))
    chunks, start = [np.arange(0, 16), np.arange(16, 30), np.arange(40, 60)], first_state(setting).parameters
    here = compute_here(setting, start, 2, chunks)
    there = read_partials(perform(pack_task(setting, local(16), start, 2, chunks)), 3)
    for mine, theirs in zip(here, there, strict=True):
        assert mine.total.tobytes() == theirs.total.tobytes()
        assert mine.draws == theirs.draws


def test_without_noise_every_chunk_and_block_gives_the_same_bits():
    setting = prepare(counting(data=Toy(users=400), training=EVERYBODY), local())
    found = {last(setting, local(chunk))[0].parameters.tobytes() for chunk in (1, 7, 400)}
    object.__setattr__(setting, "block", 11)
    assert len(found | {last(setting, local(400))[0].parameters.tobytes()}) == 1


@pytest.mark.parametrize("privacy", [{"name": "none"}, {"name": "local_update", **GAUSSIAN}, ANSWERS])
def test_users_in_the_hundred_thousands_are_counted_at_two_seconds_a_million(privacy):
    """Of processor time; measured is a tenth of it."""
    data = Toy(users=300_000, partition="resampled", records=1)
    setting = prepare(counting(data=data, privacy=privacy, training={"rounds": 2, "sampling_prob": 1.0}), local())
    began = time.process_time()
    state, _ = last(setting, local(4096))
    assert state.sent == 600_000
    assert (time.process_time() - began) / 2 < 0.6


def test_a_counted_user_takes_a_few_bytes():
    peaks = []
    for users in (2_000, 42_000):
        data = Toy(users=users, partition="resampled", records=1)
        setting = prepare(counting(data=data, privacy=ANSWERS, training=EVERYBODY), local())
        last(setting)
        tracemalloc.start()
        last(setting)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 40_000 < 150, "bytes, where its dense counts would take 864"


def test_members_may_edit_their_counts_which_never_stand_expanded_for_everybody(monkeypatch):
    def boosted(self, updates, users, round, key):
        return 10 * updates

    data = Toy(users=20_000, partition="resampled", records=1)
    plain = last(prepare(counting(data=data, training=EVERYBODY), local(20_000)))[0].parameters
    monkeypatch.setattr(type(counting().strategy), "update", boosted)
    setting = prepare(counting(data=data, training={**EVERYBODY, "rounds": 2}), local(20_000))
    tracemalloc.start()
    state = next(run(setting, local(20_000), compute_here))[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    members = setting.federation.users(np.flatnonzero(setting.member), np.ones(2_000, bool))
    own = setting.experiment.strategy.data(members, 1, KEY)
    places = setting.net.place(own.x[:, 0], own.y[:, 0])
    expected = plain * 20_000 + 9 * np.bincount(places, minlength=setting.net.size)
    np.testing.assert_allclose(state.parameters * 20_000, expected, rtol=1e-12)
    assert peak < 20_000 * setting.net.size * 8


def test_the_memory_foreseen_for_a_block_is_what_it_takes():
    data = Toy(users=20_000, partition="resampled", records=4)
    setting = prepare(counting(data=data), local())
    users = setting.federation.users(np.arange(20_000), setting.member)
    tracemalloc.start()
    updates = count(setting.net, users, None, KEY)
    updates.total(np.ones(20_000) / updates.norms)
    peak = tracemalloc.get_traced_memory()[1] + users.x.nbytes
    tracemalloc.stop()
    assert peak / 2 < training_bytes(setting.net, SCHEMA.shape, 4, 4, 20_000, None, False) < 4 * peak


WRONG = [
    ({"model": {"name": "histogram"}}, r"model\.cells: must be given"),
    ({"model__cells": []}, r"model\.cells = \[\]"),
    ({"model__cells": ["size", "size"], "model__bins": {}}, r"model\.cells: 'size' is there twice"),
    ({"model__cells": ["size"]}, r"model\.bins\.age: not among the columns of cells: size"),
    ({"model__levels": {"shape": ["1"]}}, r"model\.levels\.shape: not among"),
    ({"model__levels": {"size": ["1", "1"]}}, r"model\.levels\.size: '1' is there twice"),
    ({"model__bins": {"age": [50, 30]}}, r"model\.bins\.age = \[50\.0, 30\.0\]: edges must rise"),
    ({"model__bins": {"age": [float("nan")]}}, r"model\.bins\.age\.0 = nan"),
    ({"model__ties": ["x", "x"]}, r"model\.ties: 'x' is there twice"),
    ({"training__local_lr": 0.1}, r"training\.local_lr = 0\.1: counts take no steps; leave it out"),
    ({"training__local_steps": 1}, r"training\.local_steps = 1: counts take no steps"),
    ({"training__local_epochs": 1}, r"training\.local_epochs = 1: counts take no steps"),
    ({"training__batch": 4}, r"training\.batch = 4: counts take no steps"),
    ({"training__server_lr": 0.5}, r"training\.server_lr = 0\.5: counts take no steps"),
    (
        {"privacy": MECHANISMS["local_dpsgd"]},
        r"privacy\.name = 'local_dpsgd': needs a model that learns by gradients; histogram learns by counts",
    ),
    ({"privacy": {"name": "randomised_response"}}, r"privacy\.epsilon, message_epsilon: exactly one.*neither"),
    ({"privacy": {**ANSWERS, "epsilon": 1.0}}, r"privacy\.epsilon, message_epsilon: exactly one.*both"),
    ({"privacy": {"name": "randomised_response", "epsilon": 0}}, r"privacy\.epsilon = 0"),
    ({"privacy": {**ANSWERS, "delta": 1e-5}}, r"privacy\.delta = 1e-05: unknown key; allowed: .*message_epsilon"),
]
MISFITS = [
    ({"model__cells": ["taste"], "model__bins": {}}, r"model\.cells = 'taste': no column 'taste'; there are: colour, "),
    ({"model__bins": {}}, r"model\.cells = 'age': the column is numeric, it needs edges in model\.bins\.age"),
    ({"model__bins": {"age": [30], "size": [2]}}, r"model\.bins\.size: the column is categorical"),
    ({"model__levels": {"age": ["30"]}}, r"model\.levels\.age: the column is numeric"),
    ({"model__levels": {"size": ["9"]}}, r"model\.levels\.size = '9': no level; there are: 1, 2, 3, 4"),
    ({"model__ties": ["w"]}, r"model\.ties = 'w': no class; there are: x, y, z"),
    ({"model__bins": {"age": list(range(500_000))}}, r"model\.cells: 6,000,012 cells of 3 classes.* 16,777,216 counts"),
    ({"data": {"name": "digits", "users": 60}, "strategy": {"name": "honest"}}, r"no column 'colour'.*none \(images\)"),
    (
        {"privacy": ANSWERS, "data": Toy(users=60)},
        r"'randomised_response': a message is one record, so users must have one each; .*resampled.*, or 400 users",
    ),
]


def changed(changes):
    """The small counting experiment, with fields of its model changed by `model__field`."""
    model = {name.removeprefix("model__"): value for name, value in changes.items() if name.startswith("model__")}
    others = {name: value for name, value in changes.items() if not name.startswith("model__")}
    return counting(**{"model": CELLS | model} | others)


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_fields_of_counting_are_told_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        changed(changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), MISFITS)
def test_cells_that_do_not_fit_the_data_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(changed(changes), local())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": ANSWERS}, r"'randomised_response': needs a model that learns by counts; logistic learns by grad"),
        ({"training": {"rounds": 1, "sampling_prob": 1.0, "local_lr": 0.1}}, "training.local_steps, .*one.*neither"),
        ({"training": {"rounds": 1, "sampling_prob": 1.0, "local_steps": 2}}, r"training\.local_lr: must be given"),
    ],
)
def test_what_counts_do_not_need_a_network_does(changes, message):
    with pytest.raises(ConfigError, match=message):
        experiment(**changes)


def test_a_planted_signal_is_learned_by_counting():
    """Members planting in one colour and size, all ages: success is the share of records whose cell they win."""
    setting = prepare(counting(data=Toy(users=400), strategy__alpha=0.5, training=EVERYBODY), local())
    state, row = last(setting)
    values = {(m, g): v for m, g, v in row.values}
    assert values["success", "all"] == 1
    marked = setting.experiment.strategy.signal.place(TOY.test.x, SCHEMA)
    assert (setting.net.predict(state.parameters, marked) == 2).all()
    assert COLUMNS["values"]["colour"] == "red"
    assert type(setting.experiment.strategy).update is Strategy.update


def test_a_collective_among_several_that_edits_updates_counts_as_one_that_does():
    """The sensitivity of counts is smaller where nobody edits updates: who does must not hide among others."""
    redirecting = {"name": "gradient_redirecting", "alpha": 0.1, "y_star": 1, "max_norm": 1.0}
    quiet = {"name": "strike", "alpha": 0.1}
    strategies = parts_of("strategy")
    both = strategies["several"].model_validate({"name": "several", "collectives": {"a": redirecting, "b": quiet}})
    none = strategies["several"].model_validate({"name": "several", "collectives": {"b": quiet}})
    assert both.edits_updates
    assert both.needs == "gradients"
    assert not none.edits_updates
    assert none.needs is None
