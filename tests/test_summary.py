"""`fedacdp summary` says of a table what its seeds say, and what they do not."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest

from fedacdp import cli
from fedacdp.config import ConfigError
from fedacdp.results import table
from fedacdp.statistics import critical_mass, difference
from fedacdp.summary import Format, complete, rows, summary, told
from tests.test_report import CENTRAL, NONE, add_grid, add_study, measured

ALPHAS = [0.0, 0.1, 0.2, 0.4]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "s"
    add_study(place)
    add_grid(place, [NONE, CENTRAL], ALPHAS, 4)
    return tmp_path


def test_the_numbers_are_those_of_the_runs(folder):
    frame = table(folder)
    found = rows(frame, 0.5)
    last = frame[(frame["metric"] == "success") & (frame["round"] == 3) & (frame["group"] == "all")]
    settings = sorted(set(last["setting"]))
    grids = {
        setting: np.array(
            [
                [
                    last[(last["setting"] == setting) & (last["alpha"] == a) & (last["seed"] == s)]["value"].item()
                    for a in ALPHAS
                ]
                for s in range(4)
            ]
        )
        for setting in settings
    }
    for setting in settings:
        mass = critical_mass(ALPHAS, grids[setting], 0.5)
        row = found[(found["kind"] == "critical_mass") & (found["setting"] == setting)].iloc[0]
        assert (row["value"], row["low"], row["high"], row["seeds"]) == (mass.value, mass.low, mass.high, 4)
        for place, alpha in enumerate(ALPHAS):
            row = found[(found["kind"] == "success") & (found["setting"] == setting) & (found["alpha"] == alpha)].iloc[
                0
            ]
            assert row["value"] == pytest.approx(grids[setting][:, place].mean())
            assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    apart = found[found["kind"] == "difference"]
    assert len(apart) == len(ALPHAS)
    for row in apart.itertuples():
        place = ALPHAS.index(row.alpha)
        expected = difference(grids[row.setting][:, place], grids[row.less][:, place])
        assert (row.value, row.low, row.high, row.seeds) == (expected.value, expected.low, expected.high, 4)


def test_what_is_not_reached_is_said_in_every_format(folder, capsys):
    found = rows(table(folder), 0.99)
    assert np.isinf(found[found["kind"] == "critical_mass"]["value"]).all()
    assert any("not reached" in line and "4 seeds" in line for line in told(found))
    summary(folder, 0.99, Format.json)
    masses = [row for row in json.loads(capsys.readouterr().out) if row["kind"] == "critical_mass"]
    assert {row["value"] for row in masses} == {"not reached"}
    summary(folder, 0.99, Format.csv)
    read = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert math.isinf(read[read["kind"] == "critical_mass"]["value"].iloc[0])


def test_a_seed_that_was_run_at_one_alpha_only_and_an_alpha_that_lacks_a_seed_are_left_out():
    grid = pd.DataFrame(np.ones((4, 3)), index=[0, 1, 2, 9], columns=[0.0, 0.1, 0.2])
    grid.loc[9, [0.0, 0.2]] = np.nan
    assert complete(grid).shape == (3, 3)
    grid = pd.DataFrame(np.ones((4, 3)), columns=[0.0, 0.1, 0.2])
    grid.loc[2, 0.2] = np.nan
    assert complete(grid).index.tolist() == [0, 1, 3]
    assert complete(grid.iloc[:, :2]).shape == (4, 2)


def test_one_seed_has_no_interval(tmp_path):
    add_study(tmp_path / "s")
    add_grid(tmp_path / "s", [NONE], ALPHAS, 1)
    lines = told(rows(table(tmp_path), 0.5))
    assert len(lines) == 1
    assert "no interval, 1 seed" in lines[0]


@pytest.mark.parametrize("level", [0, 1, -0.5, math.nan])
def test_a_success_that_is_no_share_is_refused(folder, level):
    with pytest.raises(ConfigError, match="--success = "):
        summary(folder, level)


def test_a_study_without_success_is_refused(tmp_path):
    add_study(tmp_path / "s")
    add_grid_without_success(tmp_path / "s")
    with pytest.raises(ConfigError, match="no run that is done has a success"):
        summary(tmp_path)


def add_grid_without_success(place):
    from tests.test_report import add_run, experiment

    add_run(place, experiment(), lambda made, round: {"accuracy": measured(made, round)["accuracy"]})


def test_the_command_prints_it(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fedacdp", "summary", str(folder), "--success", "0.4"])
    cli.main()
    assert "a success of 0.4 takes" in capsys.readouterr().out
