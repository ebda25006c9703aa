"""Bounds that measured success contradicts are flagged in the table, at the end of a study and on the page."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedacdp import bounds
from fedacdp.contradictions import SAID, above_ceiling, below_floor, least_mean, told
from fedacdp.display import closing_table, summarise
from fedacdp.grid import read_study
from fedacdp.report import write_page
from fedacdp.results import table
from fedacdp.rounds import compute_here
from fedacdp.study import Quiet, execute, plan
from tests.conftest import local

STUDY = """
question = "What is out of reach?"
[base]
data = { name = "digits", users = 60, partition = "iid" }
model = { name = "logistic" }
strategy = { name = "planting", alpha = 0.1, y_star = 8, signal = "patch" }
privacy = { name = "central", noise_multiplier = 12.0, delta = 1e-5, clip_norm = 1.0 }
training = { rounds = 3, sampling_prob = 0.5, local_steps = 2, batch = 4, local_lr = 0.1 }
[grid]
"strategy.alpha" = [0.0, 0.1]
"seed" = [0, 1, 2]
"""


def test_the_lower_limit_of_a_mean_is_students_where_values_differ_and_hoeffdings_where_not():
    values = [0.61, 0.58, 0.66, 0.6]
    low = stats.t.interval(0.98, 3, np.mean(values), stats.sem(values))[0]
    assert least_mean(values, 0.01) == pytest.approx(low, abs=1e-12)
    assert least_mean([1.0] * 3, 0.01) == pytest.approx(0.01 ** (1 / 3), abs=1e-9)
    mu = least_mean([0.7] * 5, 0.01)
    assert 5 * (0.7 * math.log(0.7 / mu) + 0.3 * math.log(0.3 / (1 - mu))) == pytest.approx(math.log(100))
    assert least_mean([0.0], 0.01) == 0
    assert least_mean([0.9, 0.1], 0.001) == 0


def test_true_bounds_are_rarely_contradicted_and_broken_ones_are():
    rng, level, repetitions = np.random.default_rng(3), 0.01, 4000
    for base, shift in ((0.1, 1.0), (0.3, 0.4)):
        top = stats.norm.cdf(stats.norm.ppf(base) + shift)
        flags = {0.0: 0, 0.25: 0}
        for _ in range(repetitions):
            baseline = np.clip(base + 0.02 * rng.standard_normal(5), 0, 1)
            for excess in flags:
                success = np.clip(top + excess + 0.03 * rng.standard_normal(5), 0, 1)
                flags[excess] += bool(above_ceiling(success, baseline, shift, level))
        assert stats.binom.sf(flags[0.0] - 1, repetitions, level) > 1e-6
        assert flags[0.25] > 0.9 * repetitions


def test_floors_are_contradicted_by_more_failures_than_chance_allows():
    assert below_floor([0.5] * 10, [0.4] * 10, 0.05, 0.01) == ""
    assert below_floor([0.3] + [0.5] * 9, [0.4] * 10, 0.05, 0.01) == ""
    assert "3 of 10 runs" in below_floor([0.3] * 3 + [0.5] * 7, [0.4] * 10, 0.05, 0.02)
    assert below_floor([0.3] * 3 + [0.5] * 7, [0.4] * 10, 0.05, 0.01) == ""
    assert below_floor([0.3], [0.4], 0.05, 0.01) == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("contradicted")
    (place / "reach.toml").write_text(STUDY)
    study = read_study(place / "reach.toml")
    folder, tasks = plan(study, place / "out", local())
    assert execute(study, folder, tasks, local(), compute_here, Quiet()) == 0
    return folder


def tampered(folder, value):
    """Give all runs with a collective this success in the last round."""
    for path in folder.glob("*/rounds.parquet"):
        rows = pd.read_parquet(path)
        if rows[rows["group"] == "acting"]["value"].sum() > 0:
            won = (rows["metric"] == "success") & (rows["round"] == 3)
            rows.loc[won, "value"] = value + 0.001 * len(path.parent.name.strip("0123456789"))
            rows.to_parquet(path, index=False)


def test_a_contradiction_is_told_in_the_table_at_the_end_and_on_the_page(folder, capsys, tmp_path):
    honest = table(folder)
    assert told(honest) == []
    closing_table(folder)
    assert "contradicted" not in capsys.readouterr().err
    assert "contradicted" not in write_page(folder, tmp_path / "honest.html").read_text()
    ceiling = honest[(honest["metric"] == bounds.CEILING) & (honest["round"] == 3) & (honest["group"] == "all")][
        "value"
    ]
    assert ceiling.max() < 0.9

    tampered(folder, 0.98)
    found = table(folder)
    flagged = found[found["note"].str.startswith(SAID)]
    assert set(flagged["metric"]) == {bounds.CEILING}
    assert set(flagged["round"]) == {3}
    assert set(flagged["alpha"]) == {0.1}
    assert len(flagged[flagged["group"] == "all"]) == 3
    closing_table(folder)
    assert "a bound is contradicted" in " ".join(capsys.readouterr().err.split())
    page = write_page(folder, tmp_path / "page.html").read_text()
    assert "A bound is contradicted" in page
    assert "mean success 0.9" in page


def test_several_collectives_have_their_successes_in_the_closing_table_and_on_the_page(tmp_path, capsys):
    text = STUDY.replace(
        'strategy = { name = "planting", alpha = 0.1, y_star = 8, signal = "patch" }',
        'strategy = { name = "several", collectives = { '
        'east = { name = "planting", alpha = 0.1, y_star = 8, signal = "patch" }, '
        'west = { name = "planting", alpha = 0.2, y_star = 3, signal = "patch" } } }',
    ).replace('"strategy.alpha"', '"strategy.collectives.east.alpha"')
    (tmp_path / "two.toml").write_text(text)
    study = read_study(tmp_path / "two.toml")
    folder, tasks = plan(study, tmp_path / "out", local())
    assert execute(study, folder, tasks, local(), compute_here, Quiet()) == 0
    frame = table(folder)
    last = frame[(frame["round"] == 3) & (frame["metric"] == "success")]
    [row] = [r for r in summarise(frame).to_dict("records") if r["alpha"] == pytest.approx(0.3)]
    both = last[(last["alpha"] - 0.3).abs() < 1e-9].groupby("group")["value"].mean()
    assert row["success"] == f"east {both['east']:.3f}, west {both['west']:.3f}"
    ceilings = frame[(frame["metric"] == bounds.CEILING) & (frame["round"] == 3)]
    assert {"east", "west"} <= set(ceilings["group"])
    closing_table(folder)
    assert f"{both['west']:.3f}" in capsys.readouterr().err
    page = write_page(folder, tmp_path / "page.html").read_text()
    for name in ("east", "west"):
        assert f"the success of {name} is" in page
        assert f"Success, {name}</th>" in page
        assert f"Ceiling, {name}</th>" in page
