"""Every network trains as a plain loop over users would train it, whichever of the forms of local training it takes."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedacdp.keys import Key
from fedacdp.local import general, train_users
from fedacdp.local.batches import poisson, shuffled
from fedacdp.local.conv_plan import plan_of
from fedacdp.local.dual import DualLayer
from fedacdp.local.grams import Grams, gram
from fedacdp.models.base import Net
from fedacdp.privacy.base import ExampleRule
from tests.conftest import block
from tests.test_local_training import KEY, plain_loop, training


class Residual(nn.Module):
    """What no hand-written form knows: a user's own module with a skip connection and group norm."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.tanh(self.norm(self.first(x)))
        return self.last((h + h.square()).mean((2, 3)))


def stack(*layers):
    return nn.Sequential(*layers)


# network, whether a hand-written form takes it; images are (2, 11, 9), 4 classes
CONVOLUTIONS = {
    "stride, padding, tanh, overlapping pools": lambda: stack(
        nn.Conv2d(2, 5, 4, 2, padding=2), nn.Tanh(), nn.MaxPool2d(2, 1), nn.Conv2d(5, 3, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(3 * 4 * 3, 6), nn.Tanh(), nn.Linear(6, 4)
    ),
    "relu, pools that leave a remainder, sides that differ": lambda: stack(
        nn.Conv2d(2, 4, (3, 2), (1, 2), padding=(1, 0)), nn.ReLU(), nn.MaxPool2d((3, 2), (2, 1)), nn.Flatten(),
        nn.Linear(4 * 5 * 3, 4)
    ),
    "pool of three, padded second convolution": lambda: stack(
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(4 * 4 * 3, 5), nn.ReLU(), nn.Linear(5, 4)
    ),
    "no pool, no activation": lambda: stack(nn.Conv2d(2, 3, 5, 3), nn.Flatten(), nn.Linear(3 * 3 * 2, 4)),
}  # fmt: skip
OTHERS = {
    "own module": Residual,
    "dilation": lambda: stack(nn.Conv2d(2, 3, 3, dilation=2), nn.Flatten(), nn.Linear(3 * 7 * 5, 4)),
    "groups": lambda: stack(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(4 * 9 * 7, 4)),
    "padded pool": lambda: stack(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(3 * 5 * 4, 4)),
    "dense without bias": lambda: stack(nn.Flatten(), nn.Linear(2 * 11 * 9, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)),
    "dense with tanh": lambda: stack(nn.Flatten(), nn.Linear(2 * 11 * 9, 8), nn.Tanh(), nn.Linear(8, 4)),
}
NETWORKS = CONVOLUTIONS | OTHERS
IMAGE = (2, 11, 9)


def net_of(name):
    with torch.device("meta"):
        return Net(NETWORKS[name]())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_form_is_chosen_by_what_the_network_is_made_of(name):
    net = net_of(name)
    assert (plan_of(net, IMAGE) is not None) == (name in CONVOLUTIONS)
    assert net.dense is None


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_sgd_equals_a_plain_loop(name, ragged):
    users, net, how = block(shape=IMAGE, ragged=ragged), net_of(name), training(batch=2, local_steps=4)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        start = torch.from_numpy(net.initial(KEY)).to(dtype)
        updates = train_users(net, start, users, how, None, KEY)
        expected = plain_loop(net, start, users, shuffled(users, 2, 4, None, KEY.fold("order")), how.local_lr)
        scale = max(1.0, float(expected.abs().max()))
        assert float((updates.stack() - expected).abs().max()) < tolerance * scale
        assert float(expected.abs().max()) > 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_dpsgd_without_noise_equals_the_general_form(name):
    users, net = block(shape=IMAGE, users=6), net_of(name)
    start = torch.from_numpy(net.initial(KEY)).to(torch.float64)
    clip = 0.4
    ours = train_users(net, start, users, training(), ExampleRule(clip, 0.0, 0.5, 3.0, "vectorised"), KEY).stack()
    batches = poisson(users, 0.5, 5, KEY.fold("batches"))
    literal = general.dpsgd(net, start, users, batches, 0.3, ExampleRule(clip, 0.0, 0.5, 3.0, ""), KEY)
    torch.testing.assert_close(ours, literal, atol=1e-10, rtol=1e-9)
    unclipped = general.dpsgd(net, start, users, batches, 0.3, ExampleRule(1e9, 0.0, 0.5, 3.0, ""), KEY)
    assert float((unclipped - literal).abs().max()) > 1e-3  # the clip matters


@pytest.mark.parametrize("rule", [None, ExampleRule(0.5, 0.0, 0.6, 3.0, "vectorised")])
@pytest.mark.parametrize("name", ["stride, padding, tanh, overlapping pools", "own module"])
def test_a_record_that_is_not_finite_spoils_nobody_else(name, rule):
    users, net = block(shape=IMAGE), net_of(name)
    users.x[2] = np.inf
    start = torch.from_numpy(net.initial(KEY))
    rows = train_users(net, start, users, training(), rule, KEY).stack()
    clean = train_users(net, start, users.rows(np.array([0, 1, 3, 4, 5, 6])), training(), rule, KEY).stack()
    torch.testing.assert_close(rows[[0, 1, 3, 4, 5, 6]], clean, atol=1e-5, rtol=1e-4)
    assert bool(torch.isfinite(rows[2]).all()) == (rule is not None)  # DP-SGD leaves such gradients out


def test_equal_maxima_pass_the_gradient_to_the_first_as_in_pytorch():
    users, net = block(shape=IMAGE, ragged=False), net_of("pool of three, padded second convolution")
    users.x[:] = np.sign(users.x)  # many windows with equal maxima
    users.x[:2] = 0
    start = torch.from_numpy(net.initial(KEY)).to(torch.float64)
    ours = train_users(net, start, users, training(), None, KEY).stack()
    expected = plain_loop(net, start, users, shuffled(users, 3, 5, None, KEY.fold("order")), 0.3)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-9)


def test_gram_matrices_are_the_same_bits_kept_or_computed_anew_in_any_block():
    users = block(users=40, records=9, shape=(30,))
    users = users.replace(ids=np.arange(40))
    inputs = torch.from_numpy(users.x)
    grams = Grams(users.mask.sum(1))
    everybody, original = np.arange(40), np.ones(40, bool)
    original[5] = False
    first = grams.of(users, inputs, original)
    torch.testing.assert_close(first, inputs @ inputs.mT + 1)
    for rows in (everybody, everybody[::3], everybody[[5, 7, 8]]):
        some = users.rows(rows)
        width = int(some.mask.sum(1).max())
        some = some.replace(x=some.x[:, :width], y=some.y[:, :width], mask=some.mask[:, :width])
        again = grams.of(some, torch.from_numpy(some.x), original[rows])
        assert torch.equal(again, first[torch.from_numpy(rows), :width, :width])
        assert torch.equal(gram(some, torch.from_numpy(some.x)), again)
    changed = users.replace(x=users.x * 2)
    only = np.arange(40) != 5
    mixed = grams.of(changed, inputs * 2, only)  # who is said to be original is not computed again, who is not is
    assert torch.equal(mixed[0], first[0])
    torch.testing.assert_close(mixed[5], inputs[5] @ inputs[5].mT * 4 + 1)
    grams.of(users, inputs, np.ones(40, bool))  # now the fifth is kept too, which must not be given for changed records
    torch.testing.assert_close(grams.of(changed, inputs * 2, only)[5], inputs[5] @ inputs[5].mT * 4 + 1)


def test_gram_matrices_take_no_more_room_than_they_may(monkeypatch):
    monkeypatch.setattr("fedacdp.local.grams._ROOM", 4 * 36 * 10)  # room for ten
    users = block(users=25, records=6, shape=(30,), ragged=False).replace(ids=np.arange(25))
    grams, inputs = Grams(users.mask.sum(1)), torch.from_numpy(users.x)
    for _ in range(2):
        for first in (0, 8, 16):
            some = users.rows(np.arange(first, min(25, first + 9)))
            found = grams.of(some, torch.from_numpy(some.x), np.ones(len(some), bool))
            assert torch.equal(found, gram(users, inputs)[first : first + 9])
    assert int((grams._slots >= 0).sum()) == 10


def test_several_segments_and_epochs_of_the_dual_form_equal_a_plain_loop():
    """Long local training goes through many segments; records come again in each."""
    users = block(records=8, shape=(40,))
    with torch.device("meta"):
        net = Net(stack(nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 4)))
    start = torch.from_numpy(net.initial(Key(1))).to(torch.float64)
    for how in ({"batch": 3, "local_steps": 17}, {"batch": 8, "local_steps": 6}, {"batch": 1, "local_steps": 30}):
        updates = train_users(net, start, users, training(**how), None, KEY)
        batches = shuffled(users, how["batch"], how["local_steps"], None, KEY.fold("order"))
        expected = plain_loop(net, start, users, batches, 0.3)
        torch.testing.assert_close(updates.stack(), expected, atol=1e-10, rtol=1e-9)
        np.testing.assert_allclose(updates.norms, expected.norm(dim=1).numpy(), rtol=1e-9)


@pytest.mark.parametrize("rule", [None, ExampleRule(0.5, 0.7, 0.6, 3.0, "vectorised")])
@pytest.mark.parametrize("name", ["dense", "own module"])
def test_the_products_of_a_gpu_give_the_same_on_a_cpu(name, rule, monkeypatch):
    """What a GPU computes is PyTorch's batched products: the same code, run here."""
    shape = (40,) if name == "dense" else IMAGE
    users, how = block(shape=shape, records=8), training(local_steps=7)
    with torch.device("meta"):
        net = Net(
            stack(nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 4)) if name == "dense" else Residual()
        )
    start = torch.from_numpy(net.initial(KEY)).to(torch.float64)
    ours = train_users(net, start, users, how, rule, KEY)
    monkeypatch.setattr("fedacdp.products._by_numpy", lambda numbers: False)
    theirs = train_users(net, start, users, how, rule, KEY)
    torch.testing.assert_close(ours.stack(), theirs.stack(), atol=1e-12, rtol=1e-10)
    np.testing.assert_allclose(ours.norms, theirs.norms, rtol=1e-10)
    np.testing.assert_allclose(ours.total(np.ones(len(users))), theirs.total(np.ones(len(users))), atol=1e-11)


@pytest.mark.parametrize("name", ["stride, padding, tanh, overlapping pools", "own module"])
def test_dpsgd_noise_has_the_stated_size_and_is_everybodys_own(name):
    users, net = block(shape=IMAGE, users=150, records=3), net_of(name)
    steps, z, clip, batch, lr = 4, 1.3, 0.5, 2.0, 0.1
    rule = ExampleRule(clip, z, 0.0, batch, "vectorised")  # no example enters: pure noise
    start = torch.from_numpy(net.initial(KEY))
    updates = train_users(net, start, users, training(local_steps=steps, local_lr=lr), rule, KEY)
    assert updates.draws == len(users) * steps
    rows = updates.stack().double().numpy() / (lr * z * clip / batch * np.sqrt(steps))
    low, high = np.sqrt(stats.chi2.ppf([5e-7, 1 - 5e-7], rows.size) / rows.size)
    assert low < np.sqrt((rows**2).mean()) < high
    assert not low < 1.05 * np.sqrt((rows**2).mean()) < high
    assert stats.kstest(rows.ravel(), "norm").pvalue > 1e-6
    assert np.abs(np.corrcoef(rows) - np.eye(len(users))).max() < 5.5 / np.sqrt(rows.shape[1])
    half = rows.shape[1] // 2
    between = np.corrcoef(rows[:, :half].ravel(), rows[:, half : 2 * half].ravel())[0, 1]
    assert abs(between) < 5.5 / np.sqrt(half * len(rows))


def test_dpsgd_of_a_convolution_has_the_distribution_of_the_literal_form():
    """Noise feeds back through the user's own images."""
    one, net = block(users=1, shape=IMAGE, records=4, ragged=False), net_of("no pool, no activation")
    count, clip, z = 600, 0.5, 0.8
    many = one.rows(np.zeros(count, int)).replace(ids=np.arange(count))
    start, rule = torch.from_numpy(net.initial(KEY)), ExampleRule(clip, z, 1.0, 4.0, "vectorised")
    ours = train_users(net, start, many, training(local_steps=3), rule, KEY).stack().double().numpy()
    literal = general.dpsgd(net, start, many, poisson(many, 1.0, 3, KEY), 0.3, rule, KEY.fold("o")).double().numpy()
    directions = np.random.default_rng(1).standard_normal((4, ours.shape[1]))
    for direction in directions:
        left, right = ours @ direction, literal @ direction
        assert stats.ks_2samp(left, right).pvalue > 1e-6
        assert stats.ks_2samp(left.mean() + 2 * (left - left.mean()), right).pvalue < 1e-6
    assert abs(ours.mean() - literal.mean()) < 5.5 * literal.std() / np.sqrt(ours.size)


def test_the_noise_so_far_on_a_users_own_records_is_that_of_literal_draws_at_every_step():
    """y_s = (A, 1) (Z_1 + ... + Z_s)^T: covariance min(s, t) K between steps s and t, the last of which is released."""
    users, steps, scale, count = block(users=1, shape=(30,), records=3, ragged=False), 4, 0.7, 4000
    inputs = torch.from_numpy(users.x).to(torch.float64).repeat(count, 1, 1)
    kernel = inputs @ inputs.mT + 1
    weights, bias = torch.zeros(2, 30, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    layer = DualLayer(weights, bias, inputs, kernel, torch.zeros(count, steps, 1, dtype=torch.int64))
    normals = torch.from_numpy(KEY.normals(np.arange(count), layer.draws(steps))).to(torch.float64)
    seen = []
    for step in range(steps - 1):
        layer.add_noise(normals, step, steps, scale)
        seen.append(layer.noise.now[:, :, 0].clone())
    seen.append(layer.noise.seen[:, :, 0])  # all S steps: the released noise on the records
    weight = torch.from_numpy(np.random.default_rng(2).standard_normal(3))  # one number a user, of all its records
    path = torch.stack([noise @ weight for noise in seen], dim=1).numpy()
    unit = scale**2 * float(weight @ kernel[0] @ weight)
    low, high = stats.chi2.ppf([5e-8, 1 - 5e-8], count) / count
    for step in range(steps):
        assert low < (path[:, step] ** 2).mean() / (unit * (step + 1)) < high
    moves = np.diff(path, axis=1, prepend=0) / np.sqrt(unit)  # independent, each of the same size
    for step in range(steps):
        assert low < (moves[:, step] ** 2).mean() < high
        assert not low < 1.2 * (moves[:, step] ** 2).mean() < high
    assert np.abs(np.corrcoef(moves.T) - np.eye(steps)).max() < 5.5 / np.sqrt(count)
