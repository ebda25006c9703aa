"""One run: rounds of federated training with a collective, under a privacy mechanism. No Flower in here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
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
    `memory` and `server`, float64, what the privacy mechanism and the aggregation rule remember; `round` rounds done,
    `sent` messages sent that should carry noise, `draws` noise vectors drawn; `last` (U,) int32, the round in which
    each user was sampled last, 0 for never. No generator's state: keys are addresses."""

    round: int
    parameters: np.ndarray
    messages: np.ndarray
    memory: np.ndarray
    server: np.ndarray
    sent: int
    draws: int
    last: np.ndarray


@dataclass(frozen=True)
class Partial:
    """What comes back from one chunk: the sum of factor * update, (P,) float64, with the noise that users added; for
    each message its sender's id, its norm before clipping, its factor, whether its sender followed the strategy, and
    whether it should carry noise; and, if the setting asks for them, the messages (U, P) float32 instead of the sum."""

    total: np.ndarray
    ids: np.ndarray
    norms: np.ndarray
    factors: np.ndarray
    acting: np.ndarray
    noisy: np.ndarray
    messages: np.ndarray
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
    rule, size, state = setting.experiment.aggregation, setting.net.size, state or first_state(setting)
    while state.round < training.rounds:
        began, round = time.perf_counter(), state.round + 1
        ids = draw_cohort(setting, state, round)
        heard = arriving(setting, ids, round)
        chunks = [heard[first : first + execution.chunk] for first in range(0, len(heard), execution.chunk)]
        now = replace(setting, clip=mechanism.clip_now(state.memory))
        parts = (part for some in _in_turns(chunks, 8 * size) for part in compute(now, state.parameters, round, some))
        came = gather(parts, size, setting.stacks)
        total, weights, server = came.total, came.factors, state.server
        if rule.needs_messages:
            total, weights, server = rule.step(came.messages, came.ids, came.factors, plan.cohort, state.server)
        noise = mechanism.sum_noise(int(came.noisy.sum()), size, round, state.memory, key.fold("sum_noise"))
        if noise is not None:
            total = total + noise.vector
        aborted, parameters = mechanism.aborts(len(came.ids)), state.parameters
        if not aborted:
            parameters = setting.net.moved(state.parameters, total, training.server_lr, plan.cohort)

        messages, last = state.messages.copy(), state.last.copy()
        messages[ids] += 1  # also of those whose message is lost: it has left them
        last[ids] = round
        memory = mechanism.next_memory(state.memory, came.norms, noise, plan, round, key.fold("memory"))
        sent, draws = state.sent + int(came.noisy.sum()), state.draws + came.draws + (noise.draws if noise else 0)
        state = State(round, parameters, messages, memory, server, sent, draws, last)
        if not np.isfinite(parameters).all() or (len(came.ids) and not came.factors.any()):
            raise Diverged(f"the model, or every update, stopped being finite in round {round}")
        values = metrics.cohort(len(ids), came.norms, came.factors, came.acting, weights, now.clip)
        if aborted:
            values.append(("aborted", "all", 1.0))
        if training.dropout > 0:
            values.append(("messages", "lost", float(len(ids) - len(heard))))
        if round % training.evaluate_every == 0 or round == training.rounds:
            values += evaluate(setting, parameters, round)
        yield state, Row(round, time.perf_counter() - began, values)


def draw_cohort(setting: Setting, state: State, round: int) -> np.ndarray:
    """The platform's users of a round, sorted ids: each independently with its chance, if the mechanism lets it take
    part in this round and it has messages left."""
    mechanism, plan = setting.mechanism, setting.plan
    chance = setting.key.fold("cohort", round).uniforms(np.arange(len(setting.on_platform)), 1)[:, 0]
    drawn = setting.on_platform & (chance < mechanism.chances(plan)) & mechanism.eligible(state.last, round)
    limit = mechanism.message_limit(plan)
    return np.flatnonzero(drawn if limit is None else drawn & (state.messages < limit))


def arriving(setting: Setting, ids: np.ndarray, round: int) -> np.ndarray:
    """Those of a cohort whose messages are not lost. Nobody knows beforehand, and the server goes on dividing by the
    public expected cohort, so no guarantee depends on it: a lost message is one less that an adversary sees."""
    dropout = setting.experiment.training.dropout
    if dropout == 0:
        return ids
    return ids[setting.key.fold("dropout", round).uniforms(ids, 1)[:, 0] >= dropout]


def work(setting: Setting, parameters: np.ndarray, round: int, ids: np.ndarray) -> Partial:
    """One chunk of a round, anywhere: block after block of users whose training stays in the processor's cache."""
    start = torch.from_numpy(parameters).to(setting.device)
    if len(ids) <= setting.block:
        return train_block(setting, start, round, ids)
    blocks = (ids[first : first + setting.block] for first in range(0, len(ids), setting.block))
    return gather((train_block(setting, start, round, block) for block in blocks), len(parameters), setting.stacks)


def gather(parts: Iterable[Partial], size: int, stacked: bool) -> Partial:
    """Several parts as one, in order: sums are added up, what there is of each message is joined."""
    total, draws, seen = np.zeros(size), 0, [_nobody(size)]
    for part in parts:
        total += part.total
        draws += part.draws
        seen.append(replace(part, total=seen[0].total))  # or the sums of all chunks would be held
    joined = {name: np.concatenate([getattr(part, name) for part in seen]) for name in EACH if stacked or name != LONG}
    return replace(seen[0], total=total, draws=draws, **joined)


def train_block(setting: Setting, start: torch.Tensor, round: int, ids: np.ndarray) -> Partial:
    """The collective acts, everybody trains, updates are clipped and summed, with the noise that users add."""
    experiment, mechanism, key = setting.experiment, setting.mechanism, setting.key
    users = setting.federation.users(ids, setting.member[ids], _space)
    users, follow = act(setting, users, round)
    rule, response = mechanism.example_rule(setting.plan), mechanism.response(setting.plan)
    gram, drawn = partial(setting.grams.of, original=~follow), key.fold("train", round)
    updates = train_users(setting.net, start, users, experiment.training, rule, drawn, gram, response)
    updates = acting.edit(setting.strategy, setting.collective, start, updates, users, round, key)
    factors = mechanism.clip_factors(updates.norms, users.ids, setting.clip)
    bound, report = mechanism.largest_norms(users.ids, setting.clip), mechanism.report_norm(len(start))
    factors, noisy = acting.send(
        setting.strategy, setting.collective, users, round, key, updates.norms, factors, bound, report
    )
    total, messages, draws = np.zeros(len(start)), np.zeros((0, len(start)), np.float32), updates.draws
    if setting.stacks:
        messages = updates.weighted(factors)
    else:
        total = updates.total(factors)
    for row, user in enumerate(users.ids):
        if not noisy[row]:
            continue
        noise = mechanism.noise_of(int(user), len(start), key.fold("message_noise", round))
        if noise is None:
            break
        draws += 1
        if setting.stacks:
            messages[row] = messages[row] + noise  # in float64, and only then cast
        else:
            total += noise
    return Partial(total, users.ids, updates.norms, factors, follow, noisy, messages, draws)


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
    users, size, rule = setting.experiment.data.users, setting.net.size, setting.experiment.aggregation
    memory, server = setting.mechanism.first_memory(setting.plan, size), rule.first_memory(users, size)
    return State(0, parameters, np.zeros(users, np.int32), memory, server, 0, 0, np.zeros(users, np.int32))


def compute_here(setting: Setting, parameters: np.ndarray, round: int, chunks: list[np.ndarray]) -> list[Partial]:
    """The engine `local`: chunk after chunk in this process."""
    return [work(setting, parameters, round, ids) for ids in chunks]


_SUMS = 2**26  # bytes of sums of chunks that are held at once
LONG = "messages"
EACH = ("ids", "norms", "factors", "acting", "noisy", LONG)
"""What a Partial has of each message, LONG only if it is asked for."""
_space = Space()


def _nobody(size: int) -> Partial:
    none, no, nothing = np.zeros(0), np.zeros(0, bool), np.zeros((0, size), np.float32)
    return Partial(np.zeros(size), np.zeros(0, np.int64), none, none, no, no, nothing, 0)


def _in_turns(chunks: list[np.ndarray], bytes_each: int) -> Iterator[list[np.ndarray]]:
    """The chunks in order, as many at a time as have sums that may be held at once."""
    at_once = max(1, _SUMS // bytes_each)
    for first in range(0, len(chunks), at_once):
        yield chunks[first : first + at_once]
