"""Whether the memory suffices for a study, foreseen before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedacdp.config import ConfigError, Execution, Experiment
from fedacdp.local import training_bytes
from fedacdp.machine import free_memory
from fedacdp.setting import Setting, prepare

NODE = 2**29
"""Bytes that the process of a Flower node takes before it has done anything: PyTorch, Flower and Ray."""
_BLOCKS = 2**26  # bytes of the columns that a rule looks at at once


def fit(experiments: Iterable[Experiment], execution: Execution, given: bool) -> tuple[Execution, list[str]]:
    """The execution with a chunk that fits into the memory, and a note if it was reduced.

    ConfigError if the chunk was `given` and does not fit, or if no chunk does. On a Ray cluster, whose machines are
    not known here, nothing is reduced or refused.
    """
    if execution.ray_address is not None:
        return execution, []
    free, where = free_memory(execution.device)
    nodes = execution.nodes if execution.engine == "flower" else 1
    if free is None:
        return execution, []
    chunk = execution.chunk
    for setting in _kinds(experiments, execution):
        while chunk > 1 and _needed(setting, execution, nodes, chunk) > free:
            if given:
                raise ConfigError(f"--chunk = {chunk}: {_told(setting, execution, nodes, chunk, free, where)}")
            chunk = (chunk + 1) // 2
        if _needed(setting, execution, nodes, chunk) > free:
            raise ConfigError(f"--nodes = {nodes}: {_told(setting, execution, nodes, chunk, free, where)}")
    if chunk == execution.chunk:
        return execution, []
    note = f"--chunk = {chunk}: {execution.chunk} users at once would not fit into the {_size(free)} {where}"
    return execution.model_copy(update={"chunk": chunk}), [note]


def _kinds(experiments: Iterable[Experiment], execution: Execution) -> list[Setting]:
    """One setting for each kind of experiments that take the same memory."""
    found: dict[tuple[str, ...], Experiment] = {}
    for experiment in experiments:
        parts = (experiment.data, experiment.model, experiment.training, experiment.aggregation)
        texts = tuple(part.model_dump_json() for part in parts)
        edits = str(experiment.strategy.edits_updates)
        found.setdefault((*texts, experiment.privacy.name, edits), experiment)
    return [prepare(experiment, execution) for experiment in found.values()]


def _needed(setting: Setting, execution: Execution, nodes: int, chunk: int) -> int:
    """Bytes that all nodes together take for chunks of that size: on the CPU, or on the GPU."""
    users, records = min(chunk, setting.block, setting.experiment.data.users), int(setting.federation.sizes.max())
    batch = setting.experiment.training.batch
    rule = setting.mechanism.example_rule(setting.plan)
    shape, edited = setting.federation.schema.shape, setting.experiment.strategy.edits_updates or setting.stacks
    training = training_bytes(setting.net, shape, records, records if batch == "full" else batch, users, rule, edited)
    process = NODE if execution.engine == "flower" and execution.device == "cpu" else 0
    return nodes * (process + training) + execution.jobs * _at_server(setting, execution)


def _at_server(setting: Setting, execution: Execution) -> int:
    """Bytes of a round's messages at the server, and of what a rule that needs them makes of them; on the CPU only."""
    if not setting.stacks or execution.device != "cpu":
        return 0
    count, size, rule = _most_messages(setting), setting.net.size, setting.experiment.aggregation
    held = 2 * 4 * count * size  # as they came, and joined
    return held + rule.held_bytes(count, setting.experiment.data.users, size) + _BLOCKS


def _most_messages(setting: Setting) -> int:
    """How many messages come in a round at most, but for one in millions."""
    cohort = setting.plan.cohort
    return min(setting.plan.users, math.ceil(cohort + 5 * math.sqrt(cohort)))


def _told(setting: Setting, execution: Execution, nodes: int, chunk: int, free: int, where: str) -> str:
    needed = _needed(setting, execution, nodes, chunk)
    each, server = int(setting.federation.sizes.max()), execution.jobs * _at_server(setting, execution)
    held = ""
    if server:
        rule, count = setting.experiment.aggregation.name, _most_messages(setting)
        held = f", {_size(server)} of it for the up to {count} messages that {rule} holds in each of --jobs runs"
    return (
        f"{chunk} users at once with up to {each} records and {setting.net.size} parameters take about "
        f"{_size(needed)} on {nodes} node{'s' if nodes > 1 else ''}{held}; there are {_size(free)} {where}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
