"""Memory that will not suffice is foreseen: reduced with a note, or refused, before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedacdp import memory
from fedacdp.cli import main
from fedacdp.config import ConfigError, Execution
from fedacdp.machine import free_memory
from tests.conftest import experiment

MIB = 2**20
TRAINS = """
import os, resource, sys
import numpy as np
import torch
from torch import nn
from fedacdp.training import Training
from fedacdp.keys import Key
from fedacdp.local import train_users, training_bytes
from fedacdp.models.base import Net
from fedacdp.privacy.base import ExampleRule
from fedacdp.users import Schema, Users

torch.set_num_threads(1)
records = 30
networks = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)),
    "wide": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10)),
    "conv": lambda: nn.Sequential(nn.Conv2d(1, 16, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)),
    "general": lambda: nn.Sequential(nn.Conv2d(1, 16, 8, 4), nn.GELU(), nn.Flatten(), nn.Linear(576, 10)),
}


def train(net, rule, users):
    x = np.random.default_rng(0).random((users, records, 1, 28, 28), np.float32)
    block = Users(np.arange(users), x, np.zeros((users, records), np.int64), np.ones((users, records), bool),
                  np.zeros(users, bool), Schema((1, 28, 28), tuple("0123456789")))
    how = Training(rounds=1, sampling_prob=1.0, local_steps=3, batch=10, local_lr=0.1)
    updates = train_users(net, torch.from_numpy(net.initial(Key(0))), block, how, rule, Key(1))
    updates.total(np.ones(users) / updates.norms)


for kind in sys.argv[1:]:
    if os.fork() == 0:  # peaks of a process are for ever
        with torch.device("meta"):
            net = Net(networks[kind.removesuffix("+noise")]())
        rule = ExampleRule(1.0, 1.0, 10 / records, 10.0, "vectorised") if kind.endswith("+noise") else None
        train(net, rule, 2)  # whatever is loaded at the first call
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        train(net, rule, 400)
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(kind, training_bytes(net, (1, 28, 28), records, 10, 400, rule, False), taken, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_what_is_foreseen_is_what_training_takes_or_somewhat_more():
    """And not a multiple of it, or studies would be refused that fit."""
    kinds = ["dense", "dense+noise", "wide", "conv", "general", "general+noise"]
    run = subprocess.run([sys.executable, "-c", TRAINS, *kinds], capture_output=True, text=True, check=True)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [kind for kind, _, _ in lines] == kinds
    for kind, foreseen, taken in lines:
        assert int(taken) > 30 * MIB, kind
        assert int(taken) < int(foreseen) < 8 * int(taken), kind


def test_a_chunk_that_does_not_fit_is_halved_with_a_note_or_refused_if_it_was_given(monkeypatch):
    monkeypatch.setattr("fedacdp.setting.block_size", lambda *_: 2**31)  # as on a GPU: a chunk is trained at once
    experiments = [experiment(data__users=1000, seed=seed) for seed in (0, 1)]
    execution = Execution(engine="local", chunk=512, data_dir=Path("absent"))
    assert memory.fit(experiments, execution, given=True) == (execution, [])
    monkeypatch.setattr(memory, "free_memory", lambda device: (MIB // 2, "free on this machine"))
    fitted, [note] = memory.fit(experiments, execution, given=False)
    assert fitted.chunk < 512
    assert note == f"--chunk = {fitted.chunk}: 512 users at once would not fit into the 0.5 MiB free on this machine"
    assert memory.fit(experiments, fitted, given=True) == (fitted, [])
    told = "--chunk = 512: 512 users at once with up to 2 records and 650 parameters take about 0.8 MiB on 1 node"
    with pytest.raises(ConfigError, match=told):
        memory.fit(experiments, execution, given=True)
    monkeypatch.setattr(memory, "free_memory", lambda device: (100, "free on this machine"))
    with pytest.raises(ConfigError, match="--nodes = 1: 1 users at once"):
        memory.fit(experiments, execution, given=False)
    monkeypatch.setattr(memory, "free_memory", lambda device: (None, ""))
    assert memory.fit(experiments, execution, given=True) == (execution, [])


def test_each_node_counts(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: (3 * memory.NODE, "free on this machine"))
    assert memory.fit([experiment()], Execution(nodes=2), given=False)[1] == []
    with pytest.raises(ConfigError, match=r"--nodes = 4: .* on 4 nodes; there are 1.5 GiB free on this machine"):
        memory.fit([experiment()], Execution(nodes=4), given=False)


def test_a_run_that_does_not_fit_is_refused_in_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(memory, "free_memory", lambda device: (1000, "free on this machine"))
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["fedacdp", "run", "quickstart", "--engine", "local", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_this_machine_has_memory():
    free, where = free_memory()
    assert free is None or 2**27 < free < 2**46
    assert where == ("" if free is None else "free on this machine")
