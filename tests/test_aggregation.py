"""Robust servers do what their papers and other libraries do, and what they leave of each message is told."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.server.strategy import aggregate as flower

from fedacdp import memory
from fedacdp.aggregation import stacked
from fedacdp.aggregation.base import Aggregation
from fedacdp.aggregation.krum import closest
from fedacdp.config import ConfigError, Execution, parts_of
from fedacdp.results import settings
from fedacdp.rounds import compute_here, run
from fedacdp.setting import Setting, prepare
from fedacdp.tasks import pack_task, perform, read_partials
from tests.conftest import MECHANISMS, counting, experiment, last_bytes, local

FIELDS: dict[str, dict[str, Any]] = {"norm_bounding": {"bound": 0.3}, "centred_clipping": {"radius": 0.3}}
ROBUST = {
    name: part.model_validate({"name": name, **FIELDS.get(name, {})})
    for name, part in parts_of("aggregation").items()
    if part.needs_messages
}
SUMS = {"norm_bounding", "foolsgold"}  # rules that weigh messages; the others find a centre
SHAPES = [(7, 5), (12, 40), (31, 9)]


def rule(name: str, **fields: Any) -> Any:
    return parts_of("aggregation")[name].model_validate({"name": name, **FIELDS.get(name, {}), **fields})


def messages(count: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) + rng.standard_normal((count, size))).astype(np.float32)


def combined(part: Aggregation, sent: np.ndarray, cohort: float = 1.0, before: np.ndarray | None = None) -> Any:
    start = part.first_memory(len(sent), sent.shape[1]) if before is None else before
    return part.combine(sent, np.arange(len(sent)), cohort, start)


# What other libraries say


def theirs(function: Any, sent: np.ndarray, *more: Any) -> np.ndarray:
    """A rule of Flower, of models whose one layer is a message."""
    [found] = function([([message], 1) for message in sent.astype(np.float64)], *more)
    return np.asarray(found)


def flowers(name: str, sent: np.ndarray, bad: int) -> np.ndarray:
    kept = {"krum": 0, "multi_krum": len(sent) - bad}
    if name == "median":
        return theirs(flower.aggregate_median, sent)
    if name == "trimmed_mean":
        return theirs(flower.aggregate_trimmed_avg, sent, bad / len(sent))
    return theirs(flower.aggregate_krum, sent, bad, kept[name])


def ours(name: str, sent: np.ndarray, bad: int) -> np.ndarray:
    share = {"median": {}, "trimmed_mean": {"trim": bad / len(sent)}}.get(name, {"byzantine": bad / len(sent)})
    return combined(rule(name, **share), sent).total


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_rules_give_what_flowers_give(name, shape):
    for seed, bad in itertools.product(range(10), range((shape[0] - 3) // 2 + 1)):
        sent = messages(*shape, seed)
        np.testing.assert_allclose(ours(name, sent, bad), flowers(name, sent, bad), atol=1e-12)


FAULTS = {  # what is planted, and in which rule it must be seen
    "one more is cut at each end": ("trimmed_mean", lambda sent, cut: stacked.trimmed(sent, cut + 1)),
    "one end is not cut": ("trimmed_mean", lambda sent, cut: (np.sort(sent, axis=0)[: len(sent) - cut].mean(0), None)),
    "an upper median": ("median", lambda sent, cut: (np.sort(sent, axis=0)[len(sent) // 2], None)),
    "distances are not squared": ("krum", lambda sent: np.sqrt(stacked.squared_distances(sent))),
    "a neighbour too few": ("multi_krum", lambda sent, bad: closest(sent, bad + 1)),
    "the farthest are kept": ("multi_krum", lambda sent, bad: closest(sent, bad)[::-1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_planted_in_rules_are_seen_beside_flowers(fault, monkeypatch):
    name, wrong = FAULTS[fault]
    patched = {"krum": "squared_distances", "multi_krum": "closest"}.get(name, "trimmed")
    monkeypatch.setattr(f"fedacdp.aggregation.{name}.{patched}", wrong)
    seen = [
        not np.allclose(ours(name, messages(12, 40, seed), 3), flowers(name, messages(12, 40, seed), 3), atol=1e-12)
        for seed in range(40)
    ]
    assert any(seen)


BYZFL: dict[str, tuple[Any, list[list[float]]]] = {  # outputs of byzfl 0.0.11 in numpy on `ELEVEN`, call after call
    "median": (rule("median"), [[0.841, -0.279, 0.632, 0.699]]),
    "TrMean, f = 2": (
        rule("trimmed_mean", trim=2 / 11),
        [[1.0887142857142857, -0.5495714285714286, 0.5114285714285715, 1.009]],
    ),
    "GeometricMedian, nu = 1e-6, T = 50": (
        rule("geometric_median", iterations=50),
        [[0.7312742561834384, -0.1635766525966204, 0.50901857224962, 0.7085398276251083]],
    ),
    "GeometricMedian, nu = 0.1, T = 3": (
        rule("geometric_median", smoothing=0.1, iterations=3),
        [[0.6217226709553062, -0.15294544797022502, 0.390422876754102, 0.5968863655615377]],
    ),
    "Krum, f = 3": (rule("krum", byzantine=3 / 11), [[0.841, 0.746, -0.083, 0.133]]),
    "MultiKrum, f = 3": (
        rule("multi_krum", byzantine=3 / 11),
        [[0.10074999999999998, 0.04537500000000001, 0.030374999999999985, 0.050624999999999976]],
    ),
    "CenteredClipping, L = 1, tau = 1.5": (
        rule("centred_clipping", radius=1.5),
        [
            [0.3069297662877145, -0.12065803682824097, 0.15973990788741915, 0.30814196326826365],
            [0.4239587316224549, -0.17074474055277614, 0.2349213847669847, 0.4319575917913057],
        ],
    ),
    "CenteredClipping, L = 3, tau = 1.5": (
        rule("centred_clipping", radius=1.5, iterations=3),
        [
            [0.48640693156935927, -0.18779593451966023, 0.2722174273356218, 0.4921796137953605],
            [0.5454777280802254, -0.20184136548794684, 0.307640856878465, 0.5481062703315482],
        ],
    ),
}
ELEVEN = np.array(
    [
        [0.841, 0.746, -0.083, 0.133],
        [-1.0, -0.279, -0.458, -0.638],
        [0.855, -0.272, 0.859, 0.949],
        [-0.45, 0.74, -1.0, -0.972],
        [-0.092, -0.984, 0.837, 0.699],
        [0.606, 0.929, -0.419, -0.214],
        [-0.935, -0.591, -0.125, -0.336],
        [0.981, 0.074, 0.632, 0.784],
        [5.272, -2.535, 3.053, 6.006],
        [5.795, -4.324, 4.514, 7.442],
        [4.88, -3.416, 1.879, 5.048],
    ],
    np.float32,
)


@pytest.mark.parametrize("name", BYZFL)
def test_rules_give_what_byzfl_gives(name):
    """Its Krum takes one neighbour more than the paper's, U - f - 1, which changes no choice here."""
    part, expected = BYZFL[name]
    before = part.first_memory(11, 4)
    for one in expected:
        total, _, before = combined(part, ELEVEN, before=before)
        np.testing.assert_allclose(total, one, atol=2e-7)


# What the papers say, in plain loops


def test_the_geometric_median_has_the_smallest_sum_of_distances():
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        sent = messages(*shape).astype(np.float64)
        centre = combined(rule("geometric_median", iterations=500), sent.astype(np.float32)).total

        def far(point, sent=sent):
            return sum(np.linalg.norm(message - point) for message in sent)

        assert all(far(centre) < far(centre + 1e-3 * rng.standard_normal(shape[1])) for _ in range(50))
        assert far(centre) < far(sent.mean(axis=0))


def test_norm_bounding_scales_each_long_message_to_the_bound():
    sent = messages(9, 6)
    sent[0] *= 1e-3
    norms = [np.linalg.norm(message.astype(np.float64)) for message in sent]
    assert norms[0] < 0.5 < min(norms[1:])
    expected = [1.0] + [0.5 / norm for norm in norms[1:]]
    found = combined(rule("norm_bounding", bound=0.5), sent)
    np.testing.assert_allclose(found.weights, expected)
    np.testing.assert_allclose(found.total, sum(w * m.astype(np.float64) for w, m in zip(expected, sent, strict=True)))


def foolsgold(histories: np.ndarray) -> list[float]:
    """Algorithm 1 of Fung, Yoon and Beschastnikh, user after user."""
    users = range(len(histories))

    def cosine(i: int, j: int) -> float:
        a, b = histories[i], histories[j]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    alike = [[cosine(i, j) if i != j else 0.0 for j in users] for i in users]
    most = [max(row) for row in alike]
    for i in users:
        for j in users:
            if most[j] > most[i]:
                alike[i][j] *= most[i] / most[j]
    weights = [min(1.0, max(0.0, 1 - max(row))) for row in alike]
    weights = [min(0.99, weight / max(weights)) for weight in weights]
    return [0.0 if w == 0 else min(1.0, max(0.0, float(np.log(w / (1 - w))) + 0.5)) for w in weights]


def test_foolsgold_weighs_users_by_the_sum_of_all_they_sent():
    part, users, size = rule("foolsgold"), 8, 6
    history, before = np.zeros((users, size)), part.first_memory(users, size)
    for round in range(4):
        ids = np.sort(np.random.default_rng(round).choice(users, 5, replace=False))
        sent = messages(5, size, seed=round) - np.float32(0.5)
        history[ids] += sent
        total, weights, before = part.combine(sent, ids, 5.0, before)
        np.testing.assert_allclose(weights, foolsgold(history[ids]), atol=1e-12)
        np.testing.assert_allclose(total, weights @ sent.astype(np.float64), atol=1e-12)
        now = rule("foolsgold", over="round").combine(sent, ids, 5.0, np.zeros(0))
        np.testing.assert_allclose(now.weights, foolsgold(sent.astype(np.float64)), atol=1e-12)
        assert round == 0 or not np.allclose(now.weights, weights)
    np.testing.assert_allclose(before.reshape(users, size), history)


def test_foolsgold_lets_sybils_weigh_nothing_and_nobody_if_all_are_alike():
    rng = np.random.default_rng(3)
    sent = rng.standard_normal((10, 200)).astype(np.float32)
    sent[6:] = sent[6] + 1e-3 * sent[6:]
    found = combined(rule("foolsgold"), sent)
    assert (found.weights[6:] == 0).all()
    assert (found.weights[:6] == 1).all()
    same = combined(rule("foolsgold"), np.ones((5, 3), np.float32))
    assert not same.weights.any()
    assert not same.total.any()


def test_flame_keeps_the_majority_of_directions_and_clips_to_the_median_norm():
    rng = np.random.default_rng(4)
    sent = (rng.standard_normal(50) + 0.2 * rng.standard_normal((15, 50))).astype(np.float32)
    sent[0] *= 30  # too long in the right direction
    sent[10:] = 3 - sent[10:] * 2  # another direction
    found = combined(rule("flame"), sent, cohort=15.0)
    norms = np.linalg.norm(sent.astype(np.float64), axis=1)
    assert found.weights[0] == pytest.approx(np.median(norms) / norms[0])
    assert (found.weights[10:] == 0).all()
    assert (found.weights[1:10] > 0).sum() >= 7
    kept = found.weights > 0
    mean = sum(w * m for w, m in zip(found.weights[kept], sent[kept].astype(np.float64), strict=True)) / kept.sum()
    np.testing.assert_allclose(found.total, 15 * mean, atol=1e-9)
    halves = np.repeat(rng.standard_normal((2, 50)), 6, axis=0) + 0.01 * rng.standard_normal((12, 50))
    assert combined(rule("flame"), halves.astype(np.float32)).weights.all()  # no majority: all are one cluster


def test_centred_clipping_remembers_its_centre_and_tells_each_coefficient():
    part, sent = rule("centred_clipping", radius=1.0, iterations=3), messages(8, 5)
    before = np.array([0.3, -0.1, 0.0, 0.5, 0.2])
    found = combined(part, sent, cohort=20.0, before=before)
    centre = before
    for _ in range(3):
        moves = [m - centre for m in sent.astype(np.float64)]
        centre = centre + sum(move * min(1.0, 1.0 / np.linalg.norm(move)) for move in moves) / 8
    np.testing.assert_allclose(found.memory, centre)
    np.testing.assert_allclose(found.total, 20 * centre)
    shares = found.weights / 8
    np.testing.assert_allclose((1 - shares.sum()) * before + shares @ sent.astype(np.float64), centre)


# What holds for every rule


@pytest.mark.parametrize("name", ROBUST)
def test_the_order_of_messages_does_not_matter(name):
    sent, order = messages(14, 30), np.random.default_rng(2).permutation(14)
    first = combined(ROBUST[name], sent)
    start = ROBUST[name].first_memory(14, 30)
    again = ROBUST[name].combine(sent[order], order, 1.0, start)
    np.testing.assert_allclose(again.total, first.total, atol=1e-12)
    np.testing.assert_allclose(again.weights, first.weights[order], atol=1e-12)
    np.testing.assert_allclose(again.memory, first.memory, atol=1e-12)


@pytest.mark.parametrize("name", ROBUST)
def test_how_many_columns_are_looked_at_at_once_does_not_matter(name, monkeypatch):
    sent = messages(14, 30)
    whole = combined(ROBUST[name], sent)
    monkeypatch.setattr(stacked, "BLOCK", 14 * 7)
    for one, other in zip(whole, combined(ROBUST[name], sent), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("name", ROBUST)
def test_messages_that_are_all_the_same_are_what_the_server_does(name):
    """A centre times the expected cohort, however many came; a weighted sum of what came."""
    message = messages(1, 6)
    part = rule("foolsgold", over="round") if name == "foolsgold" else ROBUST[name]
    same = np.repeat(0.01 * message, 9, axis=0)  # shorter than any bound
    total = combined(part, same, cohort=20.0).total
    times = {"norm_bounding": 9.0, "foolsgold": 0.0}.get(name, 20.0)
    np.testing.assert_allclose(total, times * same[0].astype(np.float64), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ROBUST)
def test_zeros_which_are_what_is_left_of_infinite_messages_break_nothing(name):
    sent = messages(9, 6)
    sent[[2, 5]] = 0
    for one in (sent, np.zeros_like(sent)):
        found = combined(ROBUST[name], one)
        assert np.isfinite(found.total).all()
        assert np.isfinite(found.weights).all()
        assert (found.weights >= 0).all()
    assert not found.total.any()


@pytest.mark.parametrize("name", ROBUST)
def test_huge_messages_overflow_nothing(name):
    found = combined(ROBUST[name], messages(9, 6) * np.float32(1e36))
    assert np.isfinite(found.total).all()
    assert np.isfinite(found.weights).all()


@pytest.mark.parametrize("name", ROBUST)
def test_rules_take_no_more_memory_than_is_foreseen(name):
    """Nothing of the size U x U x P, which would be 8 GiB here, and no second copy of the messages in float64."""
    count, size = 200, 25_000
    sent, part = messages(count, size), ROBUST[name]
    start = part.first_memory(count, size)
    combined(part, messages(9, 6))  # whatever is loaded at the first call
    tracemalloc.start()
    combined(part, sent, before=start)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < part.held_bytes(count, count, size) + memory._BLOCKS


def test_equal_numbers_share_equally_in_what_is_kept():
    sent = np.array([[0, 1, 5], [0, 2, 5], [0, 3, 5], [0, 4, 7]], np.float32)
    for part in (rule("median"), rule("trimmed_mean", trim=0.25)):  # two of the four are kept
        found = combined(part, sent)
        np.testing.assert_allclose(found.total, [0, 2.5, 5])
        by_hand = [2 / 4 + 0 + 2 / 3, 2 / 4 + 1 + 2 / 3, 2 / 4 + 1 + 2 / 3, 2 / 4 + 0 + 0]
        np.testing.assert_allclose(found.weights, np.array(by_hand) / 3)


def test_the_share_of_messages_is_cut_as_it_is_written():
    assert [stacked.whole_part(share, 100) for share in (0.29, 0.07, 0.145, 0.0)] == [29, 7, 14, 0]


# Rounds


def shares(setting: Setting, chunk: int = 128) -> list[float | None]:
    rows = [{(m, g): v for m, g, v in row.values} for _, row in run(setting, local(chunk), compute_here)]
    return [row.get(("effective_share", "acting")) for row in rows]


def attacked(name: str, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Setting:
    """A fifth of the users sends minus fifty times its update."""
    strategy = {"name": "planting", "alpha": 0.2, "y_star": 8, "signal": "patch"}
    aggregation = {"name": name, **FIELDS.get(name, {}), **fields}
    setting = prepare(experiment(strategy=strategy, aggregation=aggregation, training__sampling_prob=1.0), local())
    monkeypatch.setattr(
        type(setting.experiment.strategy), "update", lambda self, updates, users, round, key: -50 * updates
    )
    return setting


def test_what_a_rule_drops_is_missing_in_the_effective_share(monkeypatch):
    found = {
        name: shares(attacked(name, monkeypatch, **fields))
        for name, fields in [
            ("sum", {}),
            ("krum", {}),
            ("multi_krum", {}),
            ("flame", {}),
            ("median", {}),
            ("trimmed_mean", {}),
            ("geometric_median", {}),
            ("norm_bounding", {"bound": 0.05}),
        ]
    }
    assert all(share == pytest.approx(0.2) for share in found["sum"])
    for name in ("krum", "multi_krum", "flame"):
        assert found[name] == [0.0] * 3, name
    for name in ("median", "trimmed_mean", "geometric_median"):
        assert all(0 <= share < 0.1 for share in found[name]), (name, found[name])
    assert all(0 < share < 0.2 for share in found["norm_bounding"])


def test_clipping_counts_beside_the_rule_in_the_effective_share(monkeypatch):
    privacy = {"name": "local_update", "noise_multiplier": 1e-6, "delta": 1e-5, "clip_norm": 0.01}
    clipped = {"privacy": {**privacy, "noise_per": "message"}, "strategy__alpha": 0.4}
    summed = shares(prepare(experiment(**clipped), local()))
    untrimmed = shares(prepare(experiment(aggregation={"name": "trimmed_mean", "trim": 0.0}, **clipped), local()))
    np.testing.assert_allclose(untrimmed, summed, rtol=1e-3)
    assert not np.allclose(summed, 0.4, atol=1e-3)


@pytest.mark.parametrize("name", ROBUST)
def test_a_run_has_the_same_bits_on_nodes_and_when_it_goes_on(name):
    def elsewhere(setting, parameters, round, chunks):
        answers = [perform(pack_task(setting, local(7), parameters, round, [chunk])) for chunk in reversed(chunks)]
        return [part for answer in reversed(answers) for part in read_partials(answer, 1)]

    aggregation = {"name": name, **FIELDS.get(name, {})}
    privacy = {"name": "local_update", "noise_multiplier": 0.01, "delta": 1e-5, "clip_norm": 0.5}
    noisy = {**privacy, "noise_per": "message"}
    setting = prepare(experiment(aggregation=aggregation, privacy=noisy), local(7))
    states = [state for state, _ in run(setting, local(7), compute_here)]
    assert last_bytes(setting, local(7), elsewhere) == states[-1].parameters.tobytes()
    *_, (resumed, _) = run(setting, local(7), compute_here, states[0])
    assert resumed.parameters.tobytes() == states[-1].parameters.tobytes()
    assert resumed.server.tobytes() == states[-1].server.tobytes()


@pytest.mark.parametrize("name", ["krum", "multi_krum", "flame"])
def test_rounds_of_too_few_messages_make_no_step_and_say_so(name):
    training = {"rounds": 40, "sampling_prob": 0.08, "local_steps": 1, "batch": 4, "local_lr": 0.1}
    setting = prepare(experiment(aggregation={"name": name}, training=training), local())
    before, still = setting.net.initial(setting.key.fold("initial")), 0
    for state, row in run(setting, local(), compute_here):
        values = {(m, g): v for m, g, v in row.values}
        few = values["messages", "all"] < 3
        stays = state.parameters.tobytes() == before.tobytes()
        assert not few or (stays and ("effective_share", "acting") not in values)
        assert few or name == "flame" or not stays
        still, before = still + few, state.parameters
    assert 1 <= still < 20


def test_a_rule_that_the_expected_cohort_does_not_suffice_for_is_refused():
    training = {"rounds": 3, "sampling_prob": 0.1, "local_steps": 1, "batch": 4, "local_lr": 0.1}
    for aggregation, allowed in (({"byzantine": 0.2}, True), ({"byzantine": 0.35}, False)):
        small = experiment(aggregation={"name": "krum", **aggregation}, training=training)
        if allowed:
            prepare(small, local())
        else:
            with pytest.raises(
                ConfigError, match=r"aggregation\.name = 'krum': needs more messages in a round than the 6"
            ):
                prepare(small, local())


def test_a_history_that_is_too_large_is_refused_with_its_size():
    model = {"name": "mlp", "hidden": [2000]}
    large = {"data__users": 1000, "model": model, "aggregation": {"name": "foolsgold"}}
    with pytest.raises(ConfigError, match=r"aggregation.over = 'run'.*1000 users and 150010 parameters has 150010000"):
        prepare(experiment(**large), local())
    prepare(experiment(**{**large, "aggregation": {"name": "foolsgold", "over": "round"}}), local())


# What is refused

NOISES = {name: privacy for name, privacy in MECHANISMS.items() if name not in ("none", "randomised_response")}


@pytest.mark.parametrize("name", ROBUST)
def test_noise_on_the_sum_is_refused_by_name_and_noise_on_messages_is_not(name):
    aggregation = {"name": name, **FIELDS.get(name, {})}
    known: Any = parts_of("privacy")
    refused = [name for name, fields in NOISES.items() if not known[name].model_validate(fields).on_messages]
    assert {"central", "local_update"} <= set(refused)
    assert "local_dpsgd" not in refused
    for privacy in NOISES:
        if privacy in refused:
            told = f"aggregation.name = '{name}': {privacy} adds its noise to the sum of messages"
            with pytest.raises(ConfigError, match=re.escape(told)):
                experiment(privacy=NOISES[privacy], aggregation=aggregation)
        else:
            experiment(privacy=NOISES[privacy], aggregation=aggregation)
    experiment(privacy={**MECHANISMS["local_update"], "noise_per": "message"}, aggregation=aggregation)


def test_counts_and_ratings_are_learnt_from_sums_only():
    with pytest.raises(ConfigError, match=r"aggregation\.name = 'median': histogram can only be learnt from sums"):
        counting(aggregation={"name": "median"})


@pytest.mark.parametrize(
    ("aggregation", "told"),
    [
        ({"name": "trimmed_mean", "trim": 0.5}, r"aggregation\.trim = 0\.5"),
        ({"name": "krum", "byzantine": -0.1}, r"aggregation\.byzantine = -0\.1"),
        ({"name": "multi_krum", "byzantine": 0.5}, r"aggregation\.byzantine = 0\.5"),
        ({"name": "geometric_median", "smoothing": 0.0}, r"aggregation\.smoothing = 0\.0"),
        ({"name": "geometric_median", "iterations": 0}, r"aggregation\.iterations = 0"),
        ({"name": "centred_clipping", "radius": 0.0}, r"aggregation\.radius = 0\.0"),
        ({"name": "norm_bounding"}, r"aggregation\.bound: must be given"),
        ({"name": "foolsgold", "over": "ever"}, r"aggregation\.over = 'ever'"),
        ({"name": "median", "trim": 0.1}, r"aggregation\.trim = 0\.1: unknown key"),
        ({"name": "medain"}, r"unknown aggregation 'medain'; known: .*median"),
    ],
)
def test_wrong_fields_of_rules_are_told(aggregation, told):
    with pytest.raises(ConfigError, match=told):
        experiment(aggregation=aggregation)


def test_runs_under_different_rules_are_not_repetitions_of_each_other():
    """In the table, the page and the closing table runs of one setting are averaged."""
    rules = [{"name": "sum"}, {"name": "median"}, {"name": "norm_bounding", "bound": 1.0}]
    rules.append({"name": "norm_bounding", "bound": 2.0})
    labels = settings([experiment(aggregation=one) for one in rules])
    assert labels[:2] == ["none sum", "none median"]
    assert len(set(labels)) == 4
    assert settings([experiment(aggregation=rules[1])]) == ["none"]


def test_messages_at_the_server_are_foreseen(monkeypatch):
    small = experiment(data__users=1000, aggregation={"name": "krum"}, model={"name": "mlp", "hidden": [1000]})
    execution = Execution(engine="local", chunk=1, jobs=2, data_dir=local().data_dir)
    setting, summing = prepare(small, execution), prepare(small.model_copy(update={"seed": 8}), execution)
    count = memory._most_messages(setting)
    assert 500 < count < 1000
    more = memory._needed(setting, execution, 1, 1) - memory._needed(
        prepare(experiment(data__users=1000, model={"name": "mlp", "hidden": [1000]}), execution), execution, 1, 1
    )
    assert more > 2 * (2 * 4 * count * setting.net.size + 8 * count**2)
    assert summing.stacks
    monkeypatch.setattr(memory, "free_memory", lambda device: (2**29, "free on this machine"))
    with pytest.raises(ConfigError, match=f"of it for the up to {count} messages that krum holds"):
        memory.fit([small], execution, given=False)
