"""One run: rounds of federated training with a collective, under a privacy mechanism. No Flower in here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fedacdp import acting, metrics, ranking
from fedacdp.config import Execution
from fedacdp.local import train_users
from fedacdp.setting import Setting
from fedacdp.users import Space, Users


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
        parameters = setting.net.moved(state.parameters, total, training.server_lr, plan.cohort)

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
    """The platform's users of a round, sorted ids: each independently with chance q, if it has messages left."""
    chance = setting.key.fold("cohort", round).uniforms(np.arange(len(setting.on_platform)), 1)[:, 0]
    drawn = setting.on_platform & (chance < setting.plan.sampling_prob)
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
    """Accuracy and success on the held-out records after a round; of ratings, how well they are ranked."""
    test, strategy = setting.federation.test, setting.strategy
    if test.schema.items:
        return ranking.evaluate(setting, parameters, round)

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


_SUMS = 2**26  # bytes of sums of chunks that are held at once
_NOBODY = (np.zeros(0), np.zeros(0), np.zeros(0, bool))
_space = Space()


def _in_turns(chunks: list[np.ndarray], bytes_each: int) -> Iterator[list[np.ndarray]]:
    """The chunks in order, as many at a time as have sums that may be held at once."""
    at_once = max(1, _SUMS // bytes_each)
    for first in range(0, len(chunks), at_once):
        yield chunks[first : first + at_once]
