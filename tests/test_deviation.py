"""Members who leave the privacy protocol do what they say, to nobody's messages but their own, and noise is counted."""

from dataclasses import replace

import numpy as np
import pytest

from fedacdp.bounds import no_ceiling
from fedacdp.config import ConfigError
from fedacdp.rounds import compute_here, first_state, run
from fedacdp.setting import prepare
from fedacdp.tasks import pack_task, perform, read_partials
from tests.conftest import MECHANISMS, experiment, local, under

PROTOCOLS = ("compliant", "fills_clip", "skips_noise", "noise_as_signal")
CLIP, MULTIPLIER = 0.05, 2.0


def playing(protocol, noise_per="message", alpha=0.3, **changes):
    strategy = {"name": "planting", "alpha": alpha, "y_star": 8, "signal": "patch", "protocol": protocol}
    privacy = {"name": "local_update", "noise_multiplier": MULTIPLIER, "delta": 1e-5, "clip_norm": CLIP,
               "noise_per": noise_per}  # fmt: skip
    return prepare(experiment(strategy=strategy, privacy=privacy, **changes), local())


def sent(setting, **changes):
    """What each user hands over in round 1, (60, P), under a setting with watched messages."""
    watched = replace(setting, watched=True, **changes)
    start = first_state(setting).parameters
    [part] = compute_here(watched, start, 1, [np.arange(60)])
    assert part.ids.tolist() == list(range(60))
    assert not part.total.any()
    return part


def updates(protocol="compliant"):
    """Clipped updates without noise, and the norms before clipping."""
    quiet = playing(protocol)
    mechanism = quiet.mechanism.model_copy(update={"noise_multiplier": 0.0})
    part = sent(quiet, mechanism=mechanism)
    return part.messages.astype(np.float64), part.norms


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_protocol_changes_what_acting_members_send_and_nothing_else(protocol):
    setting = playing(protocol)
    part, honest = sent(setting), sent(playing("compliant"))
    member, size = setting.member, setting.net.size
    clipped, norms = updates()
    assert member.sum() == 18
    np.testing.assert_array_equal(part.messages[~member], honest.messages[~member])
    np.testing.assert_array_equal(part.noisy, ~member | (protocol in ("compliant", "fills_clip")))
    assert part.draws == part.noisy.sum()
    own = part.messages[member].astype(np.float64)
    direction = clipped[member] / np.linalg.norm(clipped[member], axis=1, keepdims=True)
    noise = (honest.messages - clipped)[member]
    report = np.sqrt(CLIP**2 + size * (CLIP * MULTIPLIER) ** 2)
    expected = {
        "compliant": clipped[member] + noise,
        "fills_clip": CLIP * direction + noise,
        "skips_noise": clipped[member],
        "noise_as_signal": report * direction,
    }[protocol]
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)
    assert (norms > CLIP).any()


def test_members_fill_the_clip_upwards_too_and_an_update_of_nothing_stays_nothing():
    setting = playing("fills_clip", training__local_lr=1e-4)
    part = sent(setting, mechanism=setting.mechanism.model_copy(update={"noise_multiplier": 0.0}))
    assert (part.norms < CLIP).all()
    np.testing.assert_allclose(np.linalg.norm(part.messages[setting.member], axis=1), CLIP, rtol=1e-5)
    still = playing("fills_clip", training__local_lr=0.0)
    part = sent(still, mechanism=still.mechanism.model_copy(update={"noise_multiplier": 0.0}))
    assert not part.messages.any()


def test_noise_drawn_for_the_sum_is_that_of_those_who_add_any():
    trials, size = [], 0
    for protocol in ("compliant", "skips_noise"):
        setting = playing(protocol, "sum", training__local_lr=0.0, training__sampling_prob=1.0)
        previous, found = first_state(setting).parameters.astype(np.float64), []
        for state, _ in run(setting, local(), compute_here):
            found.append((state.parameters - previous) * setting.plan.cohort)
            previous = state.parameters.astype(np.float64)
        trials.append(np.concatenate(found))
        size = len(trials[0])
        people = 60 if protocol == "compliant" else 42
        assert state.sent == state.draws == people * len(found)
        ratio = trials[-1].std() / (CLIP * MULTIPLIER * np.sqrt(people))
        assert abs(ratio - 1) < 4.9 / np.sqrt(2 * size)
    assert abs(trials[1].std() / trials[0].std() - 1) > 4.9 / np.sqrt(size)  # the wrong count would be seen


@pytest.mark.parametrize("name", sorted(set(MECHANISMS) - {"randomised_response"}))
def test_messages_one_by_one_add_up_to_the_sum(name):
    privacy = MECHANISMS[name] | ({"noise_per": "message"} if name == "local_update" else {})
    setting = prepare(under(privacy), local())
    start, ids = first_state(setting).parameters, [np.arange(30), np.arange(30, 60)]
    total = sum(part.total for part in compute_here(setting, start, 1, ids))
    parts = compute_here(replace(setting, watched=True), start, 1, ids)
    np.testing.assert_allclose(sum(part.messages.sum(axis=0, dtype=np.float64) for part in parts), total, atol=2e-4)
    there = read_partials(perform(pack_task(replace(setting, watched=True), local(), start, 1, ids)), 2)
    for mine, theirs in zip(parts, there, strict=True):
        np.testing.assert_array_equal(mine.messages, theirs.messages)
        assert mine.messages.shape == (30, setting.net.size)


def test_each_of_several_collectives_has_its_own_protocol():
    patch = {"name": "planting", "y_star": 8, "signal": "patch", "alpha": 0.2}
    two = {"loud": {**patch, "protocol": "noise_as_signal"}, "true": patch}
    privacy = {"name": "local_update", "noise_multiplier": 2.0, "delta": 1e-5, "clip_norm": CLIP,
               "noise_per": "message"}  # fmt: skip
    setting = prepare(experiment(strategy={"name": "several", "collectives": two}, privacy=privacy), local())
    part = sent(setting)
    np.testing.assert_array_equal(part.noisy, setting.collective != 0)


@pytest.mark.parametrize(
    ("strategy", "privacy", "said"),
    [
        ({"protocol": "skips_noise"}, "central", "with central users add no noise to their messages"),
        ({"protocol": "noise_as_signal"}, "local_dpsgd", "with local_dpsgd users add no noise"),
        ({"protocol": "skips_noise"}, "none", "with none users add no noise"),
        ({"protocol": "fills_clip"}, "none", "none does not clip updates"),
        ({"protocol": "shouts"}, "local_update", "protocol"),
    ],
)
def test_a_protocol_that_cannot_be_left_is_refused(strategy, privacy, said):
    with pytest.raises(ConfigError, match=said):
        experiment(
            strategy={"name": "planting", "alpha": 0.1, "y_star": 8, "signal": "patch", **strategy},
            privacy=MECHANISMS[privacy],
        )


def test_no_ceiling_is_claimed_for_members_who_leave_out_their_noise():
    for protocol in PROTOCOLS:
        reason = no_ceiling(playing(protocol).experiment)
        assert (reason is None) == (protocol in ("compliant", "fills_clip"))
