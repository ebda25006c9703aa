"""Every run of the table carries its ceiling and floor, or says why there is none."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedacdp import bounds
from fedacdp.grid import read_study
from fedacdp.results import as_csv, table
from fedacdp.rounds import compute_here
from fedacdp.setting import prepare
from fedacdp.study import Quiet, execute, plan
from fedacdp.theory.participation import Game, measured
from tests.conftest import experiment, local

STUDY = """
question = "What is out of reach?"
[base]
data = { name = "digits", users = 60, partition = "iid" }
model = { name = "logistic" }
strategy = { name = "planting", alpha = 0.1, y_star = 8, signal = "patch" }
privacy = { name = "none" }
training = { rounds = 3, sampling_prob = 0.5, local_steps = 2, batch = 4, local_lr = 0.1 }
[grid]
"privacy" = [
    { name = "none" },
    { name = "central", noise_multiplier = 12.0, delta = 1e-5, clip_norm = 1.0 },
    { name = "local_update", noise_multiplier = 6.0, delta = 1e-5, clip_norm = 1.0 },
    { name = "local_dpsgd", noise_multiplier = 6.0, delta = 1e-5, clip_norm = 1.0 },
]
"strategy.alpha" = [0.0, 0.1]
"seed" = [0, 1, 2]
"""


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    place = tmp_path_factory.mktemp("bounds")
    (place / "reach.toml").write_text(STUDY)
    study = read_study(place / "reach.toml")
    folder, tasks = plan(study, place / "out", local())
    assert execute(study, folder, tasks, local(), compute_here, Quiet()) == 0
    return table(place / "out")


@pytest.mark.parametrize(("mechanism", "z"), [("central", 12.0), ("local_update", 6.0)])
def test_a_ceiling_is_that_of_the_rounds_as_they_were_run(frame, mechanism, z):
    runs = frame[(frame["mechanism"] == mechanism) & (frame["alpha"] == 0.1)]
    for (at, group), found in runs[runs["metric"] == bounds.CEILING].groupby(["round", "group"]):
        baseline = runs[(runs["metric"] == "success_baseline") & (runs["round"] == at) & (runs["group"] == group)]
        moved = []
        for _, rounds in runs.groupby("run_id"):
            total = 0.0
            for past in range(1, at + 1):
                row = rounds[(rounds["round"] == past) & (rounds["metric"] == "messages")].set_index("group")["value"]
                noise = z if mechanism == "central" else z * math.sqrt(row["all"])
                total += (2 * row["acting"] / noise) ** 2
            moved.append(math.sqrt(total))
        expected = stats.norm.cdf(stats.norm.ppf(baseline["value"].mean()) + max(moved))
        assert len(found) == 3
        assert found["value"].to_numpy() == pytest.approx([expected] * 3, abs=1e-9)
        assert max(moved) > 0
        assert (found["note"] == "").all()
    success = runs[(runs["metric"] == "success") & (runs["group"] == "all")].groupby("round")["value"].mean()
    ceiling = runs[(runs["metric"] == bounds.CEILING) & (runs["group"] == "all")].groupby("round")["value"].first()
    assert (success <= ceiling + 0.05).all()
    assert len(success) == len(ceiling) == 3


def test_the_success_curve_of_a_setting_is_the_mean_over_seeds_in_the_last_round(frame):
    for setting, rows in frame.groupby("setting"):
        success = rows[(rows["metric"] == "success") & (rows["group"] == "all") & (rows["round"] == 3)]
        curve = measured(frame, setting)
        assert curve["alpha"].tolist() == [0.0, 0.1]
        assert curve["runs"].tolist() == [3, 3]
        expected = [success[success["alpha"] == alpha]["value"].mean() for alpha in (0.0, 0.1)]
        assert curve["success"].tolist() == pytest.approx(expected)
        Game(curve["alpha"].to_numpy(), curve["success"].to_numpy(), costs=lambda cost: float(cost > 0.5)).equilibria()


def test_numbers_below_zero_are_numbers_in_the_table_and_in_its_csv(frame):
    assert frame["value"].dtype == np.float64
    assert (frame["value"] < 0).any()
    for table_ in (frame, frame.astype({"value": object})):
        again = pd.read_csv(io.StringIO(as_csv(table_)))
        np.testing.assert_allclose(again["value"], frame["value"], rtol=1e-12)


def test_a_run_without_a_bound_says_why_once(frame):
    for metric in (bounds.CEILING, bounds.FLOOR):
        empty = frame[(frame["metric"] == metric) & frame["value"].isna()]
        assert (empty["note"].str.len() > 10).all()
        assert (empty.groupby("run_id").size() == 1).all()
        assert (empty["round"] == 3).all()
    reasons = frame[(frame["metric"] == bounds.CEILING) & frame["value"].isna()]
    said = {(row.mechanism, row.alpha): row.note for row in reasons.itertuples()}
    assert set(said) == {(m, 0.0) for m in ("none", "central", "local_update", "local_dpsgd")} | {
        ("none", 0.1),
        ("local_dpsgd", 0.1),
    }
    assert "without noise" in said["none", 0.1]
    assert "example" in said["local_dpsgd", 0.1]
    assert set(frame.loc[frame["metric"] == bounds.FLOOR, "run_id"]) == set(frame["run_id"])


def test_members_who_strike_have_a_ceiling_where_the_noise_stays(tmp_path):
    central = {"name": "central", "noise_multiplier": 12.0, "delta": 1e-5, "clip_norm": 1.0}
    strike = {"name": "strike", "alpha": 0.1}
    assert bounds.no_ceiling(experiment(strategy=strike, privacy=central)) is None
    reason = bounds.no_ceiling(experiment(strategy=strike, privacy={**central, "name": "local_update"}))
    assert reason is not None
    assert "take their noise with them" in reason
    text = STUDY.replace('name = "planting", alpha = 0.1, y_star = 8, signal = "patch"', 'name = "strike", alpha = 0.1')
    head, _, tail = text.partition('"privacy" = [')
    head = head.replace('privacy = { name = "none" }', 'privacy = { name = "central", noise_multiplier = 12.0, '
                        'delta = 1e-5, clip_norm = 1.0 }')  # fmt: skip
    (tmp_path / "strike.toml").write_text(head + tail.partition("]\n")[2])
    study = read_study(tmp_path / "strike.toml")
    folder, tasks = plan(study, tmp_path / "out", local())
    assert execute(study, folder, tasks, local(), compute_here, Quiet()) == 0
    frame = table(tmp_path / "out")
    runs = frame[frame["alpha"] == 0.1]
    moved = []
    for _, rounds in runs.groupby("run_id"):
        by_round = rounds.pivot(index="round", columns=["metric", "group"], values="value")
        away = by_round["cohort_size", "all"] - by_round["messages", "all"]
        assert (away > 0).any()
        moved.append(math.sqrt((away**2).sum()) / 12.0)
    baseline = runs[(runs["metric"] == "success_baseline") & (runs["round"] == 3)]["value"].mean()
    found = runs[(runs["metric"] == bounds.CEILING) & (runs["round"] == 3)]["value"]
    expected = stats.norm.cdf(stats.norm.ppf(baseline) + max(moved))
    assert found.to_numpy() == pytest.approx([expected] * 3, abs=1e-9)


def test_members_who_are_gone_raise_success_whatever_the_model_is():
    central = {"name": "central", "noise_multiplier": 1e6, "delta": 1e-5, "clip_norm": 1.0}
    boycott = {"name": "boycott", "alpha": 0.4}
    setting = prepare(experiment(strategy=boycott, privacy=central), local())
    model, test = setting.net.initial(setting.key.fold("initial")), setting.federation.test

    def served(strategy):
        found = strategy.measures(lambda x: setting.net.predict(model, x), test, model, 1)
        return found["success"]

    # The same model: the noise hides everything, and still success is not that of nobody.
    assert served(setting.strategy) > served(setting.strategy.without_members) + 0.01
    for strategy in (
        boycott,
        {"name": "several", "collectives": {"a": boycott, "b": {"name": "strike", "alpha": 0.1}}},
    ):
        reason = bounds.no_ceiling(experiment(strategy=strategy, privacy=central))
        assert reason is not None
        assert "gone" in reason


def test_a_strike_among_several_collectives_is_a_strike():
    strike = {"name": "strike", "alpha": 0.1}
    planting = {"name": "planting", "alpha": 0.1, "y_star": 8, "signal": "patch"}
    privacy = {"name": "local_update", "noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 1.0}
    for collectives, reason in (({"a": planting, "b": strike}, True), ({"a": planting}, False)):
        found = bounds.no_ceiling(experiment(strategy={"name": "several", "collectives": collectives}, privacy=privacy))
        assert (found is not None) == reason
