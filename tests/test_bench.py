"""What scripts/bench.py prints was measured, in turns, on the workload it names; what is missing has no number."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedacdp.config import Execution

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(autouse=True)
def scripts_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_a_quick_run_writes_its_rows_and_a_missing_peer_has_a_reason_and_no_number(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, SCRIPTS / "bench.py", "--quick", "--only", "P6,P1,p10", "--json", out]
    done = subprocess.run([*command, "--pfl-python", sys.executable], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {"cpu", "cores", "memory_gib"} <= found["machine"].keys()
    assert {"fedacdp", "torch", "flwr", "python"} <= found["versions"].keys()
    assert found["date"].endswith("Z")
    peer, share, figure = found["rows"]
    assert [row["row"] for row in found["rows"]] == ["P1", "P6", "P10"]
    assert peer["value"] is peer["spread"] is peer["met"] is None
    assert peer["rates"] == {}
    assert "has no pfl" in peer["not_measured"]
    for row in (share, figure):
        assert 0 < row["spread"][0] <= row["value"] <= row["spread"][1] < 100
        assert row["not_measured"] is None
        assert row["met"] is None, "a quick run must not be judged"
    for row in found["rows"]:
        assert row["target"] in done.stdout
    assert "not measured: " in done.stdout


@pytest.mark.parametrize(("kind", "size"), [("mlp", 50_890), ("cnn", 26_010)])
def test_our_side_trains_the_users_of_the_workload(kind, size):
    from benchmarks import ours, workload

    setting = ours.setting(kind, "central", 3, Execution(engine="local"))
    x, y = workload.users(3)
    users = setting.federation.users(np.arange(3), np.zeros(3, bool))
    np.testing.assert_array_equal(users.x, x.numpy())
    np.testing.assert_array_equal(users.y, y.numpy())
    assert users.mask.all()
    assert setting.plan.cohort == 3
    assert setting.net.size == sum(p.numel() for p in workload.model(kind).parameters()) == size


def test_the_useful_work_is_that_of_the_dual_form_written_down():
    from benchmarks import gemm

    n, d, h, k, b = 50, gemm.INPUTS, gemm.HIDDEN, gemm.CLASSES, 10
    records, start, top = torch.randn(n, d), torch.randn(h, d), torch.randn(k, h)
    gram = records @ records.T
    with FlopCounterMode(display=False) as counter:
        moved, first = torch.zeros(n, h), records @ start.T
        for rows in torch.arange(n).split(b):
            hidden = first[rows] + gram[rows] @ moved
            slope = (hidden @ top.T).softmax(-1)
            below = slope @ top
            top -= slope.T @ hidden
            moved[rows] -= below
        gram @ moved
        moved.T @ records
    assert gemm.useful_flops(gram=False) == counter.get_total_flops()
    upper_half = sum(2 * d for row in range(n) for _ in range(row, n))
    assert gemm.useful_flops(gram=True) == counter.get_total_flops() + upper_half


def test_sides_take_turns_and_the_ratio_is_that_of_their_medians(monkeypatch):
    from benchmarks import rows, sides

    told = []

    class Fake:
        def __init__(self, name, rates):
            self.name, self.rates = name, iter(rates)

        def turn(self):
            told.append(self.name)
            return {"rate": next(self.rates)}

    rates = {"a": [30.0, 60.0, 100.0], "b": [1.0, 3.0, 2.0]}
    monkeypatch.setattr(sides, "started", lambda side, least: contextlib.nullcontext(Fake(side.name, rates[side.name])))
    a, b = sides.interleaved([sides.Side("a", "", ()), sides.Side("b", "", ())], 3, 0.1)
    assert told == ["a", "b"] * 3
    found = rows.ratio(("a", a), ("b", b))
    assert found.value == 30.0  # 60 / 2
    assert found.spread == (20.0, 50.0)
    assert found.rates == rates


def test_a_side_that_ends_says_why_and_fails_the_run(monkeypatch, capsys):
    import bench
    from benchmarks import conditions, peers, rows, sides

    row = rows.Row(
        (rows.Target("nothing", ">=", 1, "x"),), lambda c: c.interleaved(sides.Side("fedacdp", "no_such_program", ()))
    )
    monkeypatch.setitem(bench.ROWS, "P1", row)
    here = conditions.Conditions(1, True, None, Path("absent"), peers.Peers(None, build=False))
    [line], fine = bench.row("P1", here)
    assert not fine
    assert line["value"] is None
    assert "No module named benchmarks.no_such_program" in line["not_measured"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "P1,P13"], "P13: no such row; there are P1, P2"),
        (["--pfl-python", "/nowhere/python"], "--pfl-python = /nowhere/python: no such file"),
        (["--json", "/nowhere/x.json"], "--json = /nowhere/x.json: no such folder"),
        (["--repeats", "0"], "0: must be a whole number of at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(monkeypatch, capsys, arguments, reason):
    import bench

    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        bench.parse()
    assert reason in capsys.readouterr().err
