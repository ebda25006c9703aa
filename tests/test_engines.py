"""The engine flower gives the bits of the engine local, whatever nodes and order, and stops when a node is lost."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fedacdp.config import Execution
from fedacdp.machine import gpus_needed
from fedacdp.nodes import nodes
from fedacdp.rounds import NodeFailure, WorkFailed, compute_here, run
from fedacdp.setting import prepare
from fedacdp.sharing import joined, shares
from fedacdp.tasks import pack_task, perform, read_partials
from fedacdp.wire import pack, unpack
from tests.conftest import MECHANISMS, alive, counting, descendants, experiment, last_bytes, local
from tests.test_data import REAL

PRIVACY = {
    "none": {"name": "none"},
    "central": {"name": "central", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.5},
    "local_dpsgd": {"name": "local_dpsgd", "noise_multiplier": 0.5, "delta": 1e-3, "clip_norm": 0.5},
}


@pytest.mark.parametrize("name", PRIVACY)
def test_a_task_done_elsewhere_gives_the_same_bits(name):
    setting = prepare(experiment(privacy=PRIVACY[name]), local(16))
    chunks = [np.arange(0, 16), np.arange(16, 30), np.arange(40, 60)]
    start = setting.net.initial(setting.key)
    here = compute_here(setting, start, 2, chunks)
    there = read_partials(perform(pack_task(setting, local(16), start, 2, chunks)), 3)
    for mine, theirs in zip(here, there, strict=True):
        for field in ("total", "norms", "factors", "acting"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(theirs, field))
        assert mine.draws == theirs.draws


def test_a_task_shared_out_is_joined_in_the_order_of_its_chunks():
    setting = prepare(experiment(), local(16))
    chunks = [np.arange(first, first + 10) for first in (0, 10, 20, 30, 40)]
    start = setting.net.initial(setting.key)
    whole = read_partials(perform(pack_task(setting, local(16), start, 1, chunks)), 5)
    for cut in (1, 2, 4):
        parts = [perform(pack_task(setting, local(16), start, 1, part)) for part in (chunks[:cut], chunks[cut:])]
        for mine, theirs in zip(whole, read_partials(joined(parts), 5), strict=True):
            np.testing.assert_array_equal(mine.total, theirs.total)
    for nodes_there in (1, 2, 3, 9):
        parts = shares(pack_task(setting, local(16), start, 1, chunks), nodes_there)
        assert len(parts) == min(nodes_there, 5)
        for mine, theirs in zip(whole, read_partials(joined([perform(part) for part in parts]), 5), strict=True):
            np.testing.assert_array_equal(mine.total, theirs.total)


def test_a_missing_part_is_never_taken_for_a_smaller_cohort():
    setting = prepare(experiment(), local(16))
    answer = perform(pack_task(setting, local(16), setting.net.initial(setting.key), 1, [np.arange(5)]))
    with pytest.raises(NodeFailure, match="1 partial sums came back for 2 chunks"):
        read_partials(answer, 2)


def test_what_a_part_raises_on_a_node_comes_back_with_its_traceback(monkeypatch):
    setting = prepare(experiment(), local(16))

    def broken(self, users, round, key):
        raise ZeroDivisionError("a fault in the strategy")

    monkeypatch.setattr(type(setting.experiment.strategy), "data", broken)
    task = pack_task(setting, local(16), setting.net.initial(setting.key), 1, [np.arange(60)])
    with pytest.raises(WorkFailed, match="ZeroDivisionError: a fault in the strategy"):
        read_partials(perform(task), 1)


def test_a_node_with_other_code_does_nothing(monkeypatch):
    setting = prepare(experiment(), local(16))
    execution = Execution(ray_address="head:6379", data_dir=Path("absent"))
    start = setting.net.initial(setting.key)
    assert read_partials(perform(pack_task(setting, execution, start, 1, [np.arange(5)])), 1)
    monkeypatch.setattr("fedacdp.tasks.code", lambda: "an older checkout")
    task = pack_task(setting, execution, start, 1, [np.arange(5)])
    monkeypatch.undo()
    with pytest.raises(WorkFailed, match="has other code: fedacdp, strategies, torch and numpy must be the same"):
        read_partials(perform(task), 1)


def test_a_node_reads_data_where_the_command_would_wherever_it_was_started(tmp_path, monkeypatch):
    setting = prepare(experiment(), local(16))
    monkeypatch.chdir(tmp_path)
    sent = {}
    for given in ("data", "/data", "~/data"):
        task = pack_task(setting, Execution(data_dir=Path(given)), setting.net.initial(setting.key), 1, [np.arange(5)])
        sent[given] = unpack(task)[1]["execution"]["data_dir"]
    assert sent == {"data": str(tmp_path / "data"), "/data": "/data", "~/data": "~/data"}


def test_bytes_from_elsewhere_are_data_or_refused():
    arrays = {"a": np.arange(3), "b": np.zeros((2, 0), np.float32), "c": np.array([True])}
    found, about = unpack(pack(arrays, {"x": [1, "y"]}))
    assert about == {"x": [1, "y"]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    for damaged in (b"", b"x" * 7, b"\xff" * 64, pack(arrays, {})[:-1]):
        with pytest.raises(ValueError, match="damaged"):
            unpack(damaged)


def test_gpu_shares_that_the_machine_lacks_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert gpus_needed(2, 0.0) == 0
    assert gpus_needed(4, 0.25) == 1
    for count, share in ((5, 0.25), (2, 0.6), (2, 1.0), (1, 2.0)):
        with pytest.raises(Exception, match=r"--gpus-per-node = .* this machine has 1"):
            gpus_needed(count, share)
    with pytest.raises(Exception, match="whole number"):
        gpus_needed(1, 1.5)


@pytest.fixture(scope="module")
def two_nodes():
    with nodes(Execution(nodes=2, data_dir=REAL)) as compute:
        yield compute


@pytest.mark.parametrize("name", PRIVACY)
def test_flower_gives_the_bits_of_the_engine_local(two_nodes, name):
    for chunk in (7, 64):
        setting = prepare(experiment(privacy=PRIVACY[name]), local(chunk))
        assert last_bytes(setting, local(chunk), two_nodes) == last_bytes(setting, local(chunk), compute_here)


@pytest.mark.parametrize("name", ["none", "local_update", "randomised_response"])
def test_flower_gives_the_bits_of_the_engine_local_where_users_are_counted(two_nodes, name):
    if not (REAL / "german").is_dir():
        pytest.skip("needs the published files of german in ../shared/data")
    model = {"name": "histogram", "cells": ["credit_history", "age"], "bins": {"age": [30, 45]}}
    strategy = {"name": "poisoning", "alpha": 0.2}
    counted = counting(data={"name": "german", "users": 800}, model=model, strategy=strategy, privacy=MECHANISMS[name])
    execution = Execution(engine="local", chunk=150, data_dir=REAL)
    setting = prepare(counted, execution)
    assert last_bytes(setting, execution, two_nodes) == last_bytes(setting, execution, compute_here)


def test_runs_in_flight_at_once_do_not_mix(two_nodes):
    settings = [prepare(experiment(seed=seed), local(16)) for seed in range(4)]
    found: dict[int, bytes] = {}

    def one(seed):
        found[seed] = last_bytes(settings[seed], local(16), two_nodes)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found == {seed: last_bytes(settings[seed], local(16), compute_here) for seed in range(4)}


def test_an_error_on_a_node_names_it_and_the_nodes_live_on(two_nodes):
    setting = prepare(experiment(), local())
    with pytest.raises(WorkFailed, match="IndexError"):
        two_nodes(setting, setting.net.initial(setting.key), 1, [np.array([10**6])])
    assert two_nodes(setting, setting.net.initial(setting.key), 1, [np.arange(3)])[0].norms.shape == (3,)


def test_a_killed_worker_ends_the_simulation_and_leaves_nothing_behind():
    setting = prepare(experiment(training__rounds=10_000, training__evaluate_every=10_000), local(16))
    before = set(descendants(os.getpid()))
    with pytest.raises(NodeFailure), nodes(Execution(nodes=1, data_dir=Path("absent"))) as compute:  # noqa: PT012
        for number, _ in zip(itertools.count(), run(setting, local(16), compute), strict=False):
            if number == 5:
                started = {pid: c for pid, c in descendants(os.getpid()).items() if pid not in before}
                actors = [pid for pid, command in started.items() if command.startswith("ray::ClientAppActor")]
                assert actors
                for pid in actors:
                    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(alive(pid) for pid in started):
        time.sleep(0.2)
    assert not [command for pid, command in started.items() if alive(pid)]
