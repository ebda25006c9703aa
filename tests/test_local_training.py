"""Local training of all users at once equals a plain loop over users, and DP-SGD equals Opacus."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from fedacdp.config import parts_of
from fedacdp.keys import Key
from fedacdp.local import general, train_users
from fedacdp.local.batches import poisson, shuffled
from fedacdp.local.dual import DualLayer, pays
from fedacdp.local.opacus import torch_generator, train_with_opacus
from fedacdp.models.base import Network
from fedacdp.privacy.base import ExampleRule
from fedacdp.training import Training
from tests.conftest import block

KEY = Key(3).fold("test")
NETWORKS = [name for name, part in parts_of("model").items() if issubclass(part, Network)]
SHAPES = {"logistic": (12,), "mlp": (40,), "cnn": (1, 16, 16)}  # logistic: copied weights, mlp: dual form


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
@pytest.mark.parametrize("model", NETWORKS)
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


def test_the_dual_form_is_used_for_wide_dense_layers_and_the_general_form_for_other_networks():
    users = block(shape=(40,))
    assert net_of("mlp", users.schema).dense == [(64, 40), (4, 64)]
    assert net_of("cnn", block(shape=(1, 16, 16)).schema).dense is None
    assert pays(64, 784, 50)
    assert not pays(64, 784, 100)


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


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("model", NETWORKS)
def test_dpsgd_without_noise_equals_opacus_and_the_general_form(model, ragged):
    users, how = block(shape=SHAPES[model], ragged=ragged), training()
    net = net_of(model, users.schema)
    start = torch.from_numpy(net.initial(KEY))

    def trained(implementation, clip=0.7):
        return train_users(net, start, users, how, ExampleRule(clip, 0.0, 0.5, 3.0, implementation), KEY)

    ours, theirs = trained("vectorised"), trained("opacus")
    assert float(theirs.stack().abs().max()) > 0.01
    torch.testing.assert_close(ours.stack(), theirs.stack(), atol=3e-6, rtol=1e-4)
    np.testing.assert_allclose(ours.norms, theirs.norms, rtol=1e-4)
    batches = poisson(users, 0.5, 5, KEY.fold("batches"))
    literal = general.dpsgd(net, start, users, batches, 0.3, ExampleRule(0.7, 0.0, 0.5, 3.0, ""), KEY)
    torch.testing.assert_close(ours.stack(), literal, atol=1e-6, rtol=1e-5)
    assert float((trained("vectorised", 1e6).stack() - theirs.stack()).abs().max()) > 1e-3  # the clip matters


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


def same_data(users, count):
    """`count` users with the data of the first, so that they are independent draws of one thing."""
    return users.rows(np.zeros(count, int)).replace(ids=np.arange(count))


@pytest.mark.parametrize("records", ["different", "equal"])
@pytest.mark.parametrize("others", ["literal", "opacus"])
def test_dpsgd_noise_in_the_dual_form_has_the_distribution_of_the_literal_one(others, records):
    """Noise feeds back through the user's own records; two equal records make the Gram matrix singular."""
    users = block(users=1, records=4, shape=(30,), ragged=False)
    if records == "equal":
        users.x[0, 1] = users.x[0, 0]
    count = 3000 if others == "literal" else 400
    many, how = same_data(users, count), training(local_steps=3)
    net = net_of("mlp", users.schema)
    start, rule = torch.from_numpy(net.initial(KEY)), ExampleRule(0.5, 0.8, 1.0, 4.0, "vectorised")
    ours = train_users(net, start, many, how, rule, KEY)
    assert isinstance(ours.layers[0], DualLayer)
    batches = poisson(many, 1.0, 3, KEY)
    literal = general.dpsgd if others == "literal" else train_with_opacus
    a, b = ours.stack().double().numpy(), literal(net, start, many, batches, 0.3, rule, KEY.fold("o")).double().numpy()
    np.testing.assert_allclose(ours.norms, np.linalg.norm(a, axis=1), rtol=1e-4)
    np.testing.assert_allclose(ours.total(np.ones(count)), a.sum(0), atol=2e-3)
    rng = np.random.default_rng(1)
    inside = np.zeros((2, a.shape[1]))  # directions of the first layer's weights that the user's records see
    inside[:, : 64 * 30] = np.stack([np.outer(rng.standard_normal(64), users.x[0, row]).ravel() for row in (0, 2)])
    upper = np.zeros((1, a.shape[1]))
    upper[0, 64 * 31 :] = rng.standard_normal(a.shape[1] - 64 * 31)
    for direction in np.concatenate([rng.standard_normal((3, a.shape[1])), inside, upper]):
        left, right = a @ direction, b @ direction
        assert stats.ks_2samp(left, right).pvalue > 1e-6
        wide = left.mean() + (1.5 if others == "literal" else 3.0) * (left - left.mean())
        assert stats.ks_2samp(wide, right).pvalue < 1e-6


def test_dpsgd_noise_in_the_dual_form_is_white_inside_and_outside_the_span_and_between():
    """No example enters: what is released must be plain white noise of the accounted size, of which the part inside the
    span has been through the training and the part outside has not."""
    users = block(users=1, records=5, shape=(30,), ragged=False)
    many, steps = same_data(users, 2000), 4
    net = net_of("mlp", users.schema)
    how = training(local_steps=steps, local_lr=0.1)
    rule = ExampleRule(0.5, 1.3, 0.0, 2.0, "vectorised")
    updates = train_users(net, torch.from_numpy(net.initial(KEY)), many, how, rule, KEY).stack().double().numpy()
    unit = 0.1 * 1.3 * 0.5 / 2.0 * np.sqrt(steps)
    first = np.concatenate(  # (user, h, d + 1)
        [updates[:, : 64 * 30].reshape(-1, 64, 30), updates[:, 64 * 30 : 64 * 31, None]], axis=2
    )
    basis = np.linalg.qr(np.concatenate([users.x[0], np.ones((5, 1))], axis=1).T.astype(float), mode="complete")[0]
    turned = first @ basis / unit  # the first five columns lie inside the span
    for part in (turned[:, :, :5], turned[:, :, 5:]):
        low, high = np.sqrt(stats.chi2.ppf([5e-7, 1 - 5e-7], part.size) / part.size)
        assert low < part.std() < high
        assert not low < 1.02 * part.std() < high
        assert stats.kstest(part.ravel(), "norm").pvalue > 1e-6
    correlation = np.corrcoef(turned[:, :2].reshape(len(turned), -1).T)  # two outputs, 31 directions each
    assert np.abs(correlation - np.eye(62)).max() < 5.5 / np.sqrt(len(turned))
    wrong = turned[:, 0, 5] + 0.2 * turned[:, 0, 0]  # a forgotten projection would look like this
    assert abs(np.corrcoef(wrong, turned[:, 0, 0])[0, 1]) > 5.5 / np.sqrt(len(turned))


def test_dpsgd_noise_of_a_user_does_not_depend_on_the_block_it_is_in():
    users, how = block(shape=(40,)), training()
    net = net_of("mlp", users.schema)
    start, rule = torch.from_numpy(net.initial(KEY)), ExampleRule(0.5, 0.8, 0.4, 3.0, "vectorised")
    together = train_users(net, start, users, how, rule, KEY).stack()
    for row in range(len(users)):
        alone = users.rows(np.array([row]))
        short = int(alone.mask.sum())
        cut = alone.replace(x=alone.x[:, :short], y=alone.y[:, :short], mask=alone.mask[:, :short])
        again = train_users(net, start, cut, how, rule, KEY).stack()[0]
        torch.testing.assert_close(again, together[row], atol=2e-4, rtol=0)
