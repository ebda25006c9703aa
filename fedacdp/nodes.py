"""The engine `flower`: nodes on Flower's simulation runtime, in a process group of their own.

Flower and Ray live in a child process: their threads, signal handlers, logging and crashes never reach ours. The child
leads its own session, so Ctrl-C does not touch it and one `killpg` ends it with all of Ray; if we die first, the pipe
to its standard input closes and it ends itself. Nothing in the child is worth saving: state and results are ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np

from fedacdp.config import ConfigError, Execution
from fedacdp.machine import gpus_needed, reach
from fedacdp.rounds import Compute, NodeFailure, Partial
from fedacdp.setting import Setting
from fedacdp.tasks import pack_task, read_partials

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_max_direct_call_object_size": str(4 * 2**20),  # above it (100 KiB by default) Ray stores a message: 4 ms more
    "OMP_NUM_THREADS": "1",  # one thread per node, or the bits of a result would depend on the machine
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""The environment of the process that hosts Flower, and of nodes wherever they are."""
OWN_RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one switch that keeps all of Ray's ports on loopback
    "RAY_AUTH_MODE": "token",
    "RAY_prestart_worker_first_driver": "0",  # these workers would never be used: Flower starts its own actors
}
"""With a Ray of our own. In a cluster of the user's, addresses and token are theirs, from their environment."""
START = 300.0  # seconds that the nodes may take to start
SOCKET_ROOM = 64  # what Ray adds to the folder's name before it binds a socket, of the 107 bytes that Linux allows


@contextlib.contextmanager
def nodes(execution: Execution, reply_within: float = 3600.0) -> Iterator[Compute]:
    """Start the nodes and give the function that computes chunks on them, which several threads may call at once.

    It returns one Partial per chunk, in the order of the chunks, or raises WorkFailed if the code of a node raised and
    NodeFailure if a node died or did not answer within `reply_within` seconds. Starting takes 10 to 20 s, which the
    first call waits for. ConfigError if the machine has too few GPUs, or at once if `ray_address` is given and the
    cluster does not answer or has too little.
    """
    base = tempfile.gettempdir()
    gpus = 0
    if execution.ray_address is None:
        gpus = gpus_needed(execution.nodes, execution.gpus_per_node)
    else:
        reach(execution.ray_address)
    folder = Path(tempfile.mkdtemp(prefix="fedacdp-", dir=base if len(base) + 18 + SOCKET_ROOM <= 107 else "/tmp"))
    environment = QUIET | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ray: dict[str, Any] = {"address": execution.ray_address or "local", "log_to_driver": False}
    if execution.ray_address is None:
        ray |= {
            "num_cpus": execution.nodes,
            "num_gpus": gpus,
            "include_dashboard": False,
            "object_store_memory": 256 * 2**20,
            "_temp_dir": str(folder),
            "_node_ip_address": "127.0.0.1",
        }
        environment |= OWN_RAY | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        ray["runtime_env"] = {"env_vars": environment.copy()}
    options = {
        "folder": str(folder),
        "nodes": execution.nodes,
        "gpus_per_node": execution.gpus_per_node,
        "reply_within": reply_within,
        "ray": ray,
    }
    environment["FLWR_HOME"] = str(folder / "flwr")
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", "from fedacdp.flower import host; host()", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | environment,
            start_new_session=True,
        )
    local = threading.local()

    def connect() -> Connection:
        deadline = time.monotonic() + START
        while child.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return Client(str(folder / "socket"), "AF_UNIX")
            time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):
            raise ConfigError((folder / "refused").read_text())
        raise NodeFailure(f"the nodes did not start: {_reason(child, folder)}")

    def compute(setting: Setting, parameters: np.ndarray, round: int, chunks: list[np.ndarray]) -> list[Partial]:
        if not chunks:
            return []
        try:
            connection: Connection = getattr(local, "connection", None) or connect()
            local.connection = None  # until the answer is here: whoever interrupts us must not leave it for the next
            connection.send_bytes(pack_task(setting, execution, parameters, round, chunks))
            answer = connection.recv_bytes()
            local.connection = connection
        except (EOFError, OSError) as error:
            raise NodeFailure(_reason(child, folder)) from error
        return read_partials(answer, len(chunks))

    try:
        if execution.ray_address is not None:
            connect().close()
        yield compute
    finally:
        _end(child, folder)


def _reason(child: subprocess.Popen[bytes], folder: Path) -> str:
    """Why the child is gone or silent, as far as its exit status and the end of its log can tell."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=2)
    status = "is not answering" if child.returncode is None else f"ended with status {child.returncode}"
    log = (folder / "log").read_text(errors="replace").strip().splitlines() if (folder / "log").exists() else []
    return "\n".join([f"the process that hosts Flower {status}; end of its log:", *log[-20:]])


def _end(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill the child's process group until nothing of it is left, and remove its folder."""
    for _ in range(10):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            break
        child.poll()
        time.sleep(0.05)
    child.wait()
    if child.stdin:
        child.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)
