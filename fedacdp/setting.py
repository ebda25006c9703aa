"""What follows from an experiment: data in users' hands, model, noise, and who is a member of which collective."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedacdp.config import ConfigError, Execution, Experiment
from fedacdp.data import shared
from fedacdp.data.base import Federation, Source, federate
from fedacdp.kept import Kept
from fedacdp.keys import Key
from fedacdp.local import block_size
from fedacdp.local.grams import Grams
from fedacdp.models.base import Learner
from fedacdp.privacy.base import Mechanism, Plan
from fedacdp.privacy.guarantee import Guarantee
from fedacdp.strategy import Strategy
from fedacdp.users import Users


@dataclass(frozen=True)
class Setting:
    """An experiment with everything that follows from it: data in users' hands, model, noise, the strategy with what
    members agreed on, the number of each user's collective, (N,) int8, -1 for none, and who is a user of this platform
    at all, (N,) bool, as many as the plan counts. Users are trained `block` at a time. `clip`: the clip norm in force
    in a round; `watched`: the messages are wanted one by one."""

    experiment: Experiment
    federation: Federation
    grams: Grams
    net: Learner
    strategy: Strategy
    collective: np.ndarray
    on_platform: np.ndarray
    plan: Plan
    mechanism: Mechanism
    device: str
    block: int
    clip: float
    watched: bool = False

    @property
    def stacks(self) -> bool:
        """Whether messages come back one by one: the aggregation rule needs them, or somebody watches."""
        return self.watched or self.experiment.aggregation.needs_messages

    @property
    def key(self) -> Key:
        """The root of all random streams of a run."""
        return Key(self.experiment.seed)

    @cached_property
    def member(self) -> np.ndarray:
        """Who is a member of a collective, (N,) bool."""
        return self.collective >= 0

    @property
    def guarantee(self) -> Guarantee:
        """The guarantee of a whole run, with what the mechanism's public numbers tell about members, and what members
        who leave out their noise take from it."""
        promise, wanting = self.mechanism.guarantee(self.plan), self.strategy.wanting(self.federation.group)
        warnings = self.mechanism.reveals(self.member, wanting)
        if self.strategy.protocols & {"skips_noise", "noise_as_signal"}:
            warnings += self.mechanism.weakened(self.plan, int(self.member.sum()))
        return replace(promise, warnings=promise.warnings + warnings)

    @cached_property
    def calibrated(self) -> str:
        """The experiment as JSON with the noise multiplier in force in place of epsilon, from which a node prepares the
        same setting without accounting."""
        return self.experiment.with_privacy(self.mechanism).for_nodes.text


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
    source = shared.load(experiment.data.of_seed(experiment.seed), execution.data_dir, share)
    experiment.check(source)
    key = Key(experiment.seed)
    slot = (experiment.data.model_dump_json(), str(execution.data_dir), str(experiment.seed))
    federation, grams = _federations(slot, lambda: _federated(experiment, source, key))
    strategy, choice = experiment.strategy, key.fold("members")
    collective = strategy.assigned(federation.group, choice)
    on_platform = strategy.on_platform(collective, choice)
    plan = replace(experiment.plan(len(source.train)), users=int(on_platform.sum()))
    net = experiment.model.net(source.train.schema)
    experiment.aggregation.check(experiment.data.users, net.size, plan.cohort)
    mechanism = experiment.privacy.for_users(federation.group, on_platform).calibrated(plan)
    records, shape = int(federation.sizes.max()), source.train.schema.shape
    rule, edited = mechanism.example_rule(plan), strategy.edits_updates or experiment.aggregation.needs_messages

    def own(ids: np.ndarray) -> Iterator[Users]:
        for first in range(0, len(ids), _TOGETHER):
            some = ids[first : first + _TOGETHER]
            yield federation.users(some, collective[some] >= 0)

    return Setting(
        experiment=experiment,
        federation=federation,
        grams=grams,
        net=net,
        strategy=strategy.for_model(net.shapes).agreed(collective, own, federation.schema, key.fold("agreed")),
        collective=collective,
        on_platform=on_platform,
        plan=plan,
        mechanism=mechanism,
        clip=mechanism.clip_now(mechanism.first_memory(plan, net.size)),
        device=execution.device,
        block=block_size(net, shape, records, rule, execution.device, edited),
    )


def _federated(experiment: Experiment, source: Source, key: Key) -> tuple[Federation, Grams]:
    federation = federate(experiment.data, source, key)
    return federation, Grams(federation.sizes)


def _held_bytes(held: tuple[Federation, Grams]) -> int:
    return held[0].order.nbytes + held[0].offsets.nbytes + held[1].nbytes


def _setting_bytes(setting: Setting) -> int:
    return _held_bytes((setting.federation, setting.grams)) + setting.member.nbytes + setting.on_platform.nbytes


_TOGETHER = 256  # members whose records are pooled at once
_lock = threading.Lock()
_federations, _settings = Kept(_held_bytes), Kept(_setting_bytes)
