"""Adaptive clipping, correlated noise, noise in shares and forecasts do what they are charged for."""

import dataclasses
import itertools
import json
import math
from typing import Literal

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from fedacdp.aggregation.base import Aggregation, Combined
from fedacdp.checkpoint import Checkpoint
from fedacdp.cli import app
from fedacdp.config import ConfigError, parts_of
from fedacdp.keys import Key
from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Plan
from fedacdp.results import table
from fedacdp.rounds import compute_here, run
from fedacdp.setting import prepare
from fedacdp.sharing import joined
from fedacdp.sharing import shares as shared_out
from fedacdp.tasks import pack_task, perform, read_partials
from tests.conftest import experiment, last_bytes, local

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
    privacy = {"name": "central_adaptive", "clip_lr": 3.0, "noise_multiplier": 2.0}
    setting = prepare(small(privacy, training=training), local())
    multiplier = setting.mechanism.updates_multiplier
    assert multiplier == pytest.approx(2 / math.sqrt(1 - (2 / 3) ** 2))  # count_noise = 30 / 20
    before, clips, steps = setting.net.initial(setting.key.fold("initial")).astype(float), [], []
    for state, row in run(setting, local(), compute_here):
        clips.append({m: v for m, _, v in row.values}["clip_norm"])
        steps.append((state.parameters - before) * setting.plan.cohort / multiplier)
        before = state.parameters.astype(float)
    assert min(a / b for a, b in itertools.pairwise(clips)) > 2  # every norm is 0: C falls fast
    assert all(within(step, clip) for step, clip in zip(steps, clips, strict=True))
    assert not any(within(step, clip) for step, clip in zip(steps, clips[1:], strict=False))
    assert not any(within(step, 2 / multiplier * clip) for step, clip in zip(steps, clips, strict=True))


def test_the_noise_on_the_count_has_the_size_that_is_charged():
    found = mechanism("central_adaptive", count_noise=3.0)
    draws = [found.sum_noise(9, 1, round, np.ones(1), Key(1)).on_count for round in range(2000)]
    assert within(draws, 3.0)
    assert not within(draws, 3.0 / 1.2)


# Correlated noise


def strategy_matrix(factor, rounds, bands):
    """C, a column for each round, and A C^-1, which makes independent noise that of prefix sums, from scratch."""
    prefix = np.tril(np.ones((rounds, rounds)))
    if factor == "banded":
        column = np.array([math.comb(2 * lag, lag) / 4**lag for lag in range(bands)] + [0.0] * rounds)[:rounds]
        c = np.array([[column[i - j] if i >= j else 0.0 for j in range(rounds)] for i in range(rounds)])
        c /= np.linalg.norm(column[:bands])
        return c, prefix @ np.linalg.inv(c)
    blocks = [
        (first, first + 2**h) for h in range(rounds.bit_length()) for first in range(0, rounds - 2**h + 1, 2 ** (h + 1))
    ]
    c = np.array([[float(first <= round < last) for round in range(rounds)] for first, last in blocks])
    b = np.zeros((rounds, len(blocks)))
    for t in range(1, rounds + 1):
        reached = 0
        while reached < t:  # the largest block that starts where the last one ended
            first, last = max(block for block in blocks if block[0] == reached and block[1] <= t)
            b[t - 1, blocks.index((first, last))], reached = 1.0, last
    np.testing.assert_array_equal(b @ c, prefix)
    return c, b


MATRICES = [("tree", 1), ("banded", 1), ("banded", 4)]


@pytest.mark.parametrize(("factor", "bands"), MATRICES)
def test_the_noise_on_prefix_sums_has_the_covariance_of_the_factorisation(factor, bands):
    rounds, size = 13, 20_000
    found = mechanism("central_matrix", factor=factor, separation=bands, noise_multiplier=1.3, clip_norm=0.7)
    memory, steps = found.first_memory(PLAN, size), []
    for round in range(1, rounds + 1):
        noise = found.sum_noise(9, size, round, memory, Key(3))
        memory = found.next_memory(memory, np.zeros(9), noise, PLAN, round, Key(4))
        steps.append(noise.vector / (1.3 * 0.7))
    _, b = strategy_matrix(factor, rounds, bands)

    def agrees(rows):
        sums, expected = np.cumsum(rows, axis=0), b @ b.T
        variance = np.diag(expected)
        spread = np.sqrt((np.outer(variance, variance) + expected**2) / size)
        return (np.abs(sums @ sums.T / size - expected) < 5.8 * spread).all()  # 1e-6 over 91 entries

    assert agrees(steps)
    independent = np.array([Key(8).fold(row).rng().normal(0.0, np.std(step), size) for row, step in enumerate(steps)])
    assert agrees(independent) == (bands == 1 and factor == "banded")
    swapped = [*steps[:4], steps[5], steps[4], *steps[6:]]
    assert agrees(swapped) == (bands == 1 and factor == "banded")


@pytest.mark.parametrize(("rounds", "times", "separation"), [(9, 3, 1), (12, 2, 1), (16, 8, 2), (13, 4, 3), (16, 4, 4)])
@pytest.mark.parametrize("factor", ["tree", "banded"])
def test_no_user_moves_more_than_the_sensitivity_however_it_takes_part(factor, rounds, times, separation):
    """Against every set of rounds that the sampler allows; updates all alike move the most, as C is positive."""
    plan = Plan(1000, 1.0, rounds, 1, 1.0, 1.0)
    found = mechanism("central_matrix", plan, factor=factor, separation=separation, max_messages=times)
    c, _ = strategy_matrix(factor, rounds, separation)
    worst = 0.0
    for chosen in itertools.combinations(range(rounds), found.message_limit(plan)):
        if all(b - a >= separation for a, b in itertools.pairwise(chosen)):
            worst = max(worst, float(np.linalg.norm(c[:, list(chosen)].sum(axis=1))))
    bound = found.sensitivity(plan)
    assert worst <= bound * (1 + 1e-9)
    exact = factor == "banded" or separation in (1, 2, 4)
    assert bound == pytest.approx(worst, rel=1e-9 if exact else 0.25)
    assert found.releases(plan).mu == pytest.approx(bound)


@pytest.mark.parametrize(("z", "rounds", "golden"), [(1.0, 16, 12.3017), (4.0, 100, 2.9585)])
def test_one_pass_over_a_tree_costs_no_more_than_the_accountant_of_trees_says(z, rounds, golden):
    from dp_accounting import NeighboringRelation, SingleEpochTreeAggregationDpEvent
    from dp_accounting.rdp import RdpAccountant

    plan = Plan(1000, 0.1, rounds, 1, 1.0, 1.0)
    found = mechanism("central_matrix", plan, noise_multiplier=z, max_messages=1)
    assert found.sensitivity(plan) == pytest.approx(math.sqrt(math.ceil(math.log2(rounds + 1))))
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    renyi = accountant.compose(SingleEpochTreeAggregationDpEvent(z, rounds)).get_epsilon(1e-5)
    assert renyi == pytest.approx(golden, rel=1e-4)
    exact = found.guarantee(plan)
    assert 0.85 * renyi < exact.epsilon <= renyi
    assert exact.adjacency == "replace_special"


def test_bands_leave_less_noise_on_the_model_than_independent_noise_at_the_same_epsilon():
    plan, spreads = Plan(1000, 0.01, 64, 1, 1.0, 1.0), {}
    for bands in (1, 8):
        found = mechanism("central_matrix", plan, factor="banded", separation=8, bands=bands, epsilon=2.0)
        _, b = strategy_matrix("banded", 64, bands)
        spreads[bands] = found.multiplier * math.sqrt((b**2).sum() / 64)
    assert spreads[8] < 0.75 * spreads[1]


@pytest.mark.parametrize("participation", ["minimum", "fixed"])
def test_the_separation_and_the_number_of_times_are_enforced(participation):
    privacy = {"name": "central_matrix", "separation": 3, "participation": participation, "max_messages": 2}
    training = {"rounds": 14, "sampling_prob": 0.3, "local_steps": 1, "local_lr": 0.0, "evaluate_every": 14}
    setting = prepare(small(privacy, training=training), local())
    last, times, gaps, sizes = np.zeros(60, int), np.zeros(60, int), [], []
    for state, row in run(setting, local(), compute_here):
        came = state.messages > times
        gaps += list(row.round - last[came & (last > 0)])
        last[came], times = row.round, state.messages.copy()
        sizes.append(int(came.sum()))
        if participation == "fixed":
            assert (np.flatnonzero(came) % 3 == (row.round - 1) % 3).all()
    assert times.max() == 2
    assert min(gaps) == 3
    assert sizes[0] > 5
    assert gaps == [gap for gap in gaps if participation == "minimum" or gap % 3 == 0]


REMEMBERING = [
    {"name": "central_adaptive", "clip_lr": 2.0},
    {"name": "central_matrix", "separation": 2},
    {"name": "central_matrix", "factor": "banded", "separation": 3},
    {"name": "central_matrix", "factor": "banded", "separation": 2, "participation": "fixed"},
]


@pytest.mark.parametrize("privacy", REMEMBERING)
def test_what_a_mechanism_remembers_survives_an_interruption(privacy, tmp_path):
    training = {"rounds": 6, "sampling_prob": 0.4, "local_steps": 1, "local_lr": 0.1}
    setting = prepare(small(privacy, training=training), local())
    whole = list(run(setting, local(), compute_here))
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(whole[2][0], [row for _, row in whole[:3]])
    kept, _ = checkpoint.load()
    *_, (resumed, _) = run(setting, local(), compute_here, kept)
    for name in ("parameters", "memory", "messages", "last"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole[-1][0], name))
    forgetting = dataclasses.replace(kept, memory=whole[0][0].memory, last=whole[0][0].last)
    *_, (other, _) = run(setting, local(), compute_here, forgetting)
    assert not np.array_equal(other.parameters, resumed.parameters)


@pytest.mark.parametrize("privacy", [*REMEMBERING, {"name": "distributed", "cohort": 9, "colluders": 2}])
def test_chunks_that_are_done_elsewhere_give_the_same_bits(privacy):
    """What a node needs to know of a mechanism, such as the clip norm of the round, is in what it is sent."""
    training = {"rounds": 4, "sampling_prob": 0.4, "local_steps": 1, "local_lr": 0.1}
    setting = prepare(small(privacy, training=training), local(8))

    def elsewhere(now, parameters, round, chunks):
        parts = shared_out(pack_task(now, local(8), parameters, round, chunks), 2) if chunks else []
        return read_partials(joined([perform(part) for part in parts]), len(chunks)) if chunks else []

    assert last_bytes(setting, local(8), elsewhere) == last_bytes(setting, local(8), compute_here)


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"bands": 2, "separation": 2}, 'bands = 2: a tree has none; leave it out, or take factor = "banded"'),
        ({"factor": "banded", "bands": 3, "separation": 2}, "bands = 3: must not exceed separation = 2"),
        ({"participation": "fixed", "separation": 3}, "separation = 3: .* must be at most 2, or participation"),
        ({"separation": 0}, r"privacy\.separation = 0"),
    ],
)
def test_correlated_noise_that_cannot_be_is_refused(privacy, message):
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(small({"name": "central_matrix", **privacy}), local())
    assert "\n" not in str(caught.value)


# Noise in shares


def shares(privacy=None, **changes):
    training = {"rounds": 8, "sampling_prob": 0.5, "local_steps": 1, "local_lr": 0.0}
    privacy = {"name": "distributed", "noise_multiplier": 1.7, "max_messages": 8, **(privacy or {})}
    return prepare(small(privacy, training=training, **changes), local())


def opened(setting):
    """The noise on the sum of each round, in units of the accounted one, beside the messages that carry any."""
    before, found, sent = setting.net.initial(setting.key.fold("initial")).astype(float), [], 0
    for state, _ in run(setting, local(), compute_here):
        step = (state.parameters - before) * setting.plan.cohort / setting.mechanism.sigma
        found.append((step, state.sent - sent))
        before, sent = state.parameters.astype(float), state.sent
    return found


def test_the_sum_carries_the_accounted_noise_when_as_many_as_are_assumed_drop_out_or_collude():
    assumed = {"cohort": 20, "dropouts": 6, "colluders": 4}
    setting = shares(assumed, strategy__alpha=0.0)
    for step, count in opened(setting):
        assert count >= 14
        assert within(step, math.sqrt(count / 10))  # every message that came carries sigma^2 / (20 - 6 - 4)
        assert not within(step, math.sqrt(count / 20))  # shares that forget who may be missing
    share = setting.mechanism.share
    assert share * math.sqrt(20 - 6 - 4) == pytest.approx(setting.mechanism.sigma)
    assert setting.mechanism.releases(setting.plan) == Gaussians(1.7, 1.0, 8)


def test_members_who_leave_out_their_noise_thin_that_of_all_and_the_guarantee_says_so():
    deviating = {"name": "planting", "alpha": 0.4, "y_star": 8, "signal": "patch", "protocol": "skips_noise"}
    setting = shares({"cohort": 20, "colluders": 4}, strategy=deviating)
    honest = [count for _, count in opened(setting)]
    assert max(honest) < 30
    assert all(within(step, math.sqrt(count / 16)) for step, count in opened(setting))
    [warning] = setting.guarantee.warnings
    assert "more than the 4 colluders that are assumed: nothing is guaranteed" in warning
    few = shares({"cohort": 20, "colluders": 4}, strategy={**deviating, "alpha": 0.1}).guarantee  # 6 members
    assert "up to 6 messages" in few.warnings[0]
    thinned = accounting.epsilon(Gaussians(1.7 * math.sqrt(14 / 16), 1.0, 8), 1e-5)
    assert few.warnings[0].endswith(f"epsilon may be {thinned:.3g} instead")
    assert thinned > few.epsilon
    covered = shares({"cohort": 20, "colluders": 6}, strategy={**deviating, "alpha": 0.1})
    assert covered.guarantee.warnings == ()
    compliant = shares({"cohort": 20}, strategy={**deviating, "protocol": "compliant"})
    assert compliant.guarantee.warnings == ()


def test_a_round_of_too_few_messages_opens_nothing_and_is_charged():
    setting = shares({"cohort": 30}, strategy__alpha=0.0)
    before, given_up = setting.net.initial(setting.key.fold("initial")), []
    for state, row in run(setting, local(), compute_here):
        found = {metric: value for metric, group, value in row.values if group == "all"}
        given_up.append(found.get("aborted", 0.0) == 1.0)
        assert given_up[-1] == (found["messages"] < 30) == np.array_equal(state.parameters, before)
        before = state.parameters
    assert 0 < sum(given_up) < 8
    assert state.draws == setting.mechanism.draws(setting.plan, state.sent)
    assert state.messages.sum() == state.sent
    assert "given up with probability 0.4" in setting.guarantee.warnings[0]
    assert not shares({"cohort": 14}).guarantee.warnings


def test_those_who_strike_count_as_missing():
    strike = {"name": "strike", "alpha": 0.5}
    assert any(np.array_equal(step, 0 * step) for step, _ in opened(shares({"cohort": 20}, strategy=strike)))
    enough = opened(shares({"cohort": 20, "dropouts": 14}, strategy=strike))
    assert not any(np.array_equal(step, 0 * step) for step, _ in enough)
    assert all(within(step, math.sqrt(count / 6)) for step, count in enough)


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"colluders": 70}, r"privacy\.colluders = 70: must not exceed the number of users, 60"),
        ({"cohort": 61}, r"privacy\.cohort = 61: must not exceed the number of users, 60"),
        (
            {"cohort": 9, "dropouts": 4, "colluders": 5},
            "dropouts = 4, colluders = 5: .* fewer than cohort = 9",
        ),
        ({"colluders": -1}, r"privacy\.colluders = -1"),
    ],
)
def test_more_missing_or_colluding_users_than_there_are_is_refused(privacy, message):
    with pytest.raises(ConfigError, match=message) as caught:
        shares(privacy)
    assert "\n" not in str(caught.value)


def test_the_default_cohort_is_there_in_999_of_1000_last_rounds():
    plan = Plan(5000, 0.1, 60, 1, 1.0, 1.0)
    found = mechanism("distributed", plan)
    limit, sizes = found.message_limit(plan), []
    for run_ in range(300):
        rng = Key(2).fold(run_).rng()
        sent = np.minimum(rng.binomial(plan.rounds - 1, plan.sampling_prob, plan.users), limit)
        sizes.append(int(((rng.random(plan.users) < plan.sampling_prob) & (sent < limit)).sum()))
    assert sum(size < found.cohort for size in sizes) <= 6  # binomial(300, 0.001) above that: 1e-7
    assert found.cohort > 0.75 * np.mean(sizes)


class Middle(Aggregation):
    """A rule that needs single messages."""

    name: Literal["middle"] = "middle"

    def combine(self, messages, ids, cohort, memory):
        return Combined(np.median(messages, axis=0) * cohort, np.ones(len(ids)), memory)


@pytest.mark.parametrize("name", ["central_adaptive", "central_matrix", "distributed"])
def test_noise_on_sums_is_refused_where_single_messages_are_used(name):
    with pytest.raises(ConfigError, match=rf"'middle': {name} adds its noise to the sum.*take local_update$"):
        small({"name": name}, aggregation=Middle())


@pytest.mark.parametrize("name", ["central_adaptive", "central_matrix"])
def test_members_cannot_leave_out_noise_that_they_do_not_add(name):
    with pytest.raises(ConfigError, match=rf"strategy\.protocol = 'skips_noise': with {name} users add no noise"):
        small({"name": name}, strategy__protocol="skips_noise")


# Forecasts of larger cohorts


def test_a_forecast_has_the_noise_of_the_larger_cohort_on_the_mean_and_its_accounting():
    training = {"rounds": 100, "sampling_prob": 0.5, "local_steps": 1, "local_lr": 0.0, "evaluate_every": 100}
    privacy = {"name": "central", "noise_multiplier": 1.0, "noise_cohort": {"cohort": 100, "users": 1000}}
    setting = prepare(small(privacy, training=training), local())
    assert setting.plan.cohort == 30
    before, steps = setting.net.initial(setting.key.fold("initial")).astype(float), []
    for state, _ in run(setting, local(), compute_here):
        steps.append(state.parameters - before)
        before = state.parameters.astype(float)
    assert within(steps, 0.5 / 100)
    assert not within(steps, 0.5 / 30)
    promise = setting.guarantee
    assert promise.epsilon == pytest.approx(7.046603, abs=1e-3)  # z = 1, q = 0.1, T = 100
    assert promise.sentence.startswith("A forecast of a larger run; this one has no such guarantee. epsilon = 7.05 at")
    assert "q = 0.1 of N = 1000" in promise.sentence
    assert (
        "cohorts of 100 of 1000 users are simulated by 30 of 60, and one of these stands for 3.333"
        in (promise.warnings[0])
    )
    at_target = small({**privacy, "noise_multiplier": None, "epsilon": 4.0}, training=training)
    assert prepare(at_target, local()).mechanism.multiplier == pytest.approx(1.3860, rel=5e-3)


def test_a_forecast_is_called_one_in_the_table_the_closing_lines_the_manifest_and_the_page(tmp_path):
    study = tmp_path / "larger.toml"
    cohort = "noise_cohort = { cohort = 500, users = 9000 }"
    study.write_text(
        f"""question = "How would many do?"
[base]
data = {{ name = "digits", users = 60 }}
model = {{ name = "logistic" }}
strategy = {{ name = "planting", y_star = 8, signal = "patch" }}
privacy = {{ name = "central", noise_multiplier = 1.0, delta = 1e-5, clip_norm = 0.5, {cohort} }}
training = {{ rounds = 2, sampling_prob = 0.5, local_steps = 1, local_lr = 0.1 }}
[grid]
"strategy.alpha" = [0.0, 0.1]
"""
    )
    said = CliRunner().invoke(app, ["run", str(study), "--engine", "local", "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert "warning: a forecast, not a private run" in " ".join(said.output.split())
    frame = table(tmp_path / "out")
    assert frame["warning"].str.startswith("a forecast, not a private run").all()
    ceiling = frame[frame["metric"] == "success_ceiling"]
    assert ceiling["value"].isna().all()
    assert ceiling["note"].str.contains("larger cohort|no collective").all()
    [manifest, *_] = (tmp_path / "out").rglob("manifest.json")
    assert json.loads(manifest.read_text())["guarantee"]["forecast"] is True
    page = next((tmp_path / "out").rglob("report.html")).read_text()
    assert "a forecast, not a private run" in page
    assert "A forecast of a larger run" in page
    assert "central privacy (forecast)" in page.lower()


@pytest.mark.parametrize(
    ("cohort", "message"),
    [
        ({"cohort": 20, "users": 1000}, r"noise_cohort\.cohort = 20: must not be below the cohort .* simulated, 30"),
        ({"cohort": 200, "users": 100}, r"privacy\.noise_cohort\.cohort = 200: must not exceed users = 100"),
        ({"cohort": 200}, r"privacy\.noise_cohort\.users: must be given"),
    ],
)
def test_a_forecast_of_less_than_is_simulated_is_refused(cohort, message):
    with pytest.raises(ConfigError, match=message):
        prepare(small({"name": "central", "noise_cohort": cohort}), local())
