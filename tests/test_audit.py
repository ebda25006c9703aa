"""`fedacdp audit`: what an attack finds is what there is to be found, beside nothing found where there is nothing."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import binom
from typer.testing import CliRunner

from fedacdp import anonymity
from fedacdp.anonymity import Links, Pooled, Roc
from fedacdp.canaries import canaries
from fedacdp.cli import app, main
from fedacdp.findings import ceiling, singled_out
from fedacdp.grid import Study
from fedacdp.rounds import compute_here, run
from fedacdp.setting import prepare
from fedacdp.shadows import Game, _runs, _targets, membership
from fedacdp.study import Quiet, execute, here, plan
from fedacdp.theory.ceilings import membership_auc
from fedacdp.theory.detection import direction_auc
from fedacdp.watching import _messages, guides_of, watch, watched
from tests.conftest import experiment, last_bytes, local, raw_experiment

LOCAL = {"name": "local_update", "noise_multiplier": 0.5, "delta": 1e-5, "clip_norm": 1.0, "max_messages": 3}
CENTRAL = {"name": "central", "noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 1.0}


def messages(members: int = 6, others: int = 20, size: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal messages, members' further along one direction; and that direction."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(size)
    direction /= np.linalg.norm(direction)
    found = rng.standard_normal((members + others, size))
    found[:members] += 4 * direction
    return found.astype(np.float32), direction


def test_scores_are_what_their_definitions_say():
    rows, direction = messages()
    found = anonymity.scores(rows, direction)
    assert set(found) == set(anonymity.SCORES)
    rows = rows.astype(np.float64)
    mean, median, centred = rows.mean(axis=0), np.median(rows, axis=0), rows - rows.mean(axis=0)
    top = np.linalg.svd(centred)[2][0]
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        far = sorted(np.linalg.norm(row - other) for other in others)
        assert found["norm"][i] == pytest.approx(np.linalg.norm(row))
        assert found["cosine_to_mean"][i] == pytest.approx(
            -row @ mean / np.linalg.norm(row) / np.linalg.norm(mean), abs=1e-9
        )
        assert found["pairwise_cosine"][i] == pytest.approx(
            max(row @ o / np.linalg.norm(row) / np.linalg.norm(o) for o in others)
        )
        assert found["distance_to_median"][i] == pytest.approx(np.linalg.norm(row - median))
        assert found["krum"][i] == pytest.approx(sum(far[: len(others) // 2]))
        assert found["spectral"][i] == pytest.approx(abs(centred[i] @ top))
        assert found["direction"][i] == pytest.approx(row @ direction)


def test_scores_do_not_know_who_is_a_member():
    rows, direction = messages()
    order = np.random.default_rng(1).permutation(len(rows))
    plain, mixed = anonymity.scores(rows, direction), anonymity.scores(rows[order], direction)
    for name in plain:
        np.testing.assert_allclose(mixed[name], plain[name][order], rtol=1e-9)


def test_messages_that_are_all_zero_have_scores():
    assert all(np.isfinite(values).all() for values in anonymity.scores(np.zeros((4, 3), np.float32)).values())


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_is_that_of_every_threshold(ties):
    rng = np.random.default_rng(2)
    others, members = rng.normal(size=40), rng.normal(1, 1, 12)
    if ties:
        others, members = others.round(), members.round()
    roc = Roc(others, members)
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert roc.auc[0] == pytest.approx(np.mean(pairs))
    for rate in (0.0, 0.05, 0.1, 0.33, 1.0):
        fit = [bar for bar in [-math.inf, *others] if (others > bar).mean() <= rate + 1e-12]
        best = max((members > bar).sum() for bar in fit)
        assert roc.rates(rate)[1] == best
        assert roc.rates(rate)[0] <= rate * len(others) + 1e-9
    everybody = [(score, 1) for score in members] + [(score, 0) for score in others]
    slow = np.mean([sum(m for _, _, m in sorted((s, rng.random(), m) for s, m in everybody)[-12:]) / 12
                    for _ in range(4000)])  # fmt: skip
    assert roc.precision == pytest.approx(slow, abs=0.02)


def test_the_error_of_an_area_is_that_of_repetitions():
    rng = np.random.default_rng(3)
    found = [Roc(rng.normal(size=60), rng.normal(0.7, 1, 25)).auc for _ in range(800)]
    areas, errors = np.array(found).T
    assert areas.std() == pytest.approx(errors.mean(), rel=0.15)
    assert areas.mean() == pytest.approx(direction_auc(0.7, 1.0), abs=5 * areas.std() / math.sqrt(800))


def test_rates_that_too_few_people_show_are_no_numbers():
    rng = np.random.default_rng(4)
    for others, rate, fine in ((100, 0.1, True), (99, 0.1, False), (1000, 0.01, True), (9999, 0.001, False)):
        roc = Roc(rng.normal(size=others), rng.normal(size=5))
        assert roc.measurable(rate) == fine
        if not fine:
            with pytest.raises(ValueError, match="not measurable"):
                roc.tpr(rate)


def test_a_known_direction_under_noise_is_seen_as_the_closed_form_says():
    """A server that knows the direction, r reports of 4,000 users: Phi(D sqrt(r) / (sqrt(2) sigma))."""
    rng, users = np.random.default_rng(5), 4000
    member = np.arange(users) < users // 2
    for reports, noise in ((1, 1.0), (4, 2.0), (10, 5.0)):
        pooled = Pooled(users)
        for _ in range(reports):
            pooled.add(np.arange(users), {"direction": member + noise * rng.standard_normal(users)})
        roc = Roc(pooled.of("direction")[~member], pooled.of("direction")[member])
        area, error = roc.auc
        assert abs(area - direction_auc(1.0, noise, reports)) < 4.9 * error  # 1e-6


def test_messages_of_one_user_are_linked_as_often_as_they_are_alike():
    rng, n, size, noise = np.random.default_rng(6), 300, 1000, 0.3
    own = rng.standard_normal((n, size)) / math.sqrt(size)

    def links(noise, own):
        return Links(*(own + noise * rng.standard_normal((n, size)) for _ in range(2)))

    area, error = links(noise, own).roc.auc
    assert abs(area - 0.598) < 4.9 * error + 0.01  # Phi(C^2 / (sigma^2 sqrt(2 d))), an approximation: simulated .605
    assert links(0.001, own).matched == n
    area, error = links(noise, 0 * own).roc.auc
    assert abs(area - 0.5) < 4.9 * error
    assert links(noise, 0 * own).matched <= binom.isf(1e-6, n, 1 / n)


@pytest.mark.parametrize("privacy", [{"name": "none"}, CENTRAL, LOCAL], ids=lambda p: p["name"])
@pytest.mark.parametrize("view", ["messages", "noised", "sum"])
def test_who_watches_changes_no_bit_of_the_run(privacy, view):
    setting = prepare(experiment(privacy=privacy), local())
    assert watch(setting, local(), view).parameters.tobytes() == last_bytes(setting, local(), compute_here)


def test_noised_messages_are_those_that_the_server_adds_up():
    setting = prepare(experiment(privacy={**LOCAL, "noise_per": "message"}, training__rounds=1), local())
    model = setting.net.initial(setting.key.fold("initial"))
    [(state, _)] = list(run(setting, local(), compute_here))
    ids = np.flatnonzero(state.messages)
    seen = _messages(watched(setting, "noised"), model, 1, [ids])
    after = setting.net.moved(model, seen.messages.sum(axis=0, dtype=np.float64), 1.0, setting.plan.cohort)
    np.testing.assert_allclose(after, state.parameters, atol=1e-5)
    bare = _messages(watched(setting, "messages"), model, 1, [ids])
    assert np.linalg.norm(bare.messages, axis=1).max() <= 1 + 1e-5
    assert np.linalg.norm(seen.messages - bare.messages) == pytest.approx(0.5 * math.sqrt(bare.messages.size), rel=0.05)


def test_guides_are_no_members_and_are_not_judged():
    setting = prepare(experiment(data__users=200), local())
    guides = guides_of(setting)
    assert guides.sum() == 18
    assert not (guides & setting.member).any()
    seen = watch(setting, local(), "messages")
    _, curves = singled_out(setting, "messages", seen, None)
    judged = (seen.pooled.counts > 0) & ~guides
    assert len(curves["norm"].members) == (judged & setting.member).sum()
    assert len(curves["norm"].others) == (judged & ~setting.member).sum()


def of(findings, attack, measure="AUC"):
    [found] = [finding for finding in findings if (finding.attack, finding.measure) == (attack, measure)]
    return found


def test_members_are_seen_without_noise_and_nobody_is_where_nobody_acts():
    setting = prepare(experiment(data__users=300, training__rounds=8), local())
    alone = prepare(experiment(data__users=300, training__rounds=8, strategy__alpha=0.0), local())
    seen, control = (watch(each, local(), "messages", setting) for each in (setting, alone))
    found, _ = singled_out(setting, "messages", seen, control)
    for name in ("norm", "pairwise_cosine", "spectral", "direction"):
        assert of(found, name).value > 0.95
        assert of(found, name).ceiling is None
        assert abs(of(found, name).control - 0.5) < 0.3  # 30 members: 0.3 is 5.4 standard errors


def test_ceilings_are_those_of_replacement():
    setting = prepare(experiment(privacy=LOCAL), local())
    mu = 2 * math.sqrt(3) / 0.5
    assert ceiling(setting, "noised", 3).auc == pytest.approx(membership_auc(mu))
    assert ceiling(setting, "messages", 3).auc is None
    summed = prepare(experiment(privacy=CENTRAL), local())
    assert ceiling(summed, "sum", 4).mu == pytest.approx(2 * 2 / 1.0)
    assert ceiling(summed, "noised", 4).mu is None
    skipping = prepare(experiment(privacy=LOCAL, strategy__protocol="skips_noise"), local())
    assert ceiling(skipping, "noised", 3).mu is None


def test_membership_is_seen_where_a_person_moves_the_loss_and_not_where_it_does_not():
    rng, runs, people = np.random.default_rng(8), 32, 40
    inside = np.repeat(rng.random((runs // 2, people)) < 0.5, 2, axis=0)
    inside[1::2] = ~inside[::2]
    level, common = rng.normal(5, 3, people), np.repeat(rng.normal(size=(runs // 2, 1)), 2, axis=0) * 0.1
    for moved, expected in ((0.0, 0.5), (1.0, None)):
        game = Game(level + common - moved * inside + 0.3 * rng.standard_normal((runs, people)), inside)
        area, error = game.roc.auc
        assert abs(area - 0.5) < 4.9 * error if expected else area > 0.95


def test_shadow_runs_leave_out_one_half_and_then_the_other():
    setting = prepare(experiment(training__rounds=1), local())
    targets = np.sort(np.concatenate([_targets(setting, True), _targets(setting, False)]))
    first, second, third, _ = [without for without, _ in _runs(setting, local(), 4, targets)]
    assert (first[targets] ^ second[targets]).all()
    assert not (first & second).any()
    assert (first[targets] != third[targets]).any()
    assert set(np.flatnonzero(first | second)) == set(targets)


def test_too_few_shadow_runs_or_canaries_are_no_numbers():
    setting = prepare(experiment(privacy=CENTRAL), local())
    for found in (membership(setting, None, local(), 15), canaries(setting, local(), 7, 1.0)):
        assert all(finding.value is None and "not measurable" in finding.note for finding in found)
    unprotected = prepare(experiment(), local())
    assert all(finding.value is None for finding in canaries(unprotected, local(), 100, math.inf))


def test_canaries_refute_a_claim_if_three_quarters_of_the_noise_are_missing():
    """One round of everybody, z = 2: a canary sees mu = 1 / z, and 4 / z at a quarter of the noise."""
    honest = experiment(
        privacy={**CENTRAL, "noise_multiplier": 2.0},
        model={"name": "mlp", "hidden": [512]},
        training__rounds=1,
        training__sampling_prob=1.0,
        data__users=20,
    )
    setting = prepare(honest, local())
    claimed = honest.privacy.guarantee(setting.plan).epsilon
    fair = canaries(setting, local(), 800, claimed)
    assert of(fair, "canaries", "epsilon, at least").value <= claimed
    assert of(fair, "canaries", "epsilon, at least").ceiling == pytest.approx(4.68, abs=0.01)
    estimate = of(fair, "canaries", "epsilon, estimate").value  # a fitted spread that is 3 % off moves it by a third
    assert estimate == pytest.approx(claimed, rel=0.5)
    cut = replace(setting, mechanism=setting.mechanism.model_copy(update={"noise_multiplier": 0.5}))
    caught = canaries(cut, local(), 800, claimed)
    assert of(caught, "canaries", "epsilon, estimate").value > claimed
    assert of(caught, "canaries", "epsilon, at least").value > claimed
    assert "REFUTED" in of(caught, "canaries", "epsilon, at least").note


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder of three runs, and of one that diverged."""
    out = tmp_path_factory.mktemp("runs")
    privacies = [{"name": "none"}, LOCAL]
    study = Study(name="seen", question="?", base=raw_experiment(data={"name": "digits", "users": 200}),
                  grid={"privacy": privacies})  # fmt: skip
    lost = Study(name="lost", question="?", base=raw_experiment(training__local_lr=1e30))
    for each in (study, lost):
        folder, tasks = plan(each, out, local())
        with here(local()) as compute:
            execute(each, folder, tasks, local(), compute, Quiet())
    return out


def told(*words: object) -> str:
    result = CliRunner().invoke(app, ["audit", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def run_folder(done, name):
    for path in sorted((done / "seen").iterdir()):
        if (path / "manifest.json").exists():
            raw = json.loads((path / "experiment.json").read_text())
            if raw["privacy"]["name"] == name and raw["strategy"]["alpha"] > 0:
                return path
    raise AssertionError(name)


def test_the_command_audits_one_run_and_draws_it(done, tmp_path):
    picture = tmp_path / "roc.svg"
    text = told(run_folder(done, "local_update"), "--picture", picture)
    assert "every message as it is sent" in text
    assert "yes, bit for bit" in text
    assert "not measurable" in text
    assert "Of 100 people who did not contribute" in text
    assert "False-positive rate" in picture.read_text()


def test_the_command_audits_every_run_of_a_study(done):
    found = json.loads(told(done, "--format", "json"))["runs"]
    assert {run["mechanism"]: run["view"] for run in found} == {"none": "messages", "local_update": "noised"}
    assert all(run["reproduced"] and run["curves"] for run in found)
    assert len({run["run_id"] for run in found}) == 2
    assert "direction" in told(done)
    assert told(done, "--format", "csv").count("\n") > 50


def test_a_model_that_is_not_the_one_of_the_run_is_told(done, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder(done, "none"), copy)
    model = {name: values.copy() for name, values in load_file(copy / "model.safetensors").items()}
    next(iter(model.values())).flat[0] += 1e-6
    save_file(model, copy / "model.safetensors")
    assert "Repeated as it was: NO" in told(copy)


@pytest.mark.parametrize("case", ["absent", "empty", "diverged", "picture", "view"])
def test_wrong_input_is_one_line(done, tmp_path, case, capsys, monkeypatch):
    words = {
        "absent": ([tmp_path / "no"], "no such folder"),
        "empty": ([tmp_path], "neither a finished run"),
        "diverged": ([next(path.parent for path in (done / "lost").rglob("manifest.json")
                           if json.loads(path.read_text())["status"] == "diverged")], "diverged"),
        "picture": ([done, "--picture", "roc.gif"], "--picture = roc.gif"),
        "view": ([done, "--view", "all"], "all"),
    }[case]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["fedacdp", "audit", *map(str, words[0])])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words[1] in said
