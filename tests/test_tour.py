"""From Python: a study is loaded, run, tabled and drawn as the notebook shows."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import fedacdp
from fedacdp.config import ConfigError
from fedacdp.results import table
from tests.conftest import raw_experiment

TOUR = json.loads((Path(__file__).parent.parent / "experiments" / "tour.ipynb").read_text())


def test_the_notebook_runs_and_draws_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in TOUR["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # what is shown is made where it is opened
            exec("".join(cell["source"]), names)
    rows = table(Path("results/tour/quickstart"))
    rows = rows[(rows["metric"] == "success") & (rows["group"] == "all") & (rows["round"] == 10)]
    drawn = names["figure"].to_dict()
    [data] = drawn["datasets"].values()
    assert sorted((row["alpha"], row["seed"], row["value"]) for row in data) == sorted(
        zip(rows["alpha"], rows["seed"], rows["value"], strict=True)
    )
    assert len(data) == 12
    means = rows.groupby("alpha")["value"].mean()
    assert means[0.4] > means[0.0] + 0.3


def test_a_study_that_is_run_from_python_resumes_and_gives_the_table(tmp_path):
    path = tmp_path / "tiny.toml"
    raw = raw_experiment()
    lines = [f"{name} = {_inline(value)}" for name, value in raw.items()]
    path.write_text('question = "?"\n[base]\n' + "\n".join(lines) + '\n[grid]\n"strategy.alpha" = [0.0, 0.1]\n')
    folder = fedacdp.run(path, out=tmp_path / "out", engine="local")
    assert folder == tmp_path / "out" / "tiny"
    first = fedacdp.table(folder)
    assert set(first["alpha"]) == {0.0, 0.1}
    pd.testing.assert_frame_equal(
        first, fedacdp.table(fedacdp.run(fedacdp.load(path), tmp_path / "out", engine="local"))
    )
    with pytest.raises(ConfigError, match="no such study"):
        fedacdp.load("absent")
    with pytest.raises(ConfigError, match="nodes"):
        fedacdp.run(path, out=tmp_path / "out", nodes=10**6)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, fedacdp; assert not {'torch', 'pandas', 'pydantic', 'altair'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def _inline(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_inline(item)}" for name, item in value.items()) + " }"
    return json.dumps(value)
