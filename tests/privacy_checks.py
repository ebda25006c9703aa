"""What must hold of every privacy mechanism, as assertions: the checklist asks them of the code as it is, and the tests
of mutations of code with a planted fault, where they must fail. Random ones raise false alarm once in 10^6."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy import stats
from torch.nn import functional as F

from fedacdp import local as training_code
from fedacdp import rounds
from fedacdp.config import Training, parts_of
from fedacdp.keys import Key
from fedacdp.local.batches import poisson
from fedacdp.local.grams import Grams
from fedacdp.privacy import accounting, base
from fedacdp.privacy.base import Mechanism, Plan
from fedacdp.rounds import State, compute_here
from fedacdp.setting import Setting, prepare
from tests.conftest import Toy, block, counting, experiment, local

SAMPLES: dict[str, dict[str, Any]] = {
    "none": {},
    "central": {"noise_multiplier": 1.7, "delta": 1e-5, "clip_norm": 0.02},
    "local_update": {"noise_multiplier": 1.7, "delta": 1e-5, "clip_norm": 0.02},
    "local_dpsgd": {"noise_multiplier": 1.7, "delta": 1e-5, "clip_norm": 0.02},
    "randomised_response": {"message_epsilon": 1.0},
    "central_adaptive": {
        "noise_multiplier": 1.7,
        "delta": 1e-5,
        "clip_norm": 0.02,
        "count_noise": 2.0,
        "clip_lr": 1e-9,
    },
    "central_matrix": {
        "noise_multiplier": 1.7,
        "delta": 1e-5,
        "clip_norm": 0.02,
        "factor": "banded",
        "separation": 2,
    },
    "distributed": {"noise_multiplier": 1.7, "delta": 1e-5, "clip_norm": 0.02, "cohort": 1},
    "group_aware": {
        "noise_multiplier": 1.7,
        "delta": 1e-5,
        "clip_norm": 0.02,
        "way": "scale",
        "clip_norms": {"others": 0.02},
    },
}
"""Fields with which each mechanism is asked, small enough a clip norm for every update to be clipped."""

NOISE_ON_SUM: dict[str, Callable[[Any, int], float]] = {
    "central": lambda mechanism, sent: mechanism.noise_multiplier * mechanism.clip_norm,
    "local_update": lambda mechanism, sent: math.sqrt(sent) * mechanism.noise_multiplier * mechanism.clip_norm,
    "central_adaptive": lambda mechanism, sent: (1.7**-2 - (2 * 2.0) ** -2) ** -0.5 * mechanism.clip_norm,
    "distributed": lambda mechanism, sent: math.sqrt(sent) * mechanism.noise_multiplier * mechanism.clip_norm,
    "group_aware": lambda mechanism, sent: mechanism.noise_multiplier * mechanism.clip_norm,
}
"""The standard deviation of the noise on a round's sum of `sent` messages, written by hand, where it is new in every
round."""

BY_HAND: dict[str, Callable[[Any, Plan], tuple[float, float, int]]] = {
    "central": lambda m, plan: (m.noise_multiplier, plan.sampling_prob, plan.rounds),
    "local_update": lambda m, plan: (m.noise_multiplier / 2, 1.0, math.ceil(plan.sampling_prob * plan.rounds)),
    "local_dpsgd": lambda m, plan: (
        m.noise_multiplier,
        plan.batch_prob,
        plan.local_steps * math.ceil(plan.sampling_prob * plan.rounds),
    ),
    "central_adaptive": lambda m, plan: (m.noise_multiplier, plan.sampling_prob, plan.rounds),
    "central_matrix": lambda m, plan: (
        m.noise_multiplier / math.sqrt(math.ceil(plan.sampling_prob * plan.rounds)),
        1.0,
        1,
    ),
    "distributed": lambda m, plan: (m.noise_multiplier, 1.0, math.ceil(plan.sampling_prob * plan.rounds)),
    "group_aware": lambda m, plan: (m.noise_multiplier, plan.sampling_prob, plan.rounds),
}
"""(sigma / sensitivity, sampling rate, releases about one unit), written by hand."""

SAMPLES, NOISE_ON_SUM, BY_HAND = (
    {name: value for name, value in table.items() if name in parts_of("privacy")}  # type: ignore[attr-defined]
    for table in (SAMPLES, NOISE_ON_SUM, BY_HAND)  # those that are there
)
ALARM = 1e-6
PLAN = Plan(users=1000, sampling_prob=0.1, rounds=100, local_steps=5, batch=4.0, batch_prob=1 / 3)


class Release(NamedTuple):
    """All that the server's step is made of in one round: the sum with its noise, the rate and the denominator; and how
    many messages came that should carry noise."""

    total: np.ndarray
    lr: float
    cohort: float
    sent: int


def mechanism_of(name: str, **fields: Any) -> Any:
    """A mechanism with its sample fields, some replaced, told of a platform whose users are all of one group."""
    found = parts_of("privacy")[name].model_validate({"name": name, **SAMPLES[name], **fields})
    told = (np.full(PLAN.users, "all"), np.ones(PLAN.users, bool))
    return found.for_users(*told[: len(inspect.signature(found.for_users).parameters)])


def clipped_to(name: str, clip: float) -> dict[str, Any]:
    """The sample fields for a clip norm."""
    by_group = {"clip_norms": {"others": clip}} if "clip_norms" in SAMPLES[name] else {}
    return {"clip_norm": clip, **by_group}


def small(name: str, rounds: int = 1, q: float = 1.0, users: int = 60, lr: float = 0.1, **changes: Any) -> Setting:
    """A small experiment without a collective under a mechanism; `fields` are those of the mechanism."""
    fields = changes.pop("fields", {})
    how: dict[str, Any] = {"rounds": rounds, "sampling_prob": q, "evaluate_every": rounds}
    if parts_of("privacy")[name].needs == "counts":
        data: Any = Toy(users=users, partition="resampled", records=1)
        make = counting
    else:
        data, make = {"name": "digits", "users": users}, experiment
        how |= {"local_steps": 2, "batch": 4, "local_lr": lr}
    changes = {"strategy__alpha": 0.0, "data": data, "training": how} | changes
    return prepare(make(privacy={"name": name, **SAMPLES[name], **fields}, **changes), local())


def released(setting: Setting, chunk: int = 128) -> tuple[list[Release], State]:
    """What every round of a whole run releases, and the state at its end."""
    seen: list[tuple[np.ndarray, float, float]] = []
    kind = type(setting.net)
    moved = kind.moved

    def record(self: Any, flat: np.ndarray, total: np.ndarray, lr: float, cohort: float) -> np.ndarray:
        seen.append((total.copy(), lr, cohort))
        return moved(self, flat, total, lr, cohort)

    found: list[Release] = []
    before = 0
    with mock.patch.object(kind, "moved", record):
        for state, _ in rounds.run(setting, local(chunk), compute_here):
            if len(seen) > len(found):  # or the round was given up
                found.append(Release(*seen[-1], state.sent - before))
            before = state.sent
    return found, state


def quiet(setting: Setting) -> Setting:
    """The same setting with noise of size 0 on messages and sums."""
    return dataclasses.replace(setting, mechanism=setting.mechanism.model_copy(update={"noise_multiplier": 0.0}))


def without_first(setting: Setting) -> Setting:
    """The same setting when user 0 has never been on the platform; the public number of users stays."""
    there = setting.on_platform.copy()
    there[0] = False
    return dataclasses.replace(setting, on_platform=there)


def with_more(setting: Setting, times: int) -> Setting:
    """The same setting when user 0 has each of its records `times` times."""
    old = setting.federation
    first = int(old.offsets[1])
    offsets = old.offsets + first * (times - 1)
    offsets[0] = 0
    order = np.concatenate([np.tile(old.order[:first], times), old.order[first:]])
    federation = dataclasses.replace(old, order=order, offsets=offsets)
    return dataclasses.replace(setting, federation=federation, grams=Grams(federation.sizes))


@contextmanager
def first_has(setting: Setting, value: float) -> Iterator[Setting]:
    """The same setting while user 0's features are all `value`."""
    federation = setting.federation
    rows = federation.order[federation.offsets[0] : federation.offsets[1]]
    kept = federation.train.x[rows].copy()
    federation.train.x[rows] = value
    try:
        yield dataclasses.replace(setting, grams=Grams(federation.sizes))  # those kept are of the old records
    finally:
        federation.train.x[rows] = kept


def check_clip(bound: float = 0.5) -> None:
    """No clipped norm exceeds the bound, what is below it is not touched, what is not finite weighs nothing."""
    norms = np.array([0.0, 1e-300, 1e-30, 0.25, bound, bound + 1e-9, 7.0, 1e30, 1e300, np.inf, -np.inf, np.nan])
    factors, finite = base.clip_factors(norms, bound), np.isfinite(norms)
    assert (factors[finite] * norms[finite] <= bound * (1 + 1e-12)).all()
    assert (factors[(norms >= 0) & (norms <= bound)] == 1).all()
    assert (factors[~finite] == 0).all()
    assert len(base.clip_factors(np.zeros(0), bound)) == 0


def check_neighbours(name: str, users: int = 60, model: str = "logistic") -> None:
    """With the same seeds and one user removed, replaced by something extreme, or with its records a thousand times,
    the sum before noise moves by at most C (2C); shapes, rates, denominators and draws are the same."""
    setting = small(name, users=users, model={"name": model})
    clip, calm = setting.clip, quiet(setting)
    [here], state = released(calm)

    def moves(other: Setting, bound: float, draws: int | None) -> None:
        [there], after = released(other)
        assert there.total.shape == here.total.shape
        assert (there.lr, there.cohort) == (here.lr, here.cohort) == (1.0, float(users))
        assert draws is None or after.draws == draws
        assert after.memory.shape == state.memory.shape
        distance = float(np.linalg.norm(there.total - here.total))
        assert 0 < distance <= bound * clip * (1 + 1e-6), f"{distance / clip} C"

    central = setting.mechanism.adjacency == "add_or_remove"
    if users > 1:
        moves(without_first(calm), 1.0, state.draws if central else None)
        for value in (np.nan, np.inf):
            with first_has(calm, value) as other:
                moves(other, 1.0, state.draws)
    for value in (1e3, -1e6):
        with first_has(calm, value) as other:
            moves(other, 2.0, state.draws)
    moves(with_more(calm, 1000), 2.0, state.draws)


def check_example_loop(model: str = "logistic", shape: tuple[int, ...] = (12,)) -> None:
    """One step of DP-SGD without noise is a loop over examples: minus rate / batch times the sum of each example's own
    gradient, clipped to C over all parameters together."""
    users = block(shape=shape)
    net = parts_of("model")[model].model_validate({"name": model}).net(users.schema)
    start, key, batch, clip = torch.from_numpy(net.initial(Key(3))), Key(5), 3.0, 0.7
    how = Training(rounds=1, sampling_prob=1.0, local_steps=1, local_lr=0.3)
    rule = base.ExampleRule(clip, 0.0, 0.6, batch, "vectorised")
    found = training_code.train_users(net, start, users, how, rule, key).stack().double().numpy()
    batches, clipped = poisson(users, 0.6, 1, key.fold("batches")), 0
    for row in range(len(users)):
        total = np.zeros(net.size)
        for record in batches.index[row, 0][batches.chosen[row, 0]]:
            flat = start.clone().requires_grad_(True)
            x, y = torch.from_numpy(users.x[row, [record]]), torch.from_numpy(users.y[row, [record]])
            (slope,) = torch.autograd.grad(F.cross_entropy(net.logits(net.unflatten(flat), x), y), flat)
            norm = float(slope.double().norm())
            total += slope.double().numpy() * min(1.0, clip / norm)
            clipped += norm > clip
        np.testing.assert_allclose(found[row], -0.3 / batch * total, atol=1e-5, rtol=1e-4)
    assert clipped


def check_white(draws: np.ndarray, pieces: list[int] | None = None) -> None:
    """(rounds, P) draws in units of their stated size are standard normal, over all and in every piece of the P places,
    and independent between rows."""
    parts = [draws, *np.split(draws, np.cumsum(pieces)[:-1], axis=1)] if pieces else [draws]
    for part in parts:
        low, high = np.sqrt(stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], part.size) / part.size)
        spread = math.sqrt((part**2).mean())
        assert low < spread < high, f"{spread} of the stated size"
    assert abs(draws.mean()) < 4.9 / math.sqrt(draws.size)
    assert stats.kstest(draws.ravel(), "norm").pvalue > ALARM
    if len(draws) > 1:
        assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 5.6 / math.sqrt(draws.shape[1])
        assert len(np.unique(draws[:, 0])) == len(draws)


def noise_in_units(name: str, rounds: int = 25, **changes: Any) -> tuple[np.ndarray, list[int]]:
    """The noise of a run that learns nothing, (rounds, P), in units of what is written by hand; the layers' sizes."""
    setting = small(name, rounds, q=0.5, lr=0.0, **{"model": {"name": "mlp"}, **changes})
    seen, _ = released(setting)
    silent, _ = released(quiet(setting))
    units = [
        (loud.total - still.total) / NOISE_ON_SUM[name](setting.mechanism, loud.sent)
        for loud, still in zip(seen, silent, strict=True)
    ]
    return np.stack(units), [math.prod(shape) for shape in setting.net.shapes.values()]


def check_noise(name: str, **changes: Any) -> None:
    """The noise that is released is white, of the stated size in every layer, and new in every round."""
    check_white(*noise_in_units(name, **changes))


def check_denominator(name: str) -> None:
    """With three users at q = 0.25 cohorts of every size come, also empty ones: each releases noise of its stated size,
    is divided by q N, and is charged."""
    setting = small(name, 40, q=0.25, users=3, lr=0.0)
    seen, state = released(setting)
    assert {release.cohort for release in seen} == {0.75}
    assert state.draws == setting.mechanism.draws(setting.plan, state.sent)
    empty = [release.total for release in seen if release.sent == 0]
    if setting.mechanism.observer == "model_holder":
        assert empty
        assert all(total.any() for total in empty)
        if name in NOISE_ON_SUM:
            check_white(np.stack(empty) / NOISE_ON_SUM[name](setting.mechanism, 0))


def check_model_moves(name: str, users: int) -> None:
    """Released minus the exact clipped mean is noise of the stated size / (q N), once: in the model, not in the sum."""
    setting = small(name, users=users, model={"name": "mlp"})
    each = dataclasses.replace(quiet(setting), watched=True)
    messages = compute_here(each, start_of(setting), 1, [np.arange(users)])[0].messages.astype(float)
    assert (np.linalg.norm(messages, axis=1) <= setting.clip * (1 + 1e-6)).all()
    *_, (state, _) = rounds.run(setting, local(), compute_here)
    moved = state.parameters.astype(float) - start_of(setting).astype(float) - messages.sum(axis=0) / users
    check_white(moved[None] / (NOISE_ON_SUM[name](setting.mechanism, users) / users))


def start_of(setting: Setting) -> np.ndarray:
    """The parameters before the first round."""
    return rounds.first_state(setting).parameters


def check_messages(**fields: Any) -> None:
    """Every single message of `local_update` carries noise of its own of the full size, so that a mean of n has a
    variance n times smaller."""
    fields = {"noise_per": "message"} | fields
    setting = dataclasses.replace(small("local_update", lr=0.0, model={"name": "mlp"}, fields=fields), watched=True)
    part = compute_here(setting, start_of(setting), 1, [np.arange(60)])[0]
    units = part.messages.astype(float) / setting.mechanism.sigma
    check_white(units)
    check_white(units.mean(axis=0, keepdims=True) * math.sqrt(60))


def check_example_noise(**fields: Any) -> None:
    """Where no example enters, what a user of DP-SGD sends is white noise of the accounted size, its own."""
    rule = mechanism_of("local_dpsgd", **fields).example_rule(PLAN)
    users = block(users=40, records=3, shape=(40,))
    net = parts_of("model")["mlp"].model_validate({"name": "mlp"}).net(users.schema)
    how = Training(rounds=1, sampling_prob=1.0, local_steps=4, local_lr=0.1)
    rule = dataclasses.replace(rule, batch_prob=0.0)
    updates = training_code.train_users(net, torch.from_numpy(net.initial(Key(3))), users, how, rule, Key(4))
    assert updates.draws == 40 * 4
    stated = 0.1 * 1.7 * 0.02 / PLAN.batch * math.sqrt(4)
    check_white(updates.stack().double().numpy() / stated)


def check_poisson(taken: np.ndarray, chance: np.ndarray | float) -> None:
    """(rounds, N) who was drawn: each user independently, with its own chance, in every round."""
    turns, users = taken.shape
    chance = np.broadcast_to(np.asarray(chance, float), users)
    counts = taken.sum(axis=0)
    each = ALARM / (2 * users)
    assert (stats.binom.cdf(counts, turns, chance) > each).all()
    assert (stats.binom.sf(counts - 1, turns, chance) > each).all()
    sizes, variance = taken.sum(axis=1), float((chance * (1 - chance)).sum())
    assert abs(sizes.mean() - chance.sum()) < 4.9 * math.sqrt(variance / turns)
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], turns - 1) / (turns - 1)
    assert low < sizes.var(ddof=1) / variance < high, "cohorts do not vary as independent draws do"
    unit = (taken - chance) / np.sqrt(chance * (1 - chance))
    joint = (unit.T @ unit / math.sqrt(turns))[np.triu_indices(users, 1)]
    assert np.abs(joint).max() < 6.5
    assert stats.chi2.sf((joint**2).sum(), len(joint)) > ALARM
    along = (unit[1:] * unit[:-1]).sum() / math.sqrt((turns - 1) * users)
    assert abs(along) < 4.9, "a round depends on the one before"


def cohorts(setting: Setting, turns: int) -> np.ndarray:
    """(turns, N) bool: who is drawn in each round, nobody's messages ever being used up."""
    state, taken = rounds.first_state(setting), np.zeros((turns, len(setting.on_platform)), bool)
    for turn in range(turns):
        taken[turn, rounds.draw_cohort(setting, state, turn + 1)] = True
    return taken


def check_accounting(name: str, plan: Plan = PLAN) -> None:
    """The epsilon of the whole run is that of dp-accounting for the releases written by hand."""
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    mechanism = mechanism_of(name)
    ratio, rate, count = BY_HAND[name](mechanism, plan)
    once: Any = dp.GaussianDpEvent(ratio)
    once = once if rate == 1 else dp.PoissonSampledDpEvent(rate, once)
    hand = PLDAccountant().compose(dp.SelfComposedDpEvent(once, count)).get_epsilon(1e-5)
    found = mechanism.guarantee(plan).epsilon
    assert hand - 1e-6 <= found <= hand + 1e-3, f"{found}, not {hand}"


def check_golden() -> None:
    """A golden value of each kind: sampled, and not sampled, where it is exact."""
    assert abs(accounting.epsilon(accounting.Gaussians(1.0, 1.0, 1), 1e-5) - 4.377178) < 1e-3
    assert abs(accounting.epsilon(accounting.Gaussians(1.0, 0.1, 100), 1e-5) - 7.046603) < 1e-3


def check_statement(name: str) -> None:
    """The statement has every word that gives an epsilon its meaning, and says what it does not cover."""
    found: Mechanism = mechanism_of(name)
    promise = found.guarantee(PLAN)
    words = promise.sentence
    for word in (f"unit: {found.unit}", found.adjacency.replace("_", "-"), "against", "delta", "Tuning not counted"):
        assert word in words
    assert "test metrics" in words
    assert "recorded seed" in words


def check_adaptive() -> None:
    """The clip norm of `central_adaptive` comes within 15 % of the quantile in 100 rounds, from a tenth, ten and a
    hundred times the median; and a count whose noise costs more than the budget is refused."""
    fields = {"count_noise": 5.0, "clip_lr": 0.2, "noise_multiplier": 1.0}
    norms = np.exp(Key(1).rng().standard_normal(100))
    for times in (0.1, 10, 100):
        mechanism = mechanism_of("central_adaptive", **fields, clip_norm=times * np.median(norms)).calibrated(PLAN)
        memory = mechanism.first_memory(PLAN, 3)
        for turn in range(1, 101):
            noise = mechanism.sum_noise(100, 3, turn, memory, Key(2))
            memory = mechanism.next_memory(memory, norms, noise, PLAN, turn, Key(2))
        assert abs(mechanism.clip_now(memory) / np.median(norms) - 1) < 0.15
    try:
        mechanism_of("central_adaptive", count_noise=0.5, noise_multiplier=1.0).calibrated(PLAN)
    except ValueError:
        return
    raise AssertionError("z = 2 count_noise is not refused")


def check_seed_zero() -> None:
    """Seed 0 is a seed like any other."""
    first, again = (Key(0).fold("noise", 1).rng().standard_normal(8) for _ in range(2))
    assert np.array_equal(first, again)
