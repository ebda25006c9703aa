"""The command line as a user meets it: a study runs, resumes, is read, and wrong input ends in one line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from fedacdp.cli import main
from fedacdp.config import ConfigError, Execution
from fedacdp.grid import read_study
from fedacdp.machine import cores, schedule
from fedacdp.results import COLUMNS, table
from fedacdp.rounds import compute_here
from fedacdp.study import execute, perform, plan
from tests.conftest import experiment, local

STUDY = """
question = "Does it run?"
[base]
data = { name = "digits", users = 60, partition = "iid" }
model = { name = "logistic" }
strategy = { name = "planting", alpha = 0.1, y_star = 8, signal = "patch" }
privacy = { name = "central", noise_multiplier = 1.0, delta = 1e-5, clip_norm = 1.0 }
training = { rounds = 4, sampling_prob = 0.5, local_steps = 2, batch = 4, local_lr = 0.1 }
[grid]
"seed" = [0, 1]
"""


class Silent:
    def begin(self, rounds):
        self.rounds = rounds

    def advance(self, task, rounds):
        pass

    def end(self, task, status, reason):
        self.last = (status, reason)


def fedacdp(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fedacdp.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY)
    return path


def do(path, out, execution=None):
    execution = execution or local()
    found = read_study(path)
    folder, tasks = plan(found, out, execution)
    execute(found, folder, tasks, execution, compute_here, Silent())
    return folder, tasks


def test_a_study_leaves_its_files_and_is_not_run_twice(study, tmp_path):
    folder, tasks = do(study, tmp_path / "out")
    assert [task.role for task in tasks] == ["baseline"] * 2 + ["run"] * 2
    for task in tasks:
        files = {path.name for path in task.folder.iterdir()}
        model = {"model.safetensors"} if task.role == "run" else set()
        assert files == {"experiment.json", "manifest.json", "rounds.parquet"} | model
        assert json.loads((task.folder / "manifest.json").read_text())["status"] == "done"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert do(study, tmp_path / "out")[1] == []
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert {a.shape for a in load_file(next(iter(before))).values()} == {(10, 64), (10,)}


def test_the_table_is_tidy_and_carries_guarantee_and_baseline(study, tmp_path):
    _folder, tasks = do(study, tmp_path / "out")
    frame = table(tmp_path / "out")
    assert list(frame.columns) == COLUMNS
    assert not frame.duplicated(["run_id", "round", "metric", "group"]).any()
    central = frame[frame["mechanism"] == "central"]
    assert (central["unit"] == "user").all()
    manifest = json.loads((tasks[-1].folder / "manifest.json").read_text())
    assert set(central["epsilon"]) == {manifest["guarantee"]["epsilon"]}
    pairs = frame.pivot_table(index=["run_id", "alpha", "seed", "round", "group"], columns="metric", values="value")
    pairs = pairs.dropna(subset=["success"]).reset_index()
    alone = pairs[pairs["alpha"] == 0].set_index(["seed", "round", "group"])["success"]
    for row in pairs[pairs["alpha"] > 0].itertuples():
        assert row.success_baseline == alone[row.seed, row.round, row.group]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(study, tmp_path, stop_after):
    whole, _ = do(study, tmp_path / "whole")
    execution = local().model_copy(update={"checkpoint_every": 1})
    found = read_study(study)
    folder, tasks = plan(found, tmp_path / "cut", execution)
    calls = []

    def dies(setting, parameters, round, chunks):
        calls.append(round)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return compute_here(setting, parameters, round, chunks)

    with pytest.raises(KeyboardInterrupt):
        perform(found, tasks[-1], execution, dies, Silent())
    assert (tasks[-1].folder / "checkpoint.safetensors").exists()
    resumed = []

    def counts(setting, parameters, round, chunks):
        resumed.append(round)
        return compute_here(setting, parameters, round, chunks)

    assert perform(found, tasks[-1], execution, counts, Silent()) == "done"
    assert resumed[0] == stop_after + 1
    name = tasks[-1].experiment.run_id
    for file in ("model.safetensors",):
        assert (folder / name / file).read_bytes() == (whole / name / file).read_bytes()
    left, right = (pd.read_parquet(f / name / "rounds.parquet").drop(columns="seconds") for f in (folder, whole))
    pd.testing.assert_frame_equal(left, right)
    assert not (tasks[-1].folder / "checkpoint.safetensors").exists()


def test_a_run_that_fails_is_recorded_and_does_not_stop_the_others(study, tmp_path):
    execution, found = local(), read_study(study)
    folder, tasks = plan(found, tmp_path / "out", execution)

    def fails_once(setting, parameters, round, chunks):
        if setting.experiment.run_id == tasks[0].experiment.run_id:
            raise RuntimeError("the strategy has a fault")
        return compute_here(setting, parameters, round, chunks)

    assert execute(found, folder, tasks, execution, fails_once, Silent()) == 1
    manifest = json.loads((tasks[0].folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["reason"]) == ("failed", "RuntimeError: the strategy has a fault")
    assert [task.folder for task in plan(found, tmp_path / "out", execution)[1]] == [tasks[0].folder]


def test_a_run_whose_noise_was_not_drawn_as_accounted_fails(study, tmp_path, monkeypatch):
    from fedacdp.privacy.central import Central

    monkeypatch.setattr(Central, "sum_noise", lambda *_: None)
    found = read_study(study)
    _folder, tasks = plan(found, tmp_path / "out", local())
    display = Silent()
    assert perform(found, tasks[-1], local(), compute_here, display) == "failed"
    assert "0 noise vectors were drawn where 4 are accounted for" in display.last[1]


def test_another_study_under_the_same_name_is_refused(study, tmp_path):
    do(study, tmp_path / "out")
    study.write_text(STUDY.replace("Does it run?", "Something else?"))
    done = fedacdp("run", str(study), "--out", str(tmp_path / "out"), "--engine", "local")
    assert done.returncode == 2
    assert "holds another study" in done.stderr


def test_run_and_table_and_list_from_the_shell(study, tmp_path):
    out = str(tmp_path / "out")
    done = fedacdp(
        "run", str(study), "--out", out, "--engine", "local", "--set", "seed=3", "--set", "training.rounds=2"
    )
    assert done.returncode == 0, done.stderr
    assert "central noise_multiplier=1" in done.stderr
    assert "report.html" in done.stderr
    frames = {
        "csv": pd.read_csv(io.StringIO(fedacdp("table", out).stdout)),
        "json": pd.read_json(io.StringIO(fedacdp("table", out, "--format", "json").stdout)),
    }
    assert set(frames["csv"]["seed"]) == {3}
    assert len(frames["csv"]) == len(frames["json"])
    assert "| central noise_multiplier=1 | 0.1 | 1 |" in fedacdp("table", out, "--format", "md").stdout
    for what in ("strategies", "mechanisms", "datasets", "models", "aggregations", "experiments"):
        listed = fedacdp("list", what)
        assert listed.returncode == 0
        assert len(listed.stdout.splitlines()) > 1
    assert "planting" in fedacdp("list").stdout


BAD = [
    (("run", "STUDY", "--set", "strategy.y_star=99"), "strategy.y_star = 99"),
    (("run", "STUDY", "--set", "training.rounds=-1"), "training.rounds = -1"),
    (("run", "STUDY", "--set", 'privacy.name="centrall"'), "centrall"),
    (("run", "STUDY", "--set", "trainning.rounds=3"), "trainning"),
    (("run", "STUDY", "--set", "data.users=1000000"), "data.users = 1000000"),
    (("run", "STUDY", "--set", "rounds"), "--set rounds"),
    (("run", "STUDY", "--engine", "flour"), "--engine = 'flour'"),
    (("run", "STUDY", "--chunk", "0"), "--chunk = 0"),
    (("run", "STUDY", "--nodes", "x"), "--nodes"),
    (("run", "STUDY", "--device", "tpu"), "--device = 'tpu'"),
    (("run", "STUDY", "--nonsense", "1"), "--nonsense"),
    (("run", "STUDY", "--set", "data={name='mnist', users=10}", "--data-dir", "absent"), "mnist"),
    (("run", "absent.toml"), "absent.toml: no such study file"),
    (("run", "no-such-study"), "no-such-study: no such study; known: "),
    (("table", "absent"), "absent: no such folder"),
    (("report", "absent"), "absent"),
    (("table", "."), "no finished runs"),
    (("list", "cats"), "cats"),
    (("data", "fetch", "cats"), "unknown data set 'cats'"),
    (("runn",), "runn"),
]


@pytest.mark.parametrize(("words", "told"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_wrong_input_ends_with_one_line_and_leaves_nothing(words, told, study, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    words = [str(study) if word == "STUDY" else word for word in words]
    done = fedacdp(*words, cwd=folder)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(folder.iterdir()) == []


TOO_MUCH = [
    ("--nodes 3", "--nodes = 3: must be between 1 and 2; this machine has 2 CPU cores"),
    ("--nodes 0", "--nodes = 0: must be between 1 and 2"),
    ("--jobs 33", "--jobs = 33: must be between 1 and 32; this machine has 2 CPU cores, for 16 runs in flight each"),
    ("--jobs -1", "--jobs = -1: must be between 1 and 32"),
    ("--chunk 61", "--chunk = 61: must be between 1 and 60; the study has 60 users"),
    ("--chunk 0", "--chunk = 0: must be between 1 and 60"),
    ("--device cuda --gpus-per-node 0.6", "--gpus-per-node = 0.6: 2 nodes need 2 GPU(s), this machine has 1"),
    ("--device cuda --gpus-per-node 1.5", "--gpus-per-node = 1.5: must be a share between 0 and 1 or a whole number"),
    ("--device cuda --gpus-per-node inf", "--gpus-per-node = inf: "),
    ("--device cuda --gpus-per-node -1", "--gpus-per-node = -1.0: "),
    ("--device cuda", "--gpus-per-node = 0: with --device cuda each node needs a share of a GPU"),
    ("--gpus-per-node 0.5", "--gpus-per-node = 0.5: only with --device cuda"),
    ("--gpus-per-node 0.5 --engine local", "--gpus-per-node = 0.5: only with --engine flower"),
    ("--ray-address head:6379 --engine local", "--ray-address = head:6379: only with --engine flower"),
    ("--ray-address ray://head:10001", "--ray-address = 'ray://head:10001': must be HOST:PORT"),
    ("--ray-address local", "--ray-address = 'local': must be HOST:PORT"),
    ("--ray-address 127.0.0.1:1 --nodes 64", "--ray-address = '127.0.0.1:1': no Ray cluster answers there"),
    ("--ray-address 127.0.0.1:99999", "--ray-address = '127.0.0.1:99999': no Ray cluster answers there"),
]


@pytest.mark.parametrize(("words", "told"), TOO_MUCH, ids=[words for words, _ in TOO_MUCH])
def test_what_the_machine_or_the_study_lacks_is_refused_before_anything_starts(
    words, told, study, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("fedacdp.machine.cores", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("subprocess.Popen", None)
    monkeypatch.setattr("sys.argv", ["fedacdp", "run", str(study), "--out", str(tmp_path / "out"), *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")
    assert not (tmp_path / "out").exists()


def test_what_the_machine_and_the_study_just_have_is_granted(monkeypatch):
    monkeypatch.setattr("fedacdp.machine.cores", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    experiments = [experiment(data__users=users) for users in (90, 60)]
    given = {"nodes": 2, "jobs": 32, "chunk": 90, "device": "cuda", "gpus_per_node": 0.5}
    execution, notes = schedule(experiments, given)
    assert (execution.nodes, execution.jobs, execution.chunk, notes) == (2, 32, 90, [])
    with pytest.raises(ConfigError, match="--chunk = 91: must be between 1 and 90; the study has 90 users at most"):
        schedule(experiments, {"chunk": 91})
    assert schedule(experiments, {"nodes": 64, "ray_address": "head:6379"})[0].nodes == 64


def test_a_default_that_does_not_fit_is_reduced_with_a_note_and_not_refused(monkeypatch):
    monkeypatch.setattr("fedacdp.machine.cores", lambda: 1)
    execution, notes = schedule([experiment()], {"nodes": None, "chunk": None, "jobs": 2})
    assert (execution.nodes, execution.chunk, execution.jobs) == (1, 256, 2)
    assert notes == ["--nodes = 1 instead of 2: this machine has 1 CPU core"]
    with pytest.raises(ConfigError, match=r"--nodes = 2: must be between 1 and 1; this machine has 1 CPU core$"):
        schedule([experiment()], {"nodes": 2})
    assert schedule([experiment()], {"ray_address": "head:6379"}) == (Execution(ray_address="head:6379"), [])


QUOTAS = [
    ("0::/\n", {"cpu.max": "max 100000"}, 64),
    ("0::/\n", {"cpu.max": "300000 100000"}, 3),
    ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
    ("5:cpuset:/\n4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "20000", "cpu/a/cpu.cfs_period_us": "100000"}, 1),
    ("1:cpu:/a\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ("1:cpu:/a\n", {}, 64),
]


@pytest.mark.parametrize(("own", "files", "expected"), QUOTAS)
def test_cores_are_those_that_affinity_and_control_groups_leave(own, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    assert cores(tmp_path / "groups", tmp_path / "own") == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(study, tmp_path):
    done = fedacdp("run", str(study), "--out", str(tmp_path / "out"), "--device", "cuda")
    assert done.returncode == 2
    assert "--device = 'cuda': this machine has no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(study, tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    done = fedacdp("run", str(study), "--out", str(tmp_path / "sealed"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_a_file_in_place_of_the_folder_is_refused(study, tmp_path):
    (tmp_path / "file").write_text("x")
    done = fedacdp("run", str(study), "--out", str(tmp_path / "file"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_a_damaged_result_is_named(study, tmp_path):
    _folder, tasks = do(study, tmp_path / "out")
    (tasks[0].folder / "manifest.json").write_text("{")
    done = fedacdp("table", str(tmp_path / "out"))
    assert done.returncode == 2
    assert str(tasks[0].folder / "manifest.json") in done.stderr
