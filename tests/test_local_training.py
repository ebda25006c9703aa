"""Local training of all users at once equals a plain loop over users, and DP-SGD equals Opacus."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from fedacdp.config import Training, parts_of
from fedacdp.keys import Key
from fedacdp.local import dual, general, train_users
from fedacdp.local.batches import poisson, shuffled
from fedacdp.local.opacus import torch_generator, train_with_opacus
from fedacdp.privacy.base import ExampleRule
from tests.conftest import block

KEY = Key(3).fold("test")
SHAPES = {"logistic": (12,), "mlp": (12,), "cnn": (1, 16, 16)}


def training(**changes):
    return Training(**{"rounds": 1, "sampling_prob": 1.0, "local_steps": 5, "batch": 3, "local_lr": 0.3, **changes})


def net_of(name, schema):
    return parts_of("model")[name](name=name).net(schema)


def plain_loop(net, start, users, batches, lr):
    """One user after another, one step after another, autograd on a mean over the batch's rows."""
    updates = []
    for row in range(len(users)):
        flat = start.clone()
        for step in range(batches.index.shape[1]):
            rows = batches.index[row, step][batches.chosen[row, step]]
            if len(rows) == 0:
                continue
            flat.requires_grad_(True)
            x, y = torch.from_numpy(users.x[row, rows]).to(start.dtype), torch.from_numpy(users.y[row, rows])
            (slope,) = torch.autograd.grad(F.cross_entropy(net.logits(net.unflatten(flat), x), y), flat)
            flat = (flat - lr * slope).detach()
        updates.append(flat - start)
    return torch.stack(updates)


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("how", [{"batch": 3}, {"batch": "full"}, {"batch": 2, "local_steps": None, "local_epochs": 3}])
@pytest.mark.parametrize("model", parts_of("model"))
def test_training_all_users_at_once_equals_a_plain_loop(model, how, ragged):
    users = block(shape=SHAPES[model], ragged=ragged)
    net, how = net_of(model, users.schema), training(**how)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        start = torch.from_numpy(net.initial(KEY)).to(dtype)
        updates = train_users(net, start, users, how, None, KEY)
        batches = shuffled(users, how.batch, how.local_steps, how.local_epochs, KEY.fold("order"))
        expected = plain_loop(net, start, users, batches, how.local_lr)
        scale = float(expected.abs().max())
        assert float((updates.stack() - expected).abs().max()) < tolerance * max(scale, 1.0)
        np.testing.assert_allclose(updates.norms, expected.double().norm(dim=1).numpy(), rtol=max(tolerance, 1e-9) * 10)
        factors = np.random.default_rng(0).random(len(users))
        factors[2] = 0
        expected_sum = torch.from_numpy(factors) @ expected.double()
        np.testing.assert_allclose(updates.total(factors), expected_sum.numpy(), atol=tolerance * 10)


def test_the_dual_form_is_used_for_dense_networks_and_the_general_form_for_others():
    users = block(shape=(40,))
    assert dual.dense_layers(net_of("mlp", users.schema)) == [(64, 40), (4, 64)]
    assert dual.dense_layers(net_of("cnn", block(shape=(1, 16, 16)).schema)) is None
    assert dual.pays([(64, 784), (10, 64)], 50)
    assert not dual.pays([(64, 784), (10, 64)], 100)


def test_an_update_that_is_not_finite_spoils_nobody_else():
    users = block(shape=(40,))
    users.x[2] = np.inf
    net = net_of("mlp", users.schema)
    updates = train_users(net, torch.from_numpy(net.initial(KEY)), users, training(), None, KEY)
    finite = np.isfinite(updates.norms)
    assert not finite[2]
    assert finite.sum() == len(users) - 1
    assert np.isfinite(updates.total(finite.astype(float))).all()


def test_a_users_batches_do_not_depend_on_the_block_it_is_in():
    users = block()
    together = shuffled(users, 2, 5, None, KEY)
    sampled = poisson(users, 0.4, 5, KEY)
    for row in range(len(users)):
        alone = users.rows(np.array([row]))
        short = int(alone.mask.sum())
        cut = alone.replace(x=alone.x[:, :short], y=alone.y[:, :short], mask=alone.mask[:, :short])
        again = shuffled(cut, 2, 5, None, KEY)
        for step in range(5):
            mine = together.index[row, step][together.chosen[row, step]]
            np.testing.assert_array_equal(mine, again.index[0, step][again.chosen[0, step]])
            drawn = sampled.index[row, step][sampled.chosen[row, step]]
            theirs = poisson(cut, 0.4, 5, KEY)
            np.testing.assert_array_equal(drawn, theirs.index[0, step][theirs.chosen[0, step]])


def test_every_epoch_takes_every_record_once_in_a_new_order():
    users = block(records=9, ragged=True)
    batches = shuffled(users, 2, None, 2, KEY)
    orders = []
    for row, size in enumerate(users.mask.sum(1)):
        taken = batches.index[row][batches.chosen[row]]
        assert sorted(taken[:size]) == sorted(taken[size:]) == list(range(size))
        orders.append(list(taken[:size]) == list(taken[size:]))
    assert not all(orders)


def test_poisson_batches_take_each_record_at_the_stated_rate():
    users = block(users=4000, records=6, ragged=True)
    rate, steps = 0.3, 5
    chosen = poisson(users, rate, steps, KEY).chosen.sum()
    trials = int(users.mask.sum()) * steps
    assert stats.binomtest(int(chosen), trials, rate).pvalue > 1e-6
    assert stats.binomtest(int(chosen), trials, rate * 1.05).pvalue < 1e-6


@pytest.mark.parametrize("model", parts_of("model"))
def test_dpsgd_without_noise_equals_opacus(model):
    users = block(shape=SHAPES[model])
    net = net_of(model, users.schema)
    start = torch.from_numpy(net.initial(KEY))
    rule = ExampleRule(0.7, 0.0, 0.5, 3.0, "vectorised")
    batches = poisson(users, rule.batch_prob, 5, KEY)
    ours = general.dpsgd(net, start, users, batches, 0.3, rule, KEY)
    theirs = train_with_opacus(net, start, users, batches, 0.3, rule, KEY)
    assert float(theirs.abs().max()) > 0.01
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=1e-4)
    unclipped = general.dpsgd(net, start, users, batches, 0.3, ExampleRule(1e6, 0.0, 0.5, 3.0, ""), KEY)
    assert float((unclipped - theirs).abs().max()) > 1e-3  # without the clip it is something else


@pytest.mark.parametrize("implementation", ["vectorised", "opacus"])
def test_dpsgd_noise_has_the_stated_size_in_every_user(implementation):
    users = block(users=120, records=3, shape=(40,))
    net = net_of("mlp", users.schema)
    start, steps, z, clip, batch, lr = torch.from_numpy(net.initial(KEY)), 4, 1.3, 0.5, 2.0, 0.1
    how = training(local_steps=steps, local_lr=lr)
    rule = ExampleRule(clip, z, 0.0, batch, implementation)  # no example enters: pure noise
    updates = train_users(net, start, users, how, rule, KEY)
    assert updates.draws == len(users) * steps
    rows = updates.stack().double().numpy()
    expected = lr * z * clip / batch * np.sqrt(steps)
    draws = rows.size
    low, high = np.sqrt(stats.chi2.ppf([5e-7, 1 - 5e-7], draws) / draws)
    assert low < rows.std() / expected < high
    assert not low < 1.05 * rows.std() / expected < high
    assert np.abs(np.corrcoef(rows) - np.eye(len(users))).max() < 5.5 / np.sqrt(rows.shape[1])


def test_torch_generators_of_different_addresses_differ_in_their_whole_state():
    first, second = (torch_generator(KEY.fold(user)) for user in (1, 2))
    draws = [torch.normal(0.0, 1.0, (50_000,), generator=g).numpy() for g in (first, second)]
    assert abs(np.corrcoef(draws)[0, 1]) < 5 / np.sqrt(50_000)
    assert stats.kstest(draws[0], "norm").pvalue > 1e-6
    assert np.array_equal(draws[0], torch.normal(0.0, 1.0, (50_000,), generator=torch_generator(KEY.fold(1))).numpy())


def test_dpsgd_with_opacus_and_ours_have_the_same_distribution():
    users = block(users=1, records=4, shape=(6,), ragged=False)
    many = users.rows(np.zeros(3000, int)).replace(ids=np.arange(3000))
    net = net_of("logistic", users.schema)
    start, how = torch.from_numpy(net.initial(KEY)), training(local_steps=3)
    samples = {}
    for name, key in {"vectorised": KEY, "opacus": KEY.fold("other")}.items():
        rule = ExampleRule(0.5, 0.8, 1.0, 4.0, name)
        samples[name] = train_users(net, start, many, how, rule, key).stack().double().numpy()
    for direction in np.random.default_rng(1).standard_normal((3, samples["opacus"].shape[1])):
        a, b = (samples[name] @ direction for name in samples)
        assert stats.ks_2samp(a, b).pvalue > 1e-6
        assert stats.ks_2samp(a * 1.25, b).pvalue < 1e-6
