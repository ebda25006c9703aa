"""Which machine, which versions, when: without these a measured number means nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.peers import Missing, Peers, version

PACKAGES = ("fedacdp", "torch", "numpy", "opacus", "flwr", "ray")


def describe(peers: Peers) -> dict[str, Any]:
    """Machine, versions and date. `load` is the machine's load average before we start: 0 on a quiet machine."""
    theirs: dict[str, str | None] = {}
    with suppress(Missing):
        python = peers.pfl_python()
        theirs = {"pfl": version(python, "pfl"), "torch of pfl": version(python, "torch")}
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": platform.platform(),
            "load": round(os.getloadavg()[0], 2),
        },
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | theirs
        | {"python": platform.python_version(), "commit": _commit()},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu() -> str:
    """The CPU's name; on Linux with its family and model, because a virtual machine's may hide what it is."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    if "model name" not in found:
        return platform.machine()
    return f"{found['model name']}, family {found.get('cpu family')}, model {found.get('model')}"


def _commit() -> str | None:
    """The commit of this checkout, with a + where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
