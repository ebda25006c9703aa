"""One run: rounds of federated training with a collective, under a privacy mechanism. No Flower in here."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import torch

from fedacdp import metrics
from fedacdp.config import ConfigError, Execution, Experiment
from fedacdp.data import shared
from fedacdp.data.base import Federation, Source, federate
from fedacdp.keys import Key
from fedacdp.local import block_size, train_users
from fedacdp.local.grams import Grams
from fedacdp.local.updates import Stacked
from fedacdp.models.base import Learner
from fedacdp.privacy.base import Mechanism, Plan
from fedacdp.users import Space, Users


@dataclass(frozen=True)
class Setting:
    """An experiment with everything that follows from it: data in users' hands, model, members, noise. Users are
    trained `block` at a time."""

    experiment: Experiment
    federation: Federation
    grams: Grams
    net: Learner
    member: np.ndarray
    plan: Plan
    mechanism: Mechanism
    device: str
    block: int

    @property
    def key(self) -> Key:
        """The root of all random streams of a run."""
        return Key(self.experiment.seed)

    @cached_property
    def calibrated(self) -> str:
        """The experiment as JSON with the noise multiplier in force in place of epsilon, from which a node prepares the
        same setting without accounting."""
        return self.experiment.with_privacy(self.mechanism).text


@dataclass(frozen=True)
class State:
    """All that lives between rounds. `parameters` (P,); `messages` (U,) int32, how often each user was sampled;
    `round` rounds done, `sent` updates sent, `draws` noise vectors drawn. No generator state: keys are addresses."""

    round: int
    parameters: np.ndarray
    messages: np.ndarray
    sent: int
    draws: int


@dataclass(frozen=True)
class Partial:
    """What comes back from one chunk: the sum of factor * update, (P,) float64, with the noise that users added, and
    for each update sent its norm before clipping, its factor, and whether its sender followed the strategy."""

    total: np.ndarray
    norms: np.ndarray
    factors: np.ndarray
    acting: np.ndarray
    draws: int


@dataclass(frozen=True)
class Row:
    """The metrics of one round, and the seconds it took."""

    round: int
    seconds: float
    values: list[metrics.Value]


class Diverged(Exception):
    """The model, or every update of a round, is no longer finite. A result, not a fault."""


class WorkFailed(Exception):
    """The work of a chunk raised on a node: the fault of a part, not of the engine. Its text is the traceback."""


class NodeFailure(Exception):
    """A node of the engine died, hangs or does not answer: nothing more can be computed on this engine."""


Compute = Callable[[Setting, np.ndarray, int, list[np.ndarray]], list[Partial]]
"""Does `work` for the chunks of a round, wherever, and returns the answers in the order of the chunks."""


def run(
    setting: Setting, execution: Execution, compute: Compute, state: State | None = None
) -> Iterator[tuple[State, Row]]:
    """The rounds of a run, from the start or after `state`. Raises Diverged when the model stops being finite."""
    training, mechanism, plan, key = setting.experiment.training, setting.mechanism, setting.plan, setting.key
    state = state or first_state(setting)
    while state.round < training.rounds:
        began, round = time.perf_counter(), state.round + 1
        ids = draw_cohort(setting, state, round)
        chunks = [ids[first : first + execution.chunk] for first in range(0, len(ids), execution.chunk)]
        total, draws, seen = np.zeros(len(state.parameters)), 0, [_NOBODY]
        for some in _in_turns(chunks, total.nbytes):
            for part in compute(setting, state.parameters, round, some):
                total += part.total
                draws += part.draws
                seen.append((part.norms, part.factors, part.acting))
        norms, factors, acting = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
        sent = len(norms)
        noise = mechanism.sum_noise(sent, len(total), key.fold("sum_noise", round))
        if noise is not None:
            total += noise.vector
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is looked for below
            parameters = (state.parameters + training.server_lr / plan.cohort * total).astype(state.parameters.dtype)

        messages = state.messages.copy()
        messages[ids] += 1
        draws += noise.draws if noise is not None else 0
        state = State(round, parameters, messages, state.sent + sent, state.draws + draws)
        if not np.isfinite(parameters).all() or (sent and not factors.any()):
            raise Diverged(f"the model, or every update, stopped being finite in round {round}")
        values = metrics.cohort(len(ids), norms, factors, acting)
        if round % training.evaluate_every == 0 or round == training.rounds:
            values += evaluate(setting, parameters)
        yield state, Row(round, time.perf_counter() - began, values)


def draw_cohort(setting: Setting, state: State, round: int) -> np.ndarray:
    """The users of a round, sorted ids: every user independently with chance q, unless its messages are used up."""
    users = setting.experiment.data.users
    drawn = setting.key.fold("cohort", round).uniforms(np.arange(users), 1)[:, 0] < setting.plan.sampling_prob
    limit = setting.mechanism.message_limit(setting.plan)
    return np.flatnonzero(drawn if limit is None else drawn & (state.messages < limit))


def work(setting: Setting, parameters: np.ndarray, round: int, ids: np.ndarray) -> Partial:
    """One chunk of a round, anywhere: block after block of users whose training stays in the processor's cache."""
    start = torch.from_numpy(parameters).to(setting.device)
    if len(ids) <= setting.block:
        return train_block(setting, start, round, ids)
    blocks = (ids[first : first + setting.block] for first in range(0, len(ids), setting.block))
    total, draws, seen = np.zeros(len(parameters)), 0, [_NOBODY]
    for block in blocks:
        part = train_block(setting, start, round, block)
        total += part.total
        draws += part.draws
        seen.append((part.norms, part.factors, part.acting))
    norms, factors, acting = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
    return Partial(total, norms, factors, acting, draws)


def train_block(setting: Setting, start: torch.Tensor, round: int, ids: np.ndarray) -> Partial:
    """The collective acts, everybody trains, updates are clipped and summed."""
    experiment, mechanism, key = setting.experiment, setting.mechanism, setting.key
    users = setting.federation.users(ids, setting.member[ids], _space)
    users, acting = act(setting, users, round)
    rule, response = mechanism.example_rule(setting.plan), mechanism.response(setting.plan)
    gram = partial(setting.grams.of, original=~acting)
    key_of_round = key.fold("train", round)
    updates = train_users(setting.net, start, users, experiment.training, rule, key_of_round, gram, response)
    if experiment.strategy.edits_updates and acting.any():
        rows = updates.stack().clone()
        chosen = torch.from_numpy(acting).to(rows.device)
        own = rows[chosen].cpu().numpy()
        edited = experiment.strategy.update(own, users.rows(acting), round, key.fold("update", round))
        rows[chosen] = torch.from_numpy(edited).to(rows)
        updates = Stacked(rows, updates.draws)
    factors = mechanism.clip_factors(updates.norms)
    total = updates.total(factors)
    noise = mechanism.message_noise(users.ids, len(total), key.fold("message_noise", round))
    if noise is not None:
        total += noise.vector
    draws = updates.draws + (noise.draws if noise is not None else 0)
    return Partial(total, updates.norms, factors, acting, draws)


def act(setting: Setting, users: Users, round: int) -> tuple[Users, np.ndarray]:
    """The users that send an update in this round with the records they train on, and which of them follow the
    strategy, (U',) bool. What members change is changed in the block, which belongs to the caller."""
    strategy, key = setting.experiment.strategy, setting.key
    acting = strategy.acts(users, round, key.fold("acts", round))
    if not acting.any():
        return users, acting
    key = key.fold("strategy", round)
    members = users.rows(acting)
    sends = np.ones(len(users), dtype=bool)
    sends[acting] = strategy.participates(members, round, key.fold("participates"))
    changed = strategy.data(members, round, key.fold("data"))
    if not np.array_equal(changed.ids, members.ids) or changed.x.shape != members.x.shape:
        raise ValueError(f"strategy {strategy.name!r}: data() must return the same users with as many record slots")
    if changed is not members:
        users.x[acting], users.y[acting], users.mask[acting] = changed.x, changed.y, changed.mask
    return (users, acting) if sends.all() else (users.rows(sends), acting[sends])


def evaluate(setting: Setting, parameters: np.ndarray) -> list[metrics.Value]:
    """Accuracy and success on the held-out records."""
    test, strategy = setting.federation.test, setting.experiment.strategy

    guess = setting.net.predict(parameters, test.x)

    def predict(x: np.ndarray) -> np.ndarray:
        return guess if x is test.x else setting.net.predict(parameters, x)

    values = metrics.accuracy(guess, test.y, strategy.target_class(test.schema))
    return values + metrics.successes(strategy.success(predict, test))


def first_state(setting: Setting) -> State:
    """The state before the first round."""
    parameters = setting.net.initial(setting.key.fold("initial"))
    return State(0, parameters, np.zeros(setting.experiment.data.users, np.int32), 0, 0)


def compute_here(setting: Setting, parameters: np.ndarray, round: int, chunks: list[np.ndarray]) -> list[Partial]:
    """The engine `local`: chunk after chunk in this process."""
    return [work(setting, parameters, round, ids) for ids in chunks]


def prepare(experiment: Experiment, execution: Execution, share: str | None = None) -> Setting:
    """Load, cut and calibrate; the same experiment gives the same setting in every process. The last few are kept.

    Nodes have the arrays of the data set from the `share` of the process that they work for. ConfigError if the parts
    do not fit each other.
    """
    if share is None and execution.engine == "flower":
        share = shared.own_share()
    try:
        with _lock:
            slot = (experiment.text, str(execution.data_dir), execution.device)
            return _kept(_settings, slot, lambda: _prepare(experiment, execution, share))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _prepare(experiment: Experiment, execution: Execution, share: str | None) -> Setting:
    source = shared.load(experiment.data, execution.data_dir, share)
    experiment.check(source)
    key = Key(experiment.seed)
    slot = (experiment.data.model_dump_json(), str(execution.data_dir), str(experiment.seed))
    federation, grams = _kept(_federations, slot, lambda: _federated(experiment, source, key))
    plan = experiment.plan(len(source.train))
    net, mechanism = experiment.model.net(source.train.schema), experiment.privacy.calibrated(plan)
    records, shape = int(federation.sizes.max()), source.train.schema.shape
    rule, edited = mechanism.example_rule(plan), experiment.strategy.edits_updates
    return Setting(
        experiment=experiment,
        federation=federation,
        grams=grams,
        net=net,
        member=experiment.strategy.members(federation.group, key.fold("members")),
        plan=plan,
        mechanism=mechanism,
        device=execution.device,
        block=block_size(net, shape, records, rule, execution.device, edited),
    )


def _federated(experiment: Experiment, source: Source, key: Key) -> tuple[Federation, Grams]:
    federation = federate(experiment.data, source, key)
    return federation, Grams(federation.sizes)


_Value = TypeVar("_Value")
_SUMS = 2**26  # bytes of sums of chunks that are held at once
_NOBODY = (np.zeros(0), np.zeros(0), np.zeros(0, bool))
_space = Space()
_lock = threading.Lock()
_federations: OrderedDict[tuple[str, ...], tuple[Federation, Grams]] = OrderedDict()
_settings: OrderedDict[tuple[str, ...], Setting] = OrderedDict()


def _kept(cache: OrderedDict[tuple[str, ...], _Value], slot: tuple[str, ...], make: Callable[[], _Value]) -> _Value:
    """The value at `slot`, made if it is not there; the eight used last are kept."""
    value = cache.pop(slot) if slot in cache else make()
    cache[slot] = value
    while len(cache) > 8:
        cache.popitem(last=False)
    return value


def _in_turns(chunks: list[np.ndarray], bytes_each: int) -> Iterator[list[np.ndarray]]:
    """The chunks in order, as many at a time as have sums that may be held at once."""
    at_once = max(1, _SUMS // bytes_each)
    for first in range(0, len(chunks), at_once):
        yield chunks[first : first + at_once]
