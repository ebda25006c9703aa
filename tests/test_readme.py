"""What the README shows works as it stands."""

import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_study_of_the_readme_is_valid(text):
    assert Study.model_validate({"name": "readme", **tomllib.loads(text)}).experiments()


def test_the_readme_names_every_part():
    for field in ("data", "model", "strategy", "privacy", "aggregation"):
        for name in parts_of(field):
            assert f"`{name}`" in README, name
