"""One run: rounds of federated training with a collective, under a privacy mechanism. No Flower in here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch

from fedacdp import acting, metrics
from fedacdp.config import ConfigError, Execution, Experiment
from fedacdp.data import shared
from fedacdp.data.base import Federation, Source, federate
from fedacdp.kept import Kept
from fedacdp.keys import Key
from fedacdp.local import block_size, train_users
from fedacdp.local.grams import Grams
from fedacdp.models.base import Learner
from fedacdp.privacy.base import Mechanism, Plan
from fedacdp.strategy import Strategy
from fedacdp.users import Space, Users


@dataclass(frozen=True)
class Setting:
    """An experiment with everything that follows from it: data in users' hands, model, noise, the strategy with what
    members agreed on, and the number of each user's collective, (N,) int8, -1 for none. Users are trained `block` at a
    time."""

    experiment: Experiment
    federation: Federation
    grams: Grams
    net: Learner
    strategy: Strategy
    collective: np.ndarray
    plan: Plan
    mechanism: Mechanism
    device: str
    block: int

    @property
    def key(self) -> Key:
        """The root of all random streams of a run."""
        return Key(self.experiment.seed)

    @cached_property
    def member(self) -> np.ndarray:
        """Who is a member of a collective, (N,) bool."""
        return self.collective >= 0

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
        norms, factors, follow = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
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
        values = metrics.cohort(len(ids), norms, factors, follow)
        if round % training.evaluate_every == 0 or round == training.rounds:
            values += evaluate(setting, parameters, round)
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
    total, draws, seen = np.zeros(len(parameters)), 0, [_NOBODY]
    for first in range(0, len(ids), setting.block):
        part = train_block(setting, start, round, ids[first : first + setting.block])
        total += part.total
        draws += part.draws
        seen.append((part.norms, part.factors, part.acting))
    norms, factors, follow = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
    return Partial(total, norms, factors, follow, draws)


def train_block(setting: Setting, start: torch.Tensor, round: int, ids: np.ndarray) -> Partial:
    """The collective acts, everybody trains, updates are clipped and summed."""
    experiment, mechanism, key = setting.experiment, setting.mechanism, setting.key
    users = setting.federation.users(ids, setting.member[ids], _space)
    users, follow = act(setting, users, round)
    rule, response = mechanism.example_rule(setting.plan), mechanism.response(setting.plan)
    gram, drawn = partial(setting.grams.of, original=~follow), key.fold("train", round)
    updates = train_users(setting.net, start, users, experiment.training, rule, drawn, gram, response)
    updates = acting.edit(setting.strategy, setting.collective, start, updates, users, round, key)
    factors = mechanism.clip_factors(updates.norms)
    total = updates.total(factors)
    noise = mechanism.message_noise(users.ids, len(total), key.fold("message_noise", round))
    if noise is not None:
        total += noise.vector
    draws = updates.draws + (noise.draws if noise is not None else 0)
    return Partial(total, updates.norms, factors, follow, draws)


def act(setting: Setting, users: Users, round: int) -> tuple[Users, np.ndarray]:
    """The users that send an update in this round with the records they train on, and which of them follow a
    strategy, (U',) bool. What members change is changed in the block, which belongs to the caller."""
    return acting.act(setting.strategy, setting.collective, users, round, setting.key)


def evaluate(setting: Setting, parameters: np.ndarray, round: int = 0) -> list[metrics.Value]:
    """Accuracy and success on the held-out records after a round."""
    test, strategy = setting.federation.test, setting.strategy

    guess = setting.net.predict(parameters, test.x)

    def predict(x: np.ndarray) -> np.ndarray:
        return guess if x is test.x else setting.net.predict(parameters, x)

    values = metrics.accuracy(guess, test.y, strategy.target_class(test.schema))
    values += metrics.by_class(guess, test.y, test.schema.classes)
    return values + metrics.successes(strategy.measures(predict, test, parameters, round))


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
            return _settings(slot, lambda: _prepare(experiment, execution, share))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _prepare(experiment: Experiment, execution: Execution, share: str | None) -> Setting:
    source = shared.load(experiment.data, execution.data_dir, share)
    experiment.check(source)
    key = Key(experiment.seed)
    slot = (experiment.data.model_dump_json(), str(execution.data_dir), str(experiment.seed))
    federation, grams = _federations(slot, lambda: _federated(experiment, source, key))
    plan = experiment.plan(len(source.train))
    net, mechanism = experiment.model.net(source.train.schema), experiment.privacy.calibrated(plan)
    records, shape = int(federation.sizes.max()), source.train.schema.shape
    rule, edited = mechanism.example_rule(plan), experiment.strategy.edits_updates
    collective = experiment.strategy.assigned(federation.group, key.fold("members"))

    def own(ids: np.ndarray) -> Iterator[Users]:
        for first in range(0, len(ids), _TOGETHER):
            some = ids[first : first + _TOGETHER]
            yield federation.users(some, collective[some] >= 0)

    return Setting(
        experiment=experiment,
        federation=federation,
        grams=grams,
        net=net,
        strategy=experiment.strategy.agreed(collective, own, federation.schema, key.fold("agreed")),
        collective=collective,
        plan=plan,
        mechanism=mechanism,
        device=execution.device,
        block=block_size(net, shape, records, rule, execution.device, edited),
    )


def _federated(experiment: Experiment, source: Source, key: Key) -> tuple[Federation, Grams]:
    federation = federate(experiment.data, source, key)
    return federation, Grams(federation.sizes)


def _held_bytes(held: tuple[Federation, Grams]) -> int:
    return held[0].order.nbytes + held[0].offsets.nbytes + held[1].nbytes


def _setting_bytes(setting: Setting) -> int:
    return _held_bytes((setting.federation, setting.grams)) + setting.member.nbytes


_SUMS = 2**26  # bytes of sums of chunks that are held at once
_TOGETHER = 256  # members whose records are pooled at once
_NOBODY = (np.zeros(0), np.zeros(0), np.zeros(0, bool))
_space = Space()
_lock = threading.Lock()
_federations, _settings = Kept(_held_bytes), Kept(_setting_bytes)


def _in_turns(chunks: list[np.ndarray], bytes_each: int) -> Iterator[list[np.ndarray]]:
    """The chunks in order, as many at a time as have sums that may be held at once."""
    at_once = max(1, _SUMS // bytes_each)
    for first in range(0, len(chunks), at_once):
        yield chunks[first : first + at_once]
