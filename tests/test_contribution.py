"""A second firm is trained on what members give and on nothing else, and leverage compares the two firms' runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedacdp import bounds, firms
from fedacdp.config import ConfigError
from fedacdp.display import markdown, summarise
from fedacdp.grid import Study
from fedacdp.local import train_users
from fedacdp.results import manifest_of, table
from fedacdp.rounds import compute_here, draw_cohort, evaluate, first_state, run
from fedacdp.setting import prepare
from fedacdp.study import Quiet, execute, plan
from tests.conftest import MECHANISMS, experiment, last_bytes, local, under

DATA = {"name": "digits", "users": 200}
CENTRAL = {"name": "central", "noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 1.0}


def made(alpha: float, firm: str = "second", privacy: dict[str, Any] | None = None, seed: int = 7, **more: Any):
    strategy = {"name": "contribution", "firm": firm, "alpha": alpha, **more}
    return experiment(data=DATA, strategy=strategy, privacy=privacy or {"name": "none"}, seed=seed)


def prepared(alpha: float, firm: str = "second", **more: Any):
    return prepare(made(alpha, firm, **more), local())


def members(alpha: float) -> np.ndarray:
    return prepared(alpha, "first").member


def test_users_of_the_second_firm_are_members_and_customers_nested_in_both():
    assert prepared(0.3, "first", customers=0.4).on_platform.all()
    before = None
    for alpha in (0.0, 0.1, 0.3, 1.0):
        plain, setting = prepared(alpha), prepared(alpha, customers=0.25)
        np.testing.assert_array_equal(plain.on_platform, members(alpha))
        anyway = prepared(0.0, customers=0.25).on_platform
        assert anyway.sum() == 50
        np.testing.assert_array_equal(setting.on_platform, members(alpha) | anyway)
        np.testing.assert_array_equal(setting.member, members(alpha) & ~anyway)
        assert setting.plan.users == setting.on_platform.sum()
        assert before is None or (setting.on_platform >= before).all()
        before = setting.on_platform
    assert (prepared(0.0, customers=0.5).on_platform >= prepared(0.0, customers=0.25).on_platform).all()
    assert 0 < (members(0.5) & prepared(0.0, customers=0.5).on_platform).sum() < 100  # drawn apart


@pytest.mark.parametrize(
    "strategy",
    [
        {"alpha": 0.1, "firm": "second"},
        {"alpha": 0.1, "firm": "second", "customers": 0.2},
        {"alpha": 0.7, "firm": "first", "strike": True},
        {"alpha": 0.7, "firm": "first", "strike": True, "noticed": True},
    ],
)
def test_a_firm_is_trained_on_its_users_and_divides_by_their_number(strategy):
    setting = prepared(**strategy)
    who = prepared(strategy["alpha"], "first").member
    if strategy["firm"] == "second":
        trained = who | prepared(0.0, customers=strategy.get("customers", 0.0)).on_platform
        divisor = trained.sum()
    else:
        trained = ~who
        divisor = trained.sum() if "noticed" in strategy else 200
    everybody = prepared(0.0, "first")
    parameters = first_state(everybody).parameters
    for round in range(1, 4):
        total = np.zeros(len(parameters))
        for user in draw_cohort(everybody, first_state(everybody), round):
            if trained[user]:
                own = setting.federation.users(np.array([user]), np.zeros(1, bool))
                start, key = torch.from_numpy(parameters), setting.key.fold("train", round)
                update = train_users(setting.net, start, own, setting.experiment.training, None, key)
                total += update.total(np.ones(1))
        parameters = (parameters + total / (0.5 * divisor)).astype(np.float32)
    *_, (state, _) = run(setting, local(), compute_here)
    np.testing.assert_allclose(state.parameters, parameters, rtol=1e-5, atol=1e-7)


def test_the_ends_are_models_that_are_known_to_the_bit():
    honest = prepare(experiment(data=DATA, strategy={"name": "honest"}), local())
    strike = prepare(experiment(data=DATA, strategy={"name": "strike", "alpha": 0.3}), local())
    for twin, setting in (
        (honest, prepared(1.0)),
        (honest, prepared(0.3, customers=1.0)),
        (honest, prepared(0.3, "first")),
        (strike, prepared(0.3, "first", strike=True)),
    ):
        assert last_bytes(setting, local(), compute_here) == last_bytes(twin, local(), compute_here)


@pytest.mark.parametrize("name", sorted(MECHANISMS))
@pytest.mark.parametrize("strategy", [{"firm": "second"}, {"firm": "first", "alpha": 1.0, "strike": True}])
def test_a_firm_that_nobody_sends_to_keeps_the_model_it_began_with(name, strategy):
    more = {"noticed": True} if strategy["firm"] == "first" else {}
    chosen = under(MECHANISMS[name], strategy={"name": "contribution", **strategy, **more})
    setting = prepare(chosen, local())
    assert setting.plan.users == 0
    start = first_state(setting).parameters
    score = [value for value in evaluate(setting, start, 0) if value[:2] == ("accuracy", "all")]
    *_, (state, row) = run(setting, local(), compute_here)
    assert state.parameters.tobytes() == start.tobytes()
    assert [value for value in row.values if value[:2] == ("accuracy", "all")] == score
    assert state.sent == 0
    assert state.draws == setting.mechanism.draws(setting.plan, 0)
    setting.mechanism.guarantee(setting.plan)


def sent(setting, round: int) -> set[int]:
    """Who sends an update in a round in which everybody is sampled."""
    from fedacdp.rounds import act

    ids = np.flatnonzero(setting.on_platform)
    return set(act(setting, setting.federation.users(ids, setting.member[ids]), round)[0].ids.tolist())


def test_who_does_not_act_sends_to_the_first_firm_and_not_to_the_second_unless_a_customer():
    acts = {"start": 2, "stop": 3, "compliance": 0.6, "coordination_noise": 0.3}
    first, second = prepared(0.5, "first", strike=True, **acts), prepared(0.5, "second", strike=True, **acts)
    with_customers = prepared(0.5, customers=0.3, **acts)
    customers, given = set(np.flatnonzero(prepared(0.0, customers=0.3).on_platform).tolist()), []
    for round in range(1, 5):
        here, there = sent(first, round), sent(second, round)
        assert here | there == set(range(200))
        assert not here & there  # a striker of this round is a contributor of this round
        assert sent(with_customers, round) == there | customers
        given.append(len(there))
    assert given[0] == given[3] == 0
    assert all(0 < count < 60 for count in given[1:3])


def test_each_firm_has_the_guarantee_of_its_own_users_and_the_second_no_ceiling():
    guarantee = {
        firm: (setting := prepared(0.05, firm, privacy={**CENTRAL, "delta": 0.01})).mechanism.guarantee(setting.plan)
        for firm in ("first", "second")
    }
    assert "of N = 200" in guarantee["first"].sampler
    assert "of N = 10" in guarantee["second"].sampler
    assert "1/users" in guarantee["first"].warnings[0]
    assert guarantee["second"].warnings == ()
    assert guarantee["first"].epsilon == guarantee["second"].epsilon
    assert "other users" in bounds.no_ceiling(made(0.1, privacy=CENTRAL))
    assert "other users" in bounds.no_ceiling(made(0.1, "first", strike=True, noticed=True, privacy=CENTRAL))
    assert bounds.no_ceiling(made(0.1, "first", strike=True, privacy=CENTRAL)) is None


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({}, r"strategy\.firm: must be given"),
        ({"firm": "third"}, r"strategy\.firm = 'third'.*'first' or 'second'"),
        ({"firm": "second", "customers": 1.5}, r"strategy\.customers = 1\.5"),
        ({"firm": "first", "noticed": True}, r"strategy\.noticed: belongs to strike"),
        ({"firm": "first", "strike": True, "noticed": True, "stop": 3}, r"strategy\.stop = 3: .* noticed"),
    ],
)
def test_wrong_contributions_are_told_in_one_line(strategy, message):
    with pytest.raises(ConfigError, match=message):
        experiment(strategy={"name": "contribution", **strategy})


def test_a_second_firm_is_not_one_of_several_but_a_strike_at_the_first_is():
    def both(**own: Any):
        each = {"a": {"name": "contribution", **own}, "b": {"name": "strike"}}
        return experiment(strategy={"name": "several", "collectives": each})

    for own in ({"firm": "second"}, {"firm": "first", "strike": True, "noticed": True}):
        with pytest.raises(ConfigError, match=r"strategy\.collectives.*a: decides who uses the platform"):
            both(**own)
    both(firm="first", strike=True)


def powers(scores: list[tuple[Any, float]], study: str = "s", status: str = "done") -> dict[tuple[str, str], float]:
    """dlp by run_id and group, from runs with these accuracies in their last of two measured rounds."""
    rows = [
        {"study": study, "run_id": e.run_id, "round": at, "metric": "accuracy", "group": "all", "value": value}
        for e, score in scores
        for at, value in ((1, 0.123), (3, score))
    ]
    frame = pd.DataFrame(rows).assign(status=status, seconds=0.0)
    found = firms.rows(frame, {(study, e.run_id): e for e, _ in scores})
    assert set(found["metric"]) <= {"dlp"}
    assert set(found["round"]) <= {3}
    return {
        (run_id, group): v for run_id, group, v in zip(found["run_id"], found["group"], found["value"], strict=True)
    }


def test_leverage_of_the_oracle_is_point_4_and_with_a_strike_point_5():
    best, large, small = made(0.0, "first", strike=True), made(0.2, "first", strike=True), made(0.2, strike=True)
    worst = made(0.01, strike=True)
    found = powers([(best, 1.0), (large, 0.9), (small, 0.7), (worst, 0.5)])
    assert found[small.run_id, "all"] == pytest.approx(0.5)
    assert found[small.run_id, "without_strike"] == pytest.approx(0.4)
    assert found[large.run_id, "all"] == pytest.approx(0.2)
    assert found[best.run_id, "all"] == 0
    assert found[worst.run_id, "without_strike"] == 0
    plain = made(0.2)
    assert powers([(best, 1.0), (large, 0.9), (plain, 0.7), (worst, 0.5)])[plain.run_id, "all"] == pytest.approx(0.4)
    full = made(0.2, "first")  # nobody strikes: its score is that on all data, and there is nothing of a strike in it
    assert powers([(full, 1.0), (plain, 0.7), (worst, 0.5)]) == {(plain.run_id, "all"): pytest.approx(0.4)}
    strike = experiment(data=DATA, strategy={"name": "strike", "alpha": 0.2})
    found = powers([(strike, 0.9), (strike.baseline, 1.0), (worst, 0.5)])
    assert found[strike.run_id, "all"] == pytest.approx(0.2)


def test_where_a_partner_is_missing_or_nothing_can_be_lost_there_is_no_leverage():
    best, large, small = made(0.0, "first", strike=True), made(0.2, "first", strike=True), made(0.2, strike=True)
    assert powers([(small, 0.7)]) == {}
    assert powers([(large, 0.7)]) == {}
    assert powers([(best, 0.5), (large, 0.5), (small, 0.5)]) == {}
    assert set(powers([(best, 1.0), (small, 0.7)])) == {(small.run_id, "without_strike"), (best.run_id, "all")}
    assert powers([(best, 1.0), (large, 0.9), (small, 0.7)], status="diverged") == {}
    for other in (
        made(0.2, strike=True, seed=8),
        made(0.2, strike=True, privacy=CENTRAL),
        made(0.3, strike=True),
        made(0.2, strike=True, customers=0.1),
    ):
        found = powers([(best, 1.0), (large, 0.9), (other, 0.7)])
        assert (other.run_id, "all") not in found


def test_a_study_of_two_firms_has_leverage_in_its_tables(tmp_path):
    base = made(0.3, strike=True).model_dump(mode="json")
    grid = {"strategy.firm": ["first", "second"], "strategy.alpha": [0.2, 1.0], "seed": [0, 1]}
    study = Study(name="firms", question="?", base=base, grid=grid)
    folder, tasks = plan(study, tmp_path, local())
    assert execute(study, folder, tasks, local(), compute_here, Quiet()) == 0
    frame = table(folder)
    last = frame[(frame["round"] == 3) & (frame["group"] == "all")]
    score = last[last["metric"] == "accuracy"].set_index(["setting", "alpha", "seed"])["value"]
    dlp = last[last["metric"] == "dlp"].set_index(["setting", "alpha", "seed"])["value"]
    first, second = sorted(set(frame["setting"]))
    assert "firm=first" in first
    assert "firm=second" in second
    for seed in (0, 1):
        base_score = score[:, :, seed].min()
        s, n, b = score[second, 0.2, seed], score[first, 0.2, seed], score[first, 0.0, seed]
        assert dlp[second, 0.2, seed] == pytest.approx((s - base_score) / (n - base_score))
        assert dlp[first, 0.2, seed] == pytest.approx((n - b) / (base_score - b))
    given = frame[(frame["metric"] == "dlp") & (frame["group"] == "without_strike") & (frame["alpha"] == 1.0)]
    assert given["value"].tolist() == [1.0, 1.0]  # all data at the second firm
    assert "dlp" in summarise(frame)
    assert " dlp |" in markdown(frame)
    assert "dlp" not in markdown(frame[frame["metric"] != "dlp"])
    nobody = manifest_of(folder / made(0.0, strike=True, seed=0).run_id)
    assert (nobody["users"], nobody["members"]) == (0, 0)
