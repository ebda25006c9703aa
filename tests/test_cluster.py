"""On a running Ray cluster: the same bits, computed on every machine of it, and the cluster is left as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from fedacdp.config import ConfigError, Execution
from fedacdp.nodes import nodes
from fedacdp.rounds import NodeFailure, compute_here, run
from fedacdp.setting import prepare
from tests.conftest import alive, descendants, experiment, last_bytes, local

CLUSTER = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table
size = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=size)
cluster.add_node(**size)
ray.init(cluster.address, log_to_driver=False)
print("address", json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    machines = sum(node["Alive"] for node in ray.nodes())
    groups = sum(group["state"] != "REMOVED" for group in placement_group_table().values())
    print("state", json.dumps([machines, ray.available_resources().get("CPU", 0), groups]), flush=True)
"""
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all ports on loopback
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "3",  # the cluster's owner may think so; nodes must not
}


class Cluster:
    """Two Ray nodes of one CPU each, in a process group of their own."""

    def __init__(self, folder: str) -> None:
        environment = os.environ | {"RAY_TMPDIR": folder}
        command = [sys.executable, "-c", CLUSTER]
        pipe = subprocess.PIPE
        log = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment, start_new_session=True
        )
        self.address = self._said("address")

    def state(self) -> list[float]:
        """Ray nodes that live, CPUs that are free, and reservations that stand."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._said("state")

    def actors(self) -> dict[int, int]:
        """Flower's actors, and the Ray node that each belongs to."""
        found = {pid for pid, name in descendants(self.process.pid).items() if name.startswith("ray::ClientAppActor")}
        return {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in found}

    def _said(self, what: str):
        for line in self.process.stdout:
            word, _, value = line.partition(" ")
            if word == what:
                return json.loads(value)
        raise AssertionError(f"the cluster ended with status {self.process.wait()}")


@pytest.fixture
def cluster(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    folder = tempfile.mkdtemp(prefix="fedacdp-ray-", dir="/tmp")  # Ray's sockets need a short path
    cluster = Cluster(folder)
    started = descendants(cluster.process.pid)
    try:
        yield cluster
    finally:
        os.killpg(cluster.process.pid, signal.SIGKILL)
        cluster.process.communicate()
        shutil.rmtree(folder)
    assert not [command for pid, command in started.items() if alive(pid)]


def test_a_cluster_of_two_ray_nodes_gives_the_bits_of_the_engine_local_and_is_left_as_it_was(cluster):
    setting = prepare(experiment(), local(7))
    with nodes(Execution(nodes=2, ray_address=cluster.address, data_dir=Path("absent"))) as compute:
        assert last_bytes(setting, local(7), compute) == last_bytes(setting, local(7), compute_here)
        actors = cluster.actors()
        assert len(actors) == len(set(actors.values())) == 2
        for pid in actors:
            assert "libtorch" in Path(f"/proc/{pid}/maps").read_text()  # it has done a task: nothing else needs torch
            variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
            threads = [variable for variable in variables if variable.startswith("OMP_NUM_THREADS=")]
            assert threads == ["OMP_NUM_THREADS=1"]
        assert cluster.state() == [2, 0, 1]

        ended = threading.Event()

        def work_on():
            endless = prepare(experiment(training__rounds=10**6, training__evaluate_every=10**6), local(7))
            with pytest.raises(NodeFailure):
                list(run(endless, local(7), compute))
            ended.set()

        threading.Thread(target=work_on, daemon=True).start()
        time.sleep(1)
    assert ended.wait(20)
    deadline = time.monotonic() + 20
    while cluster.state() != [2, 2.0, 0] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert cluster.state() == [2, 2.0, 0]
    while any(alive(pid) for pid in actors) and time.monotonic() < deadline:  # Ray counts them out before they are gone
        time.sleep(0.2)
    assert not [pid for pid in actors if alive(pid)]

    too_many = Execution(nodes=3, gpus_per_node=0.5, ray_address=cluster.address)
    told = "--nodes = 3: each needs 1 CPU and 0.5 GPU; the Ray cluster has 2 CPUs, 2 of them free and 0 GPUs"
    with pytest.raises(ConfigError, match=told), nodes(too_many):
        pass
    assert cluster.state() == [2, 2.0, 0]
