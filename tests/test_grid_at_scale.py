"""Large studies: too many runs are refused, shards make up the whole, and a failed run stops nothing."""

import itertools
import shutil

import pandas as pd
import pytest

from fedacdp import cli
from fedacdp import study as studies
from fedacdp.config import ConfigError
from fedacdp.grid import Study, shard
from fedacdp.privacy.central import Central
from fedacdp.results import table
from fedacdp.rounds import compute_here
from fedacdp.study import execute, plan
from tests.conftest import local, raw_experiment
from tests.test_command_line import STUDY, Silent

GRID = {"strategy.alpha": [0.05, 0.1, 0.2], "strategy.compliance": [0.5, 1.0], "seed": [0, 1, 2]}


def study(**grid):
    return Study(name="t", question="?", base=raw_experiment(training__rounds=1), grid=GRID | grid)


def do(found, out, part=None):
    folder, tasks = plan(found, out, local(), part)
    assert execute(found, folder, tasks, local(), compute_here, Silent()) == 0
    return folder, tasks


def test_a_grid_that_multiplies_to_too_much_is_refused_with_the_count_before_it_is_expanded(monkeypatch):
    monkeypatch.setattr(Study, "experiments", None)
    huge = study(**{"data.users": list(range(1000)), "training.rounds": list(range(1, 1001))})
    with pytest.raises(ConfigError, match=r"--max-runs = 10000: .* 18,000,000 runs"):
        huge.at_most(10_000)
    assert study().at_most(18) == study()
    with pytest.raises(ConfigError, match=r"18 runs"):
        study().at_most(17)


def test_shards_are_disjoint_even_and_together_the_study_with_their_baselines():
    whole = study(**{"strategy.alpha": [0.0, 0.1, 0.2]}).experiments()
    for parts in (1, 2, 4):
        shards = [shard(whole, f"{place}/{parts}") for place in range(1, parts + 1)]
        ids = [[experiment.run_id for experiment in part] for part in shards]
        assert sorted(itertools.chain(*ids)) == sorted(experiment.run_id for experiment in whole)
        assert max(map(len, ids)) - min(map(len, ids)) <= 3  # one group: three alphas
        for part in shards:
            assert {e.baseline.run_id for e in part} <= {e.run_id for e in part}


@pytest.mark.parametrize("which", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "", "1.0/2", "1/7"])
def test_a_shard_that_is_none_is_refused(which):
    with pytest.raises(ConfigError, match="--shard = "):
        shard(study().experiments(), which)


def test_the_folders_of_shards_copied_together_give_the_table_of_the_whole(tmp_path):
    found = study(**{"strategy.compliance": [1.0], "seed": [0, 1, 2]})
    whole, _ = do(found, tmp_path / "whole")
    names = set()
    for place in (1, 2):
        part, tasks = do(found, tmp_path / str(place), shard(found.experiments(), f"{place}/2"))
        assert not names & {task.folder.name for task in tasks}
        names |= {task.folder.name for task in tasks}
        shutil.copytree(part, tmp_path / "merged" / "t", dirs_exist_ok=True)
    merged = tmp_path / "merged" / "t"
    pd.testing.assert_frame_equal(*(table(folder).drop(columns="seconds") for folder in (whole, merged)))
    assert plan(found, tmp_path / "merged", local())[1] == []
    for model in whole.rglob("*.safetensors"):
        assert model.read_bytes() == (merged / model.relative_to(whole)).read_bytes()


def test_a_run_that_does_not_fit_for_its_seed_does_not_stop_the_others(tmp_path, monkeypatch):
    found = study(**{"strategy.compliance": [1.0], "strategy.alpha": [0.1]})
    folder, tasks = plan(found, tmp_path, local())
    prepare = studies.prepare

    def fits_some(made, execution):
        if made.seed == 1:
            raise ConfigError("group too small")
        return prepare(made, execution)

    monkeypatch.setattr(studies, "prepare", fits_some)
    assert execute(found, folder, tasks, local(), compute_here, Silent()) == 2  # the run and its baseline
    monkeypatch.undo()
    left = plan(found, tmp_path, local())[1]
    assert {task.experiment.seed for task in left} == {1}
    assert set(table(tmp_path)["seed"]) == {0, 2}


def shell(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["fedacdp", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr()


def test_failed_runs_are_listed_with_their_reasons_at_the_end(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY)
    drawn = Central.sum_noise

    def fails_for_one_seed(self, count, size, round, memory, key):
        if key.seed == 1:
            raise RuntimeError("no [noise] today")
        return drawn(self, count, size, round, memory, key)

    monkeypatch.setattr(Central, "sum_noise", fails_for_one_seed)
    code, said = shell(monkeypatch, capsys, "run", str(path), "--out", str(tmp_path / "out"), "--engine", "local")
    assert code == 1
    assert "2 of 4 runs failed; the same command tries them again:" in said.err
    tail = said.err.partition("tries them again:")[2]
    assert tail.count("RuntimeError: no [noise] today") == 2
    assert "Page: " in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-runs", "1"), "--max-runs = 1: the grid of tiny multiplies to 2 runs"),
        (("--max-runs", "0"), "--max-runs"),
        (("--shard", "3/2"), "--shard = 3/2: must be i/n"),
        (("--shard", "1/3"), "--shard = 1/3: at most 2 parts"),
    ],
)
def test_wrong_options_end_in_one_line_and_leave_nothing(words, told, tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY)
    code, said = shell(monkeypatch, capsys, "run", str(path), "--out", str(tmp_path / "out"), *words)
    assert code == 2
    assert told in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
