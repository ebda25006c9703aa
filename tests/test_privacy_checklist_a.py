"""Checklist A: sensitivity and clipping, of every mechanism that is there. Each test plants the error it looks for."""

import numpy as np
import pytest
import torch

from fedacdp.config import ConfigError, Training, experiment_from, parts_of
from fedacdp.keys import Key
from fedacdp.local import dual, train_users
from fedacdp.local.updates import Stacked, squares
from fedacdp.models.base import Network
from fedacdp.privacy import base
from tests import privacy_checks as checks
from tests.conftest import block, raw_experiment

MECHANISMS, MODELS = parts_of("privacy"), parts_of("model")
CLIPPED = [name for name, part in MECHANISMS.items() if part.clips]
SHAPES = {"logistic": (12,), "mlp": (40,), "cnn": (1, 16, 16)}
NETWORKS = [name for name, part in MODELS.items() if issubclass(part, Network)]


def test_every_mechanism_has_a_sample_here():
    assert set(MECHANISMS) <= set(checks.SAMPLES)
    assert set(NETWORKS) <= set(SHAPES)


@pytest.mark.parametrize("model", NETWORKS)
def test_dpsgd_clips_every_example_over_all_parameters_as_a_loop_over_examples_does(model):
    """A1, A3. Against Opacus, the general form and other layers: tests/test_local_training.py, test_any_network.py."""
    checks.check_example_loop(model, SHAPES[model])


def test_clipping_never_exceeds_the_bound_at_any_norm(monkeypatch):
    """A2."""
    checks.check_clip()
    monkeypatch.setattr(base, "clip_factors", lambda norms, bound: np.ones_like(norms))
    with pytest.raises(AssertionError):
        checks.check_clip()


def test_a_clipped_sum_of_anything_is_bounded_and_what_is_not_finite_is_left_out():
    """A2, through the sum: zero, tiny, huge, overflow of float32, NaN, infinities, nothing at all."""
    values = [0.0, 1e-30, 0.01, 3.0, 1e15, 1e30, np.nan, np.inf, -np.inf]
    rows = torch.tensor(values)[:, None] * torch.ones(len(values), 50)
    updates = Stacked(rows)
    factors = base.clip_factors(updates.norms, 0.5)
    for row, value in enumerate(values):
        alone = np.where(np.arange(len(values)) == row, factors, 0.0)
        total = updates.total(alone)
        assert np.linalg.norm(total) <= 0.5 * (1 + 1e-6)
        if abs(value) < 0.05:  # below the bound: not a bit is changed
            np.testing.assert_array_equal(total.astype(np.float32), rows[row].numpy())
        if not np.isfinite(value):
            assert not total.any()
    assert len(Stacked(rows[:0]).norms) == 0


@pytest.mark.parametrize("places", [650, 1_000_000])
def test_the_norm_of_a_long_update_is_that_of_float64(places):
    """A2. Added up in float32 a million places are off by 4e-5, by which a clipped update would exceed the bound."""
    rows = torch.randn(4, places, generator=torch.Generator().manual_seed(0))
    rows *= torch.exp(rows.roll(1, 1))
    exact = rows.double().norm(dim=1)
    assert float((squares(rows).sqrt() / exact - 1).abs().max()) < 1e-7
    if places > 1000:
        assert float((torch.linalg.vector_norm(rows, dim=1) / exact - 1).abs().max()) > 1e-6


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_alike_records_with_different_labels_do_not_hide_their_norm(model, monkeypatch):
    """A2, A4. In the dual form their coefficients grow and cancel; the Gram matrix alone would see a norm that is too
    small by per cents, and the clipped update would exceed C by as much."""
    users = block(users=20, records=2, shape=(784,), ragged=False, classes=10)
    rng = np.random.default_rng(1)
    users.x[:, 0] = 3 * np.abs(users.x[:, 0])
    users.x[:, 1] = users.x[:, 0] * (1 + 1e-3 * rng.standard_normal((20, 784)))
    users.y[:, 0], users.y[:, 1] = 0, 1
    net = MODELS[model](name=model).net(users.schema)
    how = Training(rounds=1, sampling_prob=1.0, local_steps=500, local_lr=0.01)

    def excess() -> float:
        updates = train_users(net, torch.from_numpy(net.initial(Key(3))), users, how, None, Key(1))
        return float((updates.stack().double().norm(dim=1).numpy() / updates.norms - 1).max())

    assert excess() < 1e-5
    monkeypatch.setattr(dual, "_CANCELLED", -1.0)
    assert excess() > 1e-4


@pytest.mark.parametrize("users", [1, 5, 60, 200])
@pytest.mark.parametrize("name", CLIPPED)
def test_neighbours_move_the_sum_by_no_more_than_the_sensitivity(name, users):
    """A3, A4, A6: of any number of users, with a user removed, replaced, or holding a thousand times the records."""
    checks.check_neighbours(name, users)


@pytest.mark.parametrize("name", CLIPPED)
def test_neighbours_of_a_network_of_several_layers(name, monkeypatch):
    """A3, A4. Without a clip, and with the whole of C for each of the layers, the test fails."""
    checks.check_neighbours(name, 20, "mlp")
    monkeypatch.setattr(
        MECHANISMS[name], "clip_factors", lambda self, norms, ids, clip: np.isfinite(norms).astype(float)
    )
    with pytest.raises(AssertionError):
        checks.check_neighbours(name, 20, "mlp")
    factors = lambda self, norms, ids, clip: np.sqrt(4) * base.clip_factors(norms, clip)  # noqa: E731
    monkeypatch.setattr(MECHANISMS[name], "clip_factors", factors)
    with pytest.raises(AssertionError):
        checks.check_neighbours(name, 20, "mlp")


def test_one_example_moves_a_step_of_dpsgd_by_no_more_than_the_clip_norm():
    """A4, the unit of local_dpsgd: one example more, whatever it is, in one step."""
    users = block(users=6, records=5, shape=(40,), ragged=False)
    net = MODELS["mlp"](name="mlp").net(users.schema)
    how = Training(rounds=1, sampling_prob=1.0, local_steps=1, local_lr=1.0)
    start, clip, batch = torch.from_numpy(net.initial(Key(1))), 0.02, 2.0

    def sums(changed):
        rule = base.ExampleRule(clip, 0.0, 1.0, batch, "vectorised")
        return train_users(net, start, changed, how, rule, Key(2)).stack().double().numpy() * batch

    whole = sums(users)
    mask = users.mask.copy()
    mask[:, 4] = False
    less = np.linalg.norm(whole - sums(users.replace(mask=mask)), axis=1)
    assert (less <= clip * (1 + 1e-5)).all()
    assert (less > 0.99 * clip).all()
    for value in (1e3, -1e6, np.nan, np.inf):
        x = users.x.copy()
        x[:, 4] = value
        assert (np.linalg.norm(whole - sums(users.replace(x=x)), axis=1) <= 2 * clip * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_denominator_is_public_and_an_empty_cohort_releases_noise(name):
    """A5. The planted division by what came is in tests/test_mutations.py."""
    checks.check_denominator(name)


@pytest.mark.parametrize("name", CLIPPED)
def test_rules_that_look_at_messages_are_refused_where_only_the_sum_is_noised(name):
    """A6: no weights but equal ones, and no rule whose sensitivity nobody knows."""
    mechanism = checks.mechanism_of(name)
    privacy = {"name": name, **checks.SAMPLES[name]}
    for weights in ("num_examples", "weighted"):
        with pytest.raises(ConfigError, match="aggregation"):
            experiment_from(raw_experiment(privacy=privacy, aggregation={"name": weights}))
    for rule, part in parts_of("aggregation").items():
        if part.needs_messages and not mechanism.on_messages:
            given = {field: 1.0 for field, about in part.model_fields.items() if about.is_required()}
            with pytest.raises(ConfigError, match=r"aggregation\.name"):
                experiment_from(raw_experiment(privacy=privacy, aggregation={**given, "name": rule}))
