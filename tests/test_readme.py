"""What the README shows works as it stands."""

import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedacdp import results
from fedacdp.config import parts_of
from fedacdp.grid import Study
from fedacdp.parts import part_in
from fedacdp.rounds import compute_here, run
from fedacdp.setting import prepare
from fedacdp.strategy import Strategy
from tests.conftest import experiment, local

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_strategy_of_the_readme_runs():
    [code] = blocks("python")
    module = types.ModuleType("even_flips")
    sys.modules["even_flips"] = module
    try:
        exec(compile(code, "even_flips", "exec"), module.__dict__)
        part = part_in("even_flips", Strategy)
        setting = prepare(experiment(strategy=part(alpha=1.0)), local())
        *_, (_, row) = run(setting, local(), compute_here)
        assert "success" in {metric for metric, _, _ in row.values}
    finally:
        del sys.modules["even_flips"]


def test_the_participation_game_of_the_readme_is_played_on_the_means_of_a_table(monkeypatch, capsys):
    # A share (1 - .2) S / .8 = S joins: S jumps from 0 to its height at .3, where a collective stands or not.
    rows = [
        (f"central epsilon={epsilon:g}", seed, number, alpha, value + noise)
        for epsilon, height in ((1.0, 0.2), (4.0, 0.4), (16.0, 0.8))
        for seed, noise in enumerate((-0.05, 0.05))
        for number, final in ((1, 0), (2, 1))
        for alpha, value in ((0.0, 0.0), (0.29, 0.0), (0.31, height * final), (1.0, height * final))
    ]
    found = pd.DataFrame(rows, columns=["setting", "seed", "round", "alpha", "value"])
    found["run_id"] = found["setting"] + found["seed"].astype(str) + found["alpha"].astype(str)
    found = found.assign(study="my_study", metric="success", group="all", status="done", role="run")
    monkeypatch.setattr(results, "table", lambda folder: found)
    [code] = blocks("py")
    played: dict[str, Any] = {}
    exec(compile(code, "game", "exec"), played)
    games = played["games"]
    assert [game.standing(0.01) for game in games.values()] == [None, pytest.approx(0.4), pytest.approx(0.8)]
    assert 0.29 < games[16.0].tipping_mass(0.01) < 0.31
    # Heights are straight in ln epsilon: .31 is reached at .2 + .2 t.
    assert float(capsys.readouterr().out.splitlines()[-1]) == pytest.approx(4 ** ((0.31 - 0.2) / 0.2), rel=1e-2)
    with pytest.raises(ValueError, match=r"setting = 'local': no done runs .* central epsilon=1, central epsilon=16"):
        played["measured"](found, "local")
    with pytest.raises(ValueError, match="several studies"):
        played["measured"](pd.concat([found, found.assign(study="another")]), "central epsilon=1")
    failed = found.assign(status=np.where(found["seed"] == 1, "failed", "done"))
    curve = played["measured"](failed, "central epsilon=4")
    assert curve["success"].tolist() == pytest.approx([-0.05, -0.05, 0.35, 0.35])
    assert curve["runs"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_study_of_the_readme_is_valid(text):
    assert Study.model_validate({"name": "readme", **tomllib.loads(text)}).experiments()


def test_the_readme_names_every_part():
    for field in ("data", "model", "strategy", "privacy", "aggregation"):
        for name in parts_of(field):
            assert f"`{name}`" in README, name
