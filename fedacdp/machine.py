"""What this machine has, and whether a study fits on it: what does not is refused before anything starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedacdp.config import ConfigError, Execution, Experiment
from fedacdp.faults import explain

JOBS_PER_CORE = 16
"""A run in flight is a thread of this process: most of its time it waits for nodes, but rounds end on these cores, and
each keeps its model and rows here. A few per node keep all nodes busy; beyond this bound they only take turns."""


def schedule(experiments: Sequence[Experiment], asked: dict[str, Any]) -> tuple[Execution, list[str]]:
    """The execution that the options ask for, and a note on every default that was reduced to fit.

    An option that is None was not given. ConfigError names the option and says what the machine, or the study, has.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    notes = []
    count, users = cores(), max(experiment.data.users for experiment in experiments)
    machine = f"this machine has {count} CPU core{'s' if count > 1 else ''}"
    _within(given, "chunk", users, f"the study has {users} users" + _at_most(experiments))
    _within(given, "jobs", JOBS_PER_CORE * count, f"{machine}, for {JOBS_PER_CORE} runs in flight each")
    if given.get("ray_address") is None:
        _within(given, "nodes", count, machine)
        if "nodes" not in given and count < Execution.model_fields["nodes"].default:
            given["nodes"] = count
            notes.append(f"--nodes = {count} instead of {Execution.model_fields['nodes'].default}: {machine}")
    execution = _execution(given)
    _check_engine(execution)
    _check_gpus(execution)
    return execution, notes


def _at_most(experiments: Sequence[Experiment]) -> str:
    return " at most" if len({experiment.data.users for experiment in experiments}) > 1 else ""


def _within(given: dict[str, Any], option: str, most: int, has: str) -> None:
    value = given.get(option)
    if value is not None and not 1 <= value <= most:
        raise ConfigError(f"--{option} = {value}: must be between 1 and {most}; {has}")


def _execution(given: dict[str, Any]) -> Execution:
    try:
        return Execution(**given)
    except ValidationError as error:
        faults = (line.partition(" ") for line in explain(error, Execution))
        raise ConfigError("; ".join(f"--{name.replace('_', '-')} {rest}" for name, _, rest in faults)) from None


def _check_engine(execution: Execution) -> None:
    if execution.engine == "local":
        for option, value in (("gpus-per-node", execution.gpus_per_node), ("ray-address", execution.ray_address)):
            if value:
                raise ConfigError(f"--{option} = {value}: only with --engine flower; the engine local has no nodes")


def _check_gpus(execution: Execution) -> None:
    """Each node of the engine flower sees the GPUs that it reserves, and no other."""
    share = execution.gpus_per_node
    _check_share(share)
    if execution.ray_address is None:
        gpus_needed(execution.nodes, share)
    if execution.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device = 'cuda': this machine has no GPU that torch can use")
        if execution.engine == "flower" and not share:
            raise ConfigError("--gpus-per-node = 0: with --device cuda each node needs a share of a GPU, like 0.25")
    elif share:
        raise ConfigError(f"--gpus-per-node = {share}: only with --device cuda; without it nodes use no GPU")


def _check_share(share: float) -> None:
    if share > 1 and share != int(share):
        raise ConfigError(f"--gpus-per-node = {share}: must be a share between 0 and 1 or a whole number")


def gpus_needed(nodes: int, share: float) -> int:
    """How many GPUs `nodes` nodes with `share` of a GPU each take; ConfigError where this machine has too few.

    Ray never splits a share below 1 over two GPUs: with 0.6 each, two GPUs carry two nodes, not three.
    """
    if not share:
        return 0
    _check_share(share)
    import torch

    present = torch.cuda.device_count()
    needed = nodes * int(share) if share > 1 else -(-nodes // int(1 / share + 1e-9))
    if needed > present:
        raise ConfigError(f"--gpus-per-node = {share}: {nodes} nodes need {needed} GPU(s), this machine has {present}")
    return needed


def cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The CPU cores that this process may use: those of its affinity, within the quotas of its Linux control groups.

    A quota of one and a half cores counts as two.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        group, names = root / path.lstrip("/"), ["cpu.max"]  # version 2
        if "cpu" in controllers.split(","):  # version 1
            group, names = root / "cpu" / path.lstrip("/"), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        for place in (group, *group.parents):
            files = [place / name for name in names]
            if all(file.is_file() for file in files):
                quota, period = " ".join(file.read_text() for file in files).split()
                if quota not in ("max", "-1"):
                    count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def free_memory(device: str = "cpu") -> tuple[int | None, str]:
    """Bytes that are free on the device, None where that cannot be told, and where that is, in words.

    On Linux what the system can give without swapping, within the limits of this process's control groups.
    """
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0], "free on the GPU"
    info = Path("/proc/meminfo")
    if not info.exists():
        return None, ""
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    free = [int(lines["MemAvailable"].split()[0]) * 1024]
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        files = [Path("/sys/fs/cgroup") / name for name in (most, used)]
        if all(file.is_file() for file in files):
            limit, taken = (file.read_text().strip() for file in files)
            if limit != "max":
                free.append(int(limit) - int(taken))
    return max(0, min(free)), "free on this machine"


def reach(address: str) -> None:
    """ConfigError if nothing listens at HOST:PORT, which Ray itself would wait minutes for."""
    host, _, port = address.rpartition(":")
    if not host:
        return  # "auto": Ray looks for a cluster on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"--ray-address = {address!r}: no Ray cluster answers there ({error})") from None
